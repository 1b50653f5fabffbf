"""4 CHOICE: filter, score, combine, choose; and the record of why.

Takes a request, candidate rows and a snapshot. Gives a `Decision`. Pure: never reserves, never answers HTTP.
"""

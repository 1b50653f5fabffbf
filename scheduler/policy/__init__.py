"""3 OPINION: one file per filter or score; pure, vectorised, over node-level columns.

Takes a request and a snapshot. Gives reason codes or scores in [0, 1]. Never reads a clock or another policy.
"""

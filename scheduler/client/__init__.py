"""Asks a running daemon for people: finds it, fetches JSON, prints tables.

Takes an address, or the user's kubectl. Gives lines on a terminal or in a pipe. Never decides, never writes to a
cluster, never keeps what it was told.
"""

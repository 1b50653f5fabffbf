"""Words shared by all rooms: nouns, names, errors, units, the clock, guarded loops, logs, files.

Takes nothing from any other room. Everything here except clock, aio, log and files is pure.
"""

"""Words shared by all rooms: nouns, names, errors, units, the clock, guarded loops, logs.

Takes nothing from any other room. Everything here except clock, aio and log is pure.
"""

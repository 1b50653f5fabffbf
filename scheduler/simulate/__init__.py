"""Worlds to run the daemon in: traces, a virtual clock, devices, a cluster with an API face, a kube-scheduler.

Takes a trace. Gives a world that the real store, policies and cycle run in. Never a second implementation of those.
"""

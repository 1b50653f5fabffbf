"""11 TELL: Prometheus, the JSON API, the decision log, Kubernetes events.

Takes counters and snapshots of the other rooms. Gives pages. Never changes state.
"""

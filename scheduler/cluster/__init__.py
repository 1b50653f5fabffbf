"""2 STATE: what the cluster is now.

Takes Kubernetes objects and samples as events. Gives read-only columns (`Snapshot`). One writer: store.py, with
nodes.py, measurements.py and promises.py as its parts. Only kubernetes.py does I/O. Never chooses a node.
"""

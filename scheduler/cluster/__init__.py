"""2 STATE: what the cluster is now.

Takes Kubernetes objects and samples as events. Gives read-only columns (`Snapshot`). One writer: store.py.
Only kubernetes.py does I/O. Never chooses a node.
"""

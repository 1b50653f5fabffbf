"""5 DOOR: kube-scheduler's extender protocol over HTTP.

Takes JSON. Gives JSON. Never awaits anything in filter, prioritize and preempt.
"""

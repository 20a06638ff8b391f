"""The demo: a lab of network namespaces with a small internet, relays and a client in it.

`lab` makes the namespaces, `internet` is what the exits lead to, `fleet` starts the nodes, `run` is the
command that a person starts. Tests and benchmarks use the same lab.
"""

"""The pool of ready circuits: when to build, which circuit a new flow gets, when one is dead or too old.

`machine.Pool` is a pure machine: inputs with `now` in, lists of `types.Action` out. Specification:
docs/protocol/pool.md.
"""

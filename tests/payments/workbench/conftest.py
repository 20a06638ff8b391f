"""The contracts in eth-brownie, on an anvil of its own. Runs by scripts/contracts-brownie pytest only."""

from __future__ import annotations

try:
    import brownie
except ImportError:
    collect_ignore_glob = ["test_*.py"]
else:
    assert brownie.__file__

"""Relays to choose from: made up, each with an address in a block of its own."""

from __future__ import annotations

from typing import Any

from circuits.candidates import Candidate

UNIX_S = 1_800_000_000.0


class Serves:
    """An exit policy: these ports, or all when none are named."""

    def __init__(self, *ports: int) -> None:
        self.ports = ports

    def allows(self, port: int) -> bool:
        return not self.ports or port in self.ports


def relay(number: int, is_exit: bool = False, **changes: Any) -> Candidate:
    """A relay that differs from those of other numbers in identity, /16 and /32."""
    values: dict[str, Any] = {
        "node_id": number.to_bytes(2, "big") * 16,
        "onion_key": bytes(32),
        "addresses": ((f"{10 + number // 200}.{number % 200}.0.1", 4433),),
        "is_relay": True,
        "is_exit": is_exit,
        "ports": Serves(),
        "price_wei_per_packet": 100,
    }
    return Candidate(**{**values, **changes})

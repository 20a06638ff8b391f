"""For whom a relay opens purses towards next hops: neighbours that have shown money, and a few that have not.

Anybody can ask for a circuit and name a next hop. Without this, ten such builds would put all that a relay
may have in purses into an attacker's. Pure; docs/protocol/payments.md, "Tabs on links".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

L = TypeVar("L", bound=Hashable)

BACKED_SHARE = 10
"""Who asks has shown money if its own purse towards us, confirmed, still holds a tenth of what is opened: one
that was filled with the same deposit does until long after it is filled again."""
MAX_ASKERS = 32
"""Neighbours remembered for each next hop, the latest."""


class Backing(Generic[L]):
    """Of one node. `limit_wei` is what may be opened for neighbours that have shown nothing."""

    def __init__(self, limit_wei: int, left_wei: Callable[[L], int]) -> None:
        """`left_wei` tells what a neighbour's purse, confirmed and attached, still holds for us."""
        self._limit_wei = limit_wei
        self._left_wei = left_wei
        self._askers: dict[bytes, dict[L, None]] = {}
        self._unbacked: dict[bytes, int] = {}

    def ask(self, payee: bytes, front: L) -> None:
        """A circuit from `front` is to go on to whoever is paid as `payee`."""
        askers = self._askers.setdefault(payee, {})
        askers.pop(front, None)
        askers[front] = None
        if len(askers) > MAX_ASKERS:
            del askers[next(iter(askers))]

    def forget(self, front: L) -> None:
        """A neighbour's link is gone."""
        for payee in [payee for payee, askers in self._askers.items() if front in askers]:
            del self._askers[payee][front]
            if not self._askers[payee]:
                del self._askers[payee]

    def may_open(self, payee: bytes, wei: int) -> bool:
        """Whether to open a purse with `wei` in it now; counts it. What nobody asked for is our own wish."""
        for known, opened_wei in list(self._unbacked.items()):
            if self._is_backed(known, opened_wei):
                del self._unbacked[known]
        if payee not in self._askers or self._is_backed(payee, wei):
            return True
        others = sum(opened_wei for known, opened_wei in self._unbacked.items() if known != payee)
        if others + wei > self._limit_wei:
            return False
        self._unbacked[payee] = wei
        return True

    def _is_backed(self, payee: bytes, wei: int) -> bool:
        askers = self._askers.get(payee, ())
        return any(self._left_wei(front) * BACKED_SHARE >= wei for front in askers)

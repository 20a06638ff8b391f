"""A customer's own limits: what may be spent in an hour, in a day, and for a gigabyte.

Spending is counted in buckets that expire as a whole, so a limit holds for every span of its length, up to
the bucket that is just leaving. `now` is `payments.budget_clock`'s time, which outlasts restarts and never
jumps; one that went back all the same would free nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from payments.pricing import GIGABYTE, PACKET_BYTES, format_coin

_BUCKET_S = {3600: 60, 86400: 900}
_PRICE_PACKETS = 1000
"""Packets before the price per gigabyte is judged; fewer say nothing."""


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """Wei for any hour, any day and per gigabyte of packets; None means no limit."""

    per_hour_wei: int | None = None
    per_day_wei: int | None = None
    per_gb_wei: int | None = None


class Budget:
    """What was spent lately, against the limits."""

    def __init__(
        self, limits: BudgetLimits, spent: dict[int, dict[int, tuple[int, int, int]]] | None = None
    ) -> None:
        """Begin with the spending that `memory` returned before a restart (or none)."""
        self.limits = limits
        self._spent: dict[int, dict[int, tuple[int, int, int]]] = {
            span: dict((spent or {}).get(span, {})) for span in _BUCKET_S
        }
        self._now = 0.0

    def memory(self) -> dict[int, dict[int, tuple[int, int, int]]]:
        """Return the buckets (span in seconds to bucket number to wei given, packets, their cost), for
        the ledger.
        """
        return {span: dict(buckets) for span, buckets in self._spent.items()}

    def spend(self, now: float, wei: int, packets: int, cost_wei: int | None = None) -> None:
        """Note that `wei` was given away, and that `packets` packets were carried at a cost of `cost_wei`.

        More is given than packets cost while a window is prepaid; without `cost_wei` the two are the same.
        """
        self._advance(now)
        for span, buckets in self._spent.items():
            number = int(self._now // _BUCKET_S[span])
            old_wei, old_packets, old_cost = buckets.get(number, (0, 0, 0))
            cost = wei if cost_wei is None else cost_wei
            buckets[number] = (old_wei + wei, old_packets + packets, old_cost + cost)

    def left_wei(self, now: float) -> int | None:
        """Return what may still be spent now (0 at a limit), or None if nothing limits it."""
        self._advance(now)
        left = [
            limit - self._sum(span)[0]
            for span, limit in ((3600, self.limits.per_hour_wei), (86400, self.limits.per_day_wei))
            if limit is not None
        ]
        if self._is_too_dear():
            left.append(0)
        return max(0, min(left)) if left else None

    def explain(self, now: float, least_wei: int = 1) -> str | None:
        """Return a sentence that says which limit stops traffic and until when, or None if none does.

        A limit stops traffic when less than `least_wei` is left of it: nothing smaller can be given.
        """
        self._advance(now)
        for span, name, limit in (
            (3600, "hour", self.limits.per_hour_wei),
            (86400, "day", self.limits.per_day_wei),
        ):
            if limit is not None and self._sum(span)[0] + least_wei > limit:
                if not self._sum(span)[0]:
                    return f"The budget of {format_coin(limit)} per {name} does not pay for a single packet."
                oldest = min(self._spent[span])
                wait_s = max(1, int((oldest + 1) * _BUCKET_S[span] + span - self._now))
                return (
                    f"The budget of {format_coin(limit)} per {name} is spent; traffic goes on in about "
                    f"{-(-wait_s // 60)} minutes, or when the limit is raised."
                )
        if self._is_too_dear():
            limit = self.limits.per_gb_wei
            assert limit is not None
            _, packets, cost = self._sum(3600)
            price = cost * GIGABYTE // (packets * PACKET_BYTES)
            return (
                f"The last hour's traffic cost {format_coin(price)} per GB, over the limit of "
                f"{format_coin(limit)}; choose cheaper relays or raise the limit."
            )
        return None

    def _is_too_dear(self) -> bool:
        limit = self.limits.per_gb_wei
        if limit is None:
            return False
        _, packets, cost = self._sum(3600)
        return packets >= _PRICE_PACKETS and cost * GIGABYTE > limit * packets * PACKET_BYTES

    def _sum(self, span: int) -> tuple[int, int, int]:
        values = self._spent[span].values()
        return sum(v[0] for v in values), sum(v[1] for v in values), sum(v[2] for v in values)

    def _advance(self, now: float) -> None:
        if now <= self._now:
            return
        self._now = now
        for span, buckets in self._spent.items():
            first = int((now - span) // _BUCKET_S[span])
            for number in [n for n in buckets if n < first]:
                del buckets[number]

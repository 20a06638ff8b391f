"""What flows wait for, and which ports are likely to be asked for again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from circuits.pool.circuit import Circuit
from circuits.pool.types import Need, PoolSettings, State

RECENT_PORT_S = 1800.0  # a port asked for is expected again for this long
MAX_RECENT_PORTS = 8


@dataclass(slots=True)
class _Demand:
    since: float
    until: float


class Demands:
    """Needs that wait, each once however many flows share it, and recent ports. Bounded by the settings."""

    __slots__ = ("_demands", "_ports", "_settings")

    def __init__(self, settings: PoolSettings) -> None:
        """Start without any."""
        self._settings = settings
        self._demands: dict[Need, _Demand] = {}
        self._ports: dict[int, float] = {}

    def __bool__(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._demands)

    def note(self, need: Need, now: float) -> bool:
        """Remember a need, or that it is still wanted; False if there are too many."""
        demand = self._demands.get(need)
        if demand is not None:
            demand.until = now + self._settings.demand_s
            return True
        if len(self._demands) >= self._settings.max_demands:
            return False
        self._demands[need] = _Demand(now, now + self._settings.demand_s)
        return True

    def remove(self, need: Need) -> None:
        """Forget a need. Harmless if it is unknown."""
        self._demands.pop(need, None)

    def clear(self) -> None:
        """Forget all needs."""
        self._demands.clear()

    def expire(self, now: float) -> None:
        """Forget the needs that nobody repeated."""
        for need in [need for need, demand in self._demands.items() if demand.until <= now]:
            del self._demands[need]

    def note_port(self, port: int, now: float) -> None:
        """Remember a port that spares do not have by themselves."""
        if port in self._settings.spare_ports:
            return
        self._ports.pop(port, None)
        self._ports[port] = now + RECENT_PORT_S
        if len(self._ports) > MAX_RECENT_PORTS:
            del self._ports[next(iter(self._ports))]

    def recent_ports(self, now: float) -> list[int]:
        """Return the ports asked for lately."""
        return [port for port, until in self._ports.items() if until > now]

    def times(self, now: float) -> Iterator[float]:
        """Yield when a need expires or becomes worth a further build."""
        hedge_s = self._settings.hedge_s
        for demand in self._demands.values():
            yield demand.until
            for attempt in (1, 2):
                if demand.since + hedge_s * attempt > now:
                    yield demand.since + hedge_s * attempt

    def wanted(self, circuits: Iterable[Circuit], now: float) -> tuple[Need | None, int]:
        """Return the first need to start a build for, and how many spares are missing besides.

        Every unused circuit, built or being built, is set aside for at most one isolation.
        """
        circuits = list(circuits)
        free = [
            c for c in circuits if c.isolation is None and (c.state is State.BUILDING or c.is_usable(now))
        ]
        wanted: Need | None = None
        set_aside: dict[bytes, list[Circuit]] = {}
        for need, demand in self._demands.items():
            if any(c.isolation is not None and c.fits(need) and c.is_usable(now) for c in circuits):
                continue
            mine = set_aside.setdefault(need.isolation, [])
            covering = [c for c in mine if c.fits(need)]
            # A flow that has waited long is worth a second and third attempt beside the first.
            worth = 1 + min(2, int((now - demand.since) / self._settings.hedge_s))
            while len(covering) < worth and not any(c.state is State.READY for c in covering):
                chosen = next((c for c in free if c.fits(need)), None)
                if chosen is None:
                    wanted = wanted or need
                    break
                free.remove(chosen)
                covering.append(chosen)
                mine.append(chosen)
        healthy = sum(not c.health.is_slow() for c in free)
        return wanted, max(0, self._settings.spares - healthy)

"""One circuit of the pool: its path, its state, who uses it."""

from __future__ import annotations

from circuits.path import Path
from circuits.pool.health import Health
from circuits.pool.types import CircuitStatus, Need, PoolSettings, State


class Circuit:
    """A circuit being built, ready, or draining."""

    __slots__ = (
        "_settings",
        "guard_is_silent",
        "has_ipv6",
        "health",
        "is_blamed",
        "isolation",
        "leases",
        "path",
        "retire_at",
        "started",
        "state",
        "used_since",
    )

    def __init__(self, path: Path, settings: PoolSettings, now: float) -> None:
        """Start building `path`."""
        self._settings = settings
        self.path = path
        self.started = now
        self.state = State.BUILDING
        self.has_ipv6 = path.exit.has_ipv6
        self.health = Health(settings, now)
        self.isolation: bytes | None = None
        self.is_blamed = False
        self.guard_is_silent = False
        self.leases = 0
        self.used_since: float | None = None
        self.retire_at = now + settings.build_timeout_s

    def note_built(self, has_ipv6: bool, now: float) -> None:
        """Become ready."""
        self.state = State.READY
        self.has_ipv6 = has_ipv6
        self.health = Health(self._settings, now)
        self.retire_at = now + self._settings.spare_life_s

    def claim(self, isolation: bytes, lot: float, now: float) -> None:
        """Give a new flow a lease. The first claim settles the isolation, and when the circuit is rotated
        out.

        `lot` (0 to 1) spreads the rotation, so that circuits do not all change at once.
        """
        if self.used_since is None:
            self.used_since = now
            self.isolation = isolation
            self.retire_at = now + self._settings.rotate_after_s * (1 - 0.1 * lot)
        self.leases += 1
        self.health.last_activity = now

    def fits(self, need: Need) -> bool:
        """Tell whether the exit takes the need and the isolation allows it (a building or unused one:
        any).
        """
        return (
            self.state is not State.DRAINING
            and (self.isolation is None or self.isolation == need.isolation)
            and (not need.port or self.path.exit.ports.allows(need.port))
            and (self.has_ipv6 or not need.ipv6)
        )

    def is_usable(self, now: float) -> bool:
        """Tell whether new flows may start on it."""
        return (
            self.state is State.READY
            and now < self.retire_at
            and not self.guard_is_silent
            and not self.health.is_suspect(now)
        )

    def rank(self) -> tuple[bool, bool, float]:
        """Return the order in which new flows take circuits: fast ones, those in use already, low round
        trip.
        """
        rtt_s = self.health.rtt_s
        return self.health.is_slow(), self.isolation is None, rtt_s if rtt_s is not None else 1.0

    def describe(self, circuit_id: int, now: float) -> CircuitStatus:
        """Return what a status display shows."""
        return CircuitStatus(
            circuit_id,
            self.state,
            tuple(hop.candidate for hop in self.path.hops),
            tuple(hop.reason for hop in self.path.hops),
            tuple(hop.steps for hop in self.path.hops),
            now - self.started,
            None if self.used_since is None else now - self.used_since,
            self.leases,
            bool(self.isolation),
            self.state is not State.BUILDING and (self.guard_is_silent or self.health.is_suspect(now)),
            self.health.rtt_s,
            self.health.loss,
            self.path.price_wei_per_packet,
        )

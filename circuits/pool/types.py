"""What goes into the pool and what comes out: settings, needs, the results of a lease, actions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from circuits.candidates import Candidate, NoPathKind, Step
from circuits.path import Path


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Numbers of the pool. Times in seconds."""

    spares: int = 2
    """Circuits kept ready that nobody has used yet."""
    spare_ports: tuple[int, ...] = (80, 443)
    """Ports that spares should allow, where an exit does."""
    max_circuits: int = 64
    """Circuits in all, those being built included."""
    max_builds: int = 3
    """Builds under way at once."""
    max_demands: int = 256
    """Different needs waiting at once."""
    rotate_after_s: float = 600.0
    """Use for new flows, from the first one on; up to a tenth less by lot."""
    drain_s: float = 6 * 3600.0
    """Longest time old flows may finish after that."""
    spare_life_s: float = 3600.0
    """Longest time unused."""
    build_timeout_s: float = 15.0
    """Safety net behind the build's own time-out."""
    hedge_s: float = 1.0
    """A waiting flow starts a further build each time this passes."""
    demand_s: float = 60.0
    """A need that nobody repeats is forgotten after this."""
    in_use_s: float = 10.0
    """A circuit with leases counts as in use for this long after its last traffic."""
    silent_s: float = 0.5
    """An echo is sent when a circuit in use was silent for this long."""
    repeat_s: float = 0.8
    """Time to the next echo while there is no answer."""
    measure_s: float = 5.0
    """Between echoes on a circuit in use that is heard anyway."""
    leased_idle_s: float = 15.0
    """Between echoes on a circuit with leases and no traffic."""
    spare_idle_s: float = 30.0
    """Between echoes on a circuit without leases."""
    suspect_s: float = 2.0
    """Unanswered for this long (two echoes at least): no new flows."""
    dead_s: float = 5.5
    """Unanswered for this long (three echoes at least): dead."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a new flow needs: who it may share with (`isolation`, equal keys share), the exit's port (0:
    any), IPv6.
    """

    isolation: bytes = b""
    port: int = 0
    ipv6: bool = False

    __repr__ = object.__repr__


class Trouble(Enum):
    """Why there is no circuit, in the words that decide a proxy's answer."""

    BUILDING = "building"  # not yet
    FAILING = "failing"  # builds fail; tried again
    OFFLINE = "offline"  # no guard can be reached
    NOT_ALLOWED = "not allowed"  # no exit we may use takes it
    NO_IPV6 = "no ipv6"
    NO_PATH = "no path"  # the directory or the customer's own rules leave no path
    OVERLOADED = "overloaded"
    CLOSED = "closed"  # the pool is shutting down


TROUBLE_OF: dict[NoPathKind, Trouble] = {
    NoPathKind.PORT: Trouble.NOT_ALLOWED,
    NoPathKind.IPV6: Trouble.NO_IPV6,
    NoPathKind.UNREACHABLE: Trouble.NO_PATH,
}


@dataclass(frozen=True, slots=True)
class Leased:
    """The flow may use this circuit; call `release` once when it is over."""

    circuit_id: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """No circuit yet; ask again after a CircuitReady. `sentence` says what is going on."""

    trouble: Trouble
    sentence: str


@dataclass(frozen=True, slots=True)
class Refused:
    """There will be none for this need, as things are."""

    trouble: Trouble
    sentence: str


@dataclass(frozen=True, slots=True)
class StartBuild:
    """Build this path; answer with handle_built or handle_build_failed."""

    circuit_id: int
    path: Path


@dataclass(frozen=True, slots=True)
class SendEcho:
    """Send an echo request with this token (8 bytes) through the circuit."""

    circuit_id: int
    token: bytes


@dataclass(frozen=True, slots=True)
class CloseCircuit:
    """Destroy the circuit, or give its build up. The pool has forgotten it. `sentence` says why."""

    circuit_id: int
    sentence: str


@dataclass(frozen=True, slots=True)
class CircuitReady:
    """A circuit became usable: flows that wait should ask again."""

    circuit_id: int


@dataclass(frozen=True, slots=True)
class CircuitDead:
    """A circuit died with `leases` flows on it, which are lost. A CloseCircuit follows."""

    circuit_id: int
    leases: int
    sentence: str


@dataclass(frozen=True, slots=True)
class NeedRefused:
    """Flows that wait for this need wait in vain."""

    need: Need
    trouble: Trouble
    sentence: str


@dataclass(frozen=True, slots=True)
class GuardsChanged:
    """Write the guards to disk."""


@dataclass(frozen=True, slots=True)
class GuardPassedOver:
    """Circuits over this guard keep breaking: another is used for a while. For the user to know."""

    node_id: bytes
    sentence: str


@dataclass(frozen=True, slots=True)
class GuardTakenBack:
    """Circuits break over another guard as well: the one that was passed over is used again."""

    node_id: bytes
    sentence: str


Action = (
    StartBuild
    | SendEcho
    | CloseCircuit
    | CircuitReady
    | CircuitDead
    | NeedRefused
    | GuardsChanged
    | GuardPassedOver
    | GuardTakenBack
)


class State(Enum):
    """A circuit's life: BUILDING -> READY -> DRAINING, and gone from any of them."""

    BUILDING = "building"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class CircuitStatus:
    """One circuit, for `hopfare circuits`. Times in seconds; `rtt_s` None before the first echo came back.

    For each relay `reasons` says why it was chosen, and `steps` how many candidates each rule left.
    """

    circuit_id: int
    state: State
    relays: tuple[Candidate, ...]
    reasons: tuple[str, ...]
    steps: tuple[tuple[Step, ...], ...]
    age_s: float
    used_s: float | None
    leases: int
    isolated: bool
    suspect: bool
    rtt_s: float | None
    loss: float
    price_wei_per_packet: int

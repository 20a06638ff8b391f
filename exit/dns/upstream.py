"""Which resolvers the exit asks, in which order and how patiently. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from exit.addresses import DNS_V4, DNS_V6

#: resolv.conf(5) reads three; more only delay the failure.
MAX_RESOLVERS = 6
#: How long each resolver gets in the first round, and in the second.
PATIENCE_S = (1.0, 2.5)
#: After this the customer's own patience (5 s in glibc) is near its end.
DEADLINE_S = 6.0
_PORT = 53


@dataclass(frozen=True, slots=True)
class Upstream:
    """A resolver. `host` is an address, with its scope (`%eth0`) if it has one."""

    host: str
    port: int = _PORT

    @property
    def version(self) -> int:
        """Return the IP version."""
        return 6 if ":" in self.host else 4


def parse_upstream(text: str) -> Upstream:
    """Read a resolver as an operator writes it: `9.9.9.9`, `9.9.9.9:5353`, `2620:fe::fe` or
    `[2620:fe::fe]:53`.

    Raises ValueError with what would be right.
    """
    words = text.strip()
    host, port = words, str(_PORT)
    if words.startswith("["):
        host, closed, rest = words[1:].partition("]")
        port = rest.removeprefix(":") if rest else port
        words = words if closed and (not rest or rest.startswith(":")) else ""
    elif words.count(":") == 1:
        host, _, port = words.partition(":")
    try:
        address = ipaddress.ip_address(host)
        number = int(port) if words and port.isascii() and port.isdigit() else 0
    except ValueError:
        number = 0
    if not 1 <= number <= 65535:
        raise ValueError(
            f"{text!r} is no resolver; write for example 9.9.9.9, 9.9.9.9:5353 or [2620:fe::fe]:53"
        )
    if address in (DNS_V4, DNS_V6):
        raise ValueError(f"{text!r} is the exit itself; name another resolver")
    return Upstream(host, number)


def parse_resolv_conf(text: str) -> list[Upstream]:
    """Return the resolvers that a resolv.conf(5) names, in order; senseless lines are passed over."""
    found: list[Upstream] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            upstream = parse_upstream(f"[{words[1]}]" if ":" in words[1] else words[1])
        except ValueError:
            continue
        if upstream not in found:
            found.append(upstream)
    return found[:MAX_RESOLVERS]


class Order:
    """Orders resolvers by how they answered lately: one that failed is asked last for a while."""

    __slots__ = ("_failed_s", "_upstreams")

    #: How long a failure counts.
    MEMORY_S = 30.0

    def __init__(self) -> None:
        """Start without resolvers."""
        self._upstreams: tuple[Upstream, ...] = ()
        self._failed_s: dict[Upstream, float] = {}

    def replace(self, upstreams: Sequence[Upstream]) -> None:
        """Use these resolvers from now on."""
        self._upstreams = tuple(upstreams[:MAX_RESOLVERS])
        self._failed_s = {one: when for one, when in self._failed_s.items() if one in self._upstreams}

    def failed(self, upstream: Upstream, now: float) -> None:
        """Remember that the resolver did not answer."""
        if upstream in self._upstreams:
            self._failed_s[upstream] = now

    def answered(self, upstream: Upstream) -> None:
        """Forget a resolver's failures."""
        self._failed_s.pop(upstream, None)

    def attempts(self, now: float) -> list[tuple[Upstream, float]]:
        """Return whom to ask, one after another, with how long to wait for each in seconds."""

        def is_doubtful(upstream: Upstream) -> bool:
            when = self._failed_s.get(upstream)
            return when is not None and 0 <= now - when < self.MEMORY_S

        ordered = sorted(self._upstreams, key=is_doubtful)
        return [(upstream, wait_s) for wait_s in PATIENCE_S for upstream in ordered]

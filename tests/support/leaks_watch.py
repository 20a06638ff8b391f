"""The watch over a customer's only link: nothing but its guard's packets may be on it."""

from collections.abc import Iterator
from contextlib import contextmanager

from labkit import CLIENT, SystemLab
from watching import addresses
from wire import UDP, Seen, decode, is_port_unreachable, strangers

from overlay.demo import names
from overlay.demo.fleet import PORT

GUARD = "r1"
# Where a program tries to get out: the internet, the machine's own network, other relays, the guard itself.
ELSEWHERE = (
    *(names.WWW_V4, names.WWW_V6, names.DNS_V4, "10.200.0.254", "10.2.0.1", "10.1.0.1"),
    *("fd00:2::1", "fd00:1::1", "192.0.2.1", "224.0.0.251", "ff02::fb"),
)


def guarded(lab: SystemLab) -> dict[str, dict[str, list[str]]]:
    """Settings with one guard, so that it is known beforehand where packets may go."""
    return {"client": {"guards": [lab.relay(GUARD).id]}}


def is_for_the_dead(seen: Seen, own: set[str], relays: set[str]) -> bool:
    """A relay's packet to this machine, or this machine's word that nobody listens there."""
    if is_port_unreachable(seen):
        return seen.source in own and seen.destination in relays
    return (
        seen.protocol == UDP and seen.source in relays and seen.destination in own and seen.ports[0] == PORT
    )


@contextmanager
def only_to_the_guard(lab: SystemLab, least: int = 10) -> Iterator[None]:
    """Watch the machine's only link; nothing but the guard's packets may be on it, and `least` of those."""
    with lab.capture_all(CLIENT, segmented=False) as captures:
        yield
    packets = captures[CLIENT].packets()
    assert captures[CLIENT].missed == 0
    own, guard = addresses(lab, CLIENT), addresses(lab, GUARD)
    relays = set().union(*(addresses(lab, node.host) for node in lab.relays))
    # Relays may still have words for the customer who was here before, of whom nobody hears any more.
    packets = [packet for packet in packets if not is_for_the_dead(decode(packet.ip), own, relays)]
    found = strangers(packets, own, guard, PORT)
    assert not found, found[:10]
    assert sum(1 for packet in packets if decode(packet.ip).destination in guard) >= least

"""Which addresses a relay takes for its own, and when it publishes."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import msgspec
import trio

from overlay.config.model import Config, RelayConfig
from overlay.descriptor import Address, Descriptor
from overlay.node.publishing import Publisher, is_due

NOW_S = 1_800_000_000
DESCRIPTOR = Descriptor(
    identity=b"i" * 32,
    sequence=NOW_S,
    published_s=NOW_S,
    expires_s=NOW_S + 86_400,
    addresses=(Address("192.0.2.1", 4433),),
    onion_key=b"k" * 32,
)


@dataclass(eq=False)
class Neighbour:
    ip: str
    peer: bytes = b"n" * 32
    is_up: bool = True

    @property
    def peer_address(self):
        return self.ip, 4433


@dataclass
class Found:
    seen: dict = field(default_factory=dict)
    on_handed: object = None
    neighbours: object = field(default_factory=lambda: SimpleNamespace(chosen={}))
    links: list = field(default_factory=list)
    gossip: object = field(default_factory=lambda: SimpleNamespace(store=SimpleNamespace(rival_sequence=-1)))

    def partners(self):
        return list(self.links)


async def publisher(*, listen=("0.0.0.0", "::"), advertise=()):
    config = replace(
        Config(), relay=RelayConfig(listen=tuple(Address(ip, 4433) for ip in listen), advertise=advertise)
    )
    async with trio.open_nursery() as nursery:
        return Publisher(config, Found(), None, nursery, identity=b"i" * 32)


async def test_the_address_is_what_most_networks_see_and_a_new_one_is_noticed():
    own = await publisher()
    found = own._discovery.seen
    assert own._wanted_addresses() == ()
    found[Neighbour("10.1.0.1")] = "198.51.100.7"
    assert own._wanted_addresses() == (Address("198.51.100.7", 4433),)
    liar = Neighbour("66.6.0.1")
    found[liar] = "203.0.113.9"
    assert own._wanted_addresses() == (), "one word against another"
    found[Neighbour("66.6.0.2")] = "203.0.113.9"
    found[Neighbour("66.6.0.3")] = "203.0.113.9"
    found[Neighbour("10.2.0.1")] = "198.51.100.7"
    assert own._wanted_addresses() == (Address("198.51.100.7", 4433),), "a network has one vote"
    found[Neighbour("2001:db8:1::1")] = "2001:db8:9::7"
    assert own._wanted_addresses() == (Address("198.51.100.7", 4433), Address("2001:db8:9::7", 4433))
    for link in list(found):
        if ":" not in link.ip:
            found[link] = "198.51.100.99"
    assert own._wanted_addresses()[0] == Address("198.51.100.99", 4433)


async def test_neighbours_of_ones_own_choice_count_before_those_who_dialled_it():
    own = await publisher()
    found = own._discovery
    friend = Neighbour("10.1.0.1", b"f" * 32)
    liars = [Neighbour(f"66.{n}.0.1", bytes([n]) * 32) for n in range(20)]
    found.seen.update(dict.fromkeys(liars, "203.0.113.9") | {friend: "198.51.100.7"})
    found.links = [friend, *liars]
    assert own._wanted_addresses() == (Address("203.0.113.9", 4433),), "it has no other word"
    found.neighbours.chosen[friend.peer] = 0.0
    assert own._wanted_addresses() == (Address("198.51.100.7", 4433),)
    assert own._choose_askers()[0] is friend


async def test_what_is_configured_is_not_asked_of_others():
    fixed = (Address("192.0.2.7", 99),)
    own = await publisher(advertise=fixed)
    own._discovery.seen[Neighbour("10.1.0.1")] = "198.51.100.7"
    assert own._wanted_addresses() == fixed
    own = await publisher(listen=("192.0.2.8",))
    assert own._wanted_addresses() == (Address("192.0.2.8", 4433),)


def test_a_descriptor_is_due_when_it_says_something_else_or_is_half_through():
    def later(seconds, **changes):
        made_s = NOW_S + seconds
        return msgspec.structs.replace(
            DESCRIPTOR, sequence=made_s, published_s=made_s, expires_s=made_s + 86_400, **changes
        )

    assert not is_due(DESCRIPTOR, later(10), -1)
    assert not is_due(DESCRIPTOR, later(43_199), -1)
    assert is_due(DESCRIPTOR, later(43_200), -1)
    assert is_due(DESCRIPTOR, later(10, price_wei_per_packet=5), -1)
    assert is_due(DESCRIPTOR, later(10, is_draining=True), -1)
    assert is_due(DESCRIPTOR, later(10, onion_key=b"l" * 32), -1)
    assert is_due(DESCRIPTOR, later(10), NOW_S), "another one of this node is about"
    assert is_due(DESCRIPTOR, later(-10), -1), "the clock went back"

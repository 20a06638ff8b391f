"""A relay's own descriptor: which addresses it names, whether others reach them, and when it is published.

Drives `overlay.gossip.reachability`, and answers what others ask of this relay there. A descriptor is
published when its addresses have been reached from outside, when what it says changes, and at half of its
lifetime.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import trio

from overlay.config.check import advertised_addresses
from overlay.descriptor import Address, is_usable_address
from overlay.errors import OverlayError
from overlay.gossip.messages import Attempt, DialBack, DialedBack, encode_gossip
from overlay.gossip.reachability import (
    AGREE,
    ASK,
    AddressTest,
    DialBackGate,
    Finding,
    Outcome,
    explain,
)
from overlay.gossip.store import network_of
from overlay.logs import get_logger
from overlay.node.io.dial_back import dial_back, local_addresses
from overlay.node.io.port_mapping import PortMapper

if TYPE_CHECKING:
    from overlay.config.model import Config
    from overlay.descriptor import Descriptor, SignedDescriptor
    from overlay.links.link import Link
    from overlay.node.discovery import Discovery

LOOK_S = 10.0
"""How often it is asked whether there is something new to say."""
FIRST_LOOK_S = 0.2
ANSWER_TIMEOUT_S = 8.0
NEIGHBOUR_TIMEOUT_S = 10.0
"""After so long without a neighbour to ask, what is untested is published all the same: the first relay of a
network has nobody.
"""
RETEST_S = 1800.0
RETRY_S = 60.0
LEAST_BETWEEN_S = 10.0
"""Between two descriptors of this node, whatever changes."""
MAX_DIALLING = 8

log = get_logger("discovery")


class Describe(Protocol):
    """Makes this relay's descriptor."""

    def __call__(
        self, addresses: tuple[Address, ...], *, sequence: int, lifetime_s: float
    ) -> SignedDescriptor:
        """Return it, signed as of now. Raises OverlayError if the configuration does not allow it."""


class Publisher:
    """What makes one relay known."""

    def __init__(
        self,
        config: Config,
        discovery: Discovery,
        describe: Describe,
        nursery: trio.Nursery,
        *,
        identity: bytes,
    ) -> None:
        """Nothing runs yet."""
        self._config = config
        self._discovery = discovery
        self._describe = describe
        self._nursery = nursery
        self._identity = identity
        self._gate = DialBackGate(trio.current_time())
        self._mapper = PortMapper(config) if config.relay.port_mapping else None
        self._tests: dict[Address, AddressTest] = {}
        self._tests_under_way: dict[Address, AddressTest] = {}
        self._requests: dict[int, tuple[Link, trio.Event]] = {}
        self._next_request = 1
        self._dialling = 0
        self._sentences: dict[Address, str] = {}
        self._problem = ""
        self._wake = trio.Event()
        self._published: Descriptor | None = None
        self._published_at = -LEAST_BETWEEN_S
        self._tested_at = 0.0
        self._seen_at_test: frozenset[str] = frozenset()
        self._local: frozenset[str] = frozenset()
        discovery.on_handed = self._on_handed

    def refresh(self) -> None:
        """Something that the descriptor says may have changed."""
        self._wake.set()

    def problems(self) -> list[str]:
        """Sentences for `hopfare status`."""
        mapping = [self._mapper.problem] if self._mapper is not None and self._mapper.problem else []
        return [*mapping, *self._sentences.values(), *([self._problem] if self._problem else [])]

    def status(self) -> dict[str, Any]:
        """Figures for `hopfare status`."""
        local, seen = self._local, list(self._trusted_sights().values())
        return {
            "published": self._published is not None,
            "sequence": self._published.sequence if self._published is not None else None,
            "addresses": [str(address) for address in self._published.addresses] if self._published else [],
            "reachability": {
                str(address): test.finding(seen, local).value for address, test in self._tests.items()
            },
        }

    # -- publishing
    # ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish and go on publishing, until cancelled."""
        if self._mapper is not None:
            self._nursery.start_soon(self._mapper.run)
        begun = trio.current_time()
        reachable: tuple[Address, ...] = ()
        while True:
            now = trio.current_time()
            self._local = local_addresses()
            wanted = self._wanted_addresses()
            if not wanted:
                self._problem = (
                    "no address to publish is known yet: no other relay has said where it sees this one; "
                    "set relay.advertise if you know it"
                )
            elif not self._config.relay.test_reachability:
                reachable, self._problem = wanted, ""
            elif self._must_test(wanted, now):
                reachable = await self._test(wanted, is_patient=now < begun + NEIGHBOUR_TIMEOUT_S)
            if reachable:
                self._publish(tuple(address for address in reachable if address in wanted))
            self._wake = trio.Event()
            with trio.move_on_after(LOOK_S if reachable else FIRST_LOOK_S * 5):
                await self._wake.wait()

    def _wanted_addresses(self) -> tuple[Address, ...]:
        """What is configured, else where others see this relay, with the port it listens on."""
        config = self._config
        fixed = advertised_addresses(config)
        if fixed:
            return fixed
        found: list[Address] = []
        mapped = self._mapper.external if self._mapper is not None else None
        if mapped is not None:
            found.append(mapped)
        for version in (4, 6):
            port = next(
                (one.port for one in config.relay.listen if (6 if ":" in one.ip else 4) == version), 0
            )
            networks: dict[str, set[bytes]] = {}
            for link, ip in self._trusted_sights().items():
                if (6 if ":" in ip else 4) == version:
                    networks.setdefault(ip, set()).add(network_of(link.peer_address[0]))
            votes = Counter({ip: len(who) for ip, who in networks.items()}).most_common(2)
            # One neighbour alone may lie; two that differ are no majority. A false one fails the test anyway.
            if port and votes and (len(votes) == 1 or votes[0][1] > votes[1][1]):
                address = Address(votes[0][0], port)
                if address not in found and not (mapped is not None and version == 4):
                    found.append(address)
        return tuple(found)

    def _trusted_sights(self) -> dict[Link, str]:
        """Where neighbours see this relay: those of its own choice, where they have said so. Who dialled it
        may be many that act together.
        """
        seen, chosen = self._discovery.seen, self._discovery.neighbours.chosen
        return {link: ip for link, ip in seen.items() if link.peer in chosen} or dict(seen)

    def _publish(self, addresses: tuple[Address, ...]) -> None:
        now = trio.current_time()
        if not addresses or now < self._published_at + LEAST_BETWEEN_S:
            return
        before = self._published
        rival = self._discovery.gossip.store.rival_sequence
        sequence = max(int(time.time()), rival + 1, before.sequence + 1 if before is not None else 0)
        try:
            signed = self._describe(
                addresses, sequence=sequence, lifetime_s=self._config.relay.publish_lifetime_s
            )
        except OverlayError as error:
            self._problem = f"no descriptor can be published: {error}"
            return
        self._problem = ""
        if before is not None and not is_due(before, signed.descriptor, rival):
            return
        self._discovery.publish(signed.encoded)
        self._published, self._published_at = signed.descriptor, now
        log.info(
            "descriptor published",
            addresses=", ".join(map(str, addresses)),
            sequence=sequence,
            draining=signed.descriptor.is_draining,
        )

    # -- testing
    # ------------------------------------------------------------------------------------------------------

    def _must_test(self, wanted: tuple[Address, ...], now: float) -> bool:
        if set(wanted) != set(self._tests):
            return True
        if (
            frozenset(self._trusted_sights().values()) != self._seen_at_test
            and now > self._tested_at + RETRY_S
        ):
            return True  # the address has changed, or a neighbour sees another one
        good = all(test.finding((), self._local) is Finding.REACHABLE for test in self._tests.values())
        return now > self._tested_at + (RETEST_S if good else RETRY_S)

    async def _test(self, wanted: tuple[Address, ...], *, is_patient: bool) -> tuple[Address, ...]:
        """Have neighbours dial back; return the addresses to publish."""
        tests = {address: AddressTest(address) for address in wanted}
        asked = self._choose_askers()
        if not asked and is_patient:
            return ()
        async with trio.open_nursery() as nursery:
            for link in asked:
                nursery.start_soon(self._ask, link, wanted, tests)
        self._tests = tests
        self._tested_at = trio.current_time()
        seen = list(self._trusted_sights().values())
        self._seen_at_test = frozenset(seen)
        findings = {address: test.finding(seen, self._local) for address, test in tests.items()}
        sentences = {
            address: sentence
            for address, finding in findings.items()
            if (sentence := explain(finding, address, seen))
        }
        for address, sentence in sentences.items():
            if self._sentences.get(address) != sentence:
                log.error("not reachable", address=str(address), reason=sentence)
        self._sentences = sentences
        good = [address for address, finding in findings.items() if finding is Finding.REACHABLE]
        if good:
            # Of an address of the other kind (IPv6 beside IPv4) nobody may judge before it is published.
            good += [address for address, finding in findings.items() if finding is Finding.UNKNOWN]
            return tuple(address for address in wanted if address in good)
        if all(finding is Finding.UNKNOWN for finding in findings.values()):
            # Nobody could be asked. Whoever reads the descriptor finds out as easily as we could.
            self._tested_at -= RETRY_S - LOOK_S
            return wanted
        return ()

    def _choose_askers(self) -> list[Link]:
        links = self._discovery.partners()
        random.SystemRandom().shuffle(links)
        # Who dialled this relay, perhaps to keep it from publishing, is asked last.
        links.sort(key=lambda link: link.peer not in self._discovery.neighbours.chosen)
        chosen: list[Link] = []
        networks: set[bytes] = set()
        for link in links:
            network = network_of(link.peer_address[0])
            if network not in networks:
                networks.add(network)
                chosen.append(link)
        chosen += [link for link in links if link not in chosen]
        chosen.sort(key=lambda link: link.peer not in self._discovery.neighbours.chosen)
        return chosen[: max(ASK, AGREE)]

    async def _ask(self, link: Link, wanted: tuple[Address, ...], tests: dict[Address, AddressTest]) -> None:
        request = self._next_request
        self._next_request = self._next_request % 0xFFFF_FFFF + 1
        done = trio.Event()
        self._requests[request] = (link, done)
        self._tests_under_way = tests
        self._discovery.send(link, encode_gossip(DialBack(request, wanted)))
        try:
            with trio.move_on_after(ANSWER_TIMEOUT_S):
                await done.wait()
        finally:
            del self._requests[request]

    def _on_handed(self, link: Link, message: DialBack | DialedBack) -> None:
        if isinstance(message, DialBack):
            self._answer(link, message)
            return
        waiting = self._requests.get(message.request)
        if waiting is None or waiting[0] is not link or link.peer is None:
            return
        if is_usable_address(message.seen):
            self._discovery.seen[link] = message.seen
        for attempt in message.attempts:
            test = self._tests_under_way.get(attempt.address)
            if test is None:
                continue
            with suppress(ValueError):  # an outcome of a later version says nothing
                test.outcomes[link.peer] = Outcome(attempt.outcome)
        waiting[1].set()

    # -- answering
    # ------------------------------------------------------------------------------------------------------

    def _answer(self, link: Link, message: DialBack) -> None:
        """Dial back for another relay; for anonymous customers nothing is dialled."""
        if link.peer is None:
            return
        store = self._discovery.gossip.store
        member, entry = store.roots.get(link.peer), store.get(link.peer)
        declared = [
            *(member.addresses if member is not None else ()),
            *(entry.descriptor.addresses if entry is not None else ()),
        ]
        families = self._discovery.neighbours.own_families
        judged = self._gate.judge(
            link.peer, link.peer_address[0], declared, message.addresses, families, trio.current_time()
        )
        if self._dialling >= MAX_DIALLING:
            judged = [(address, outcome or Outcome.TOO_OFTEN) for address, outcome in judged]
        self._dialling += 1
        self._nursery.start_soon(self._dial_all, link, message.request, judged)

    async def _dial_all(self, link: Link, request: int, judged: list[tuple[Address, Outcome | None]]) -> None:
        results = {address: outcome for address, outcome in judged if outcome is not None}
        peer = link.peer
        assert peer is not None

        async def try_one(address: Address) -> None:
            results[address] = Outcome.NO_ANSWER
            try:
                results[address] = await dial_back(address, peer, self._config.node.quic)
            except Exception as error:  # an error of ours must not cost the node its circuits
                log.error("dialling back failed", exc_info=error)

        try:
            async with trio.open_nursery() as nursery:
                for address, outcome in judged:
                    if outcome is None:
                        nursery.start_soon(try_one, address)
        finally:
            self._dialling -= 1
        attempts = tuple(Attempt(address, int(results[address])) for address, _ in judged)
        self._discovery.send(link, encode_gossip(DialedBack(request, attempts, link.peer_address[0])))


def is_due(before: Descriptor, now: Descriptor, rival_sequence: int) -> bool:
    """Tell whether `now` is to be published in the place of `before`: it says something else, half of the
    older one's time has passed, or another one of this node is about with a higher number.
    """
    same = msgspec.structs.replace(
        now, sequence=before.sequence, published_s=before.published_s, expires_s=before.expires_s
    )
    half_s = (before.expires_s - before.published_s) / 2
    return (
        same != before
        or not before.published_s <= now.published_s < before.published_s + half_s
        or rival_sequence >= before.sequence
    )

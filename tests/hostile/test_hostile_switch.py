"""Switches under any order of messages, lost links and failing dials: nothing raises, and nothing stays."""

import random

from hypothesis import given
from hypothesis import strategies as st
from switch_net import UNIX_S, Customer, Relay, SwitchNet

from overlay.engine.interface import FlowFault
from overlay.messages import Build, Built, Destroy

STEPS = st.lists(st.integers(0, 2**32), min_size=1, max_size=60)


class Chaos:
    """A net of four relays and two customers, and one random event after another."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.net = SwitchNet(seed, relays=4)
        self.second = Customer()
        self.guard_links = [self.net.guard_link, self.net.join(self.second, self.net.path[0], None)]
        self.seen: list = []
        self.ids = iter(range(8, 1 << 20))

    def links(self) -> list:
        mine = [link for relay in self.net.path for link in relay.links.values()]
        return mine + [link for link in self.guard_links if link.other in self.net.path[0].switch._links]

    def message(self):
        rng = self.rng
        circuit_id = rng.choice([0, 7, 7 | 1 << 31, rng.getrandbits(32), next(self.ids)])
        known = [m for m in self.seen if isinstance(m, Build | Built)]
        records = [b"", rng.randbytes(5952), rng.randbytes(100)] + [m.records for m in known[-3:]]
        known_ids = [m.circuit_id for m in self.seen[-6:]]
        circuit_id = rng.choice([circuit_id, *known_ids])
        kind = rng.randrange(3)
        if kind == 0:
            return Build(circuit_id, rng.choice(records))
        if kind == 1:
            return Built(circuit_id, rng.choice(records))
        return Destroy(circuit_id, rng.choice([0, 1, 33, 65535]))

    def step(self, seed: int) -> None:
        self.rng.seed(seed)
        rng, net = self.rng, self.net
        what = rng.randrange(10)
        links = self.links()
        if what <= 2:
            hops = rng.sample(net.path[1:], rng.randint(0, 3))
            net.start(hops=[net.path[0], *hops], circuit_id=next(self.ids))
            if rng.random() < 0.5:
                net.queue[-1] = (rng.choice(self.guard_links), net.queue[-1][1])
        elif what <= 4 and links:
            net.queue.append((rng.choice(links), self.message()))
        elif what == 5:
            net.now += rng.choice([0.01, 1.0, 9.0, 700.0])
            for relay in net.path:
                relay.switch.handle_timeout(net.now)
        elif what == 6:
            relay = rng.choice(net.path)
            if relay.links:
                self.close(relay.links[rng.choice(list(relay.links))])
        elif what == 7:
            relay = rng.choice(net.path)
            if relay.switch.flows():
                relay.switch.on_flow_lost(
                    rng.choice(relay.switch.flows()), rng.choice(list(FlowFault)), net.now
                )
        elif what == 8:
            relay = rng.choice(net.path)
            relay.reachable = not relay.reachable
        else:
            self.close(rng.choice(self.guard_links))
            self.guard_links.append(net.join(rng.choice([net.customer, self.second]), net.path[0], None))
        if rng.random() < 0.8:
            self.carry(rng.randint(1, 20))

    def close(self, link) -> None:
        for end in (link, link.other):
            if isinstance(end.owner, Relay):
                for relay in self.net.path:
                    relay.links = {peer: other for peer, other in relay.links.items() if other is not end}
                end.owner.switch.on_link_closed(end, self.net.now)

    def carry(self, steps: int) -> None:
        """Carry some of what waits, in bad order, some of it twice or never."""
        net, rng = self.net, self.rng
        for _ in range(steps):
            if net.dials and rng.random() < 0.3:
                relay, node_id = net.dials.popleft()
                target = net.relays.get(node_id)
                if target is None or not target.reachable or relay is target:
                    relay.switch.on_dialled(node_id, None, "no answer", net.now)
                else:
                    relay.switch.on_dialled(
                        node_id,
                        relay.links.get(node_id) or net.join(relay, target, relay.node_id),
                        "",
                        net.now,
                    )
            if not net.queue:
                continue
            if rng.random() < 0.1:
                net.queue.rotate(rng.randint(1, 3))
            link, message = net.queue.popleft()
            self.seen.append(message)
            luck = rng.random()
            if luck < 0.05:
                continue
            link.other.owner.handle(link.other, message, net.now)
            if luck > 0.95:
                link.other.owner.handle(link.other, message, net.now)

    def finish(self) -> None:
        """Let everything run out."""
        for relay in self.net.path:
            relay.reachable = True
        self.carry(100_000 if len(self.net.queue) > 5000 else 5_000)
        while self.net.dials or self.net.queue:
            self.carry(100)
        for link in list(self.guard_links):
            self.close(link)
        for relay in self.net.path:
            for link in list(relay.links.values()):
                self.close(link)
        self.net.now += 3600
        for relay in self.net.path:
            relay.switch.handle_timeout(self.net.now)


@given(seed=st.integers(0, 2**32), steps=STEPS)
def test_any_sequence_of_events_raises_nothing_and_leaves_nothing(seed: int, steps: list[int]) -> None:
    chaos = Chaos(seed)
    for step in steps:
        chaos.step(step)
        for relay in chaos.net.path:
            assert relay.switch.circuit_count == len(relay.engine.open_flows)
    chaos.finish()
    for relay in chaos.net.path:
        switch = relay.switch
        assert switch.circuit_count == 0
        assert relay.engine.open_flows == []
        assert switch._links == {}
        assert switch._by_pending == {}
        assert switch._dialling == {}
        assert relay.build.pending_count == 0
        assert relay.leases == 0


def test_a_guard_that_replays_builds_gets_nothing_for_it() -> None:
    """On the same link or another, at once or later: every replay is rejected, before any key agreement."""
    net = SwitchNet(relays=3)
    net.start()
    carried: list = []
    original = net.path[1].handle

    def spy(link, message, now: float) -> None:
        carried.append(message)
        original(link, message, now)

    net.path[1].handle = spy  # type: ignore[method-assign]
    net.run()
    (build,) = [message for message in carried if isinstance(message, Build)]
    guard, middle = net.path[0], net.path[1]
    before = middle.switch.counters.rejected
    opened = 0

    def count(*_: object) -> None:
        nonlocal opened
        opened += 1

    for n in range(20):
        net.now += 1
        link = guard.links[middle.node_id]
        if n % 2:
            link = net.join(guard, middle, guard.node_id)
        middle.switch.on_build(link.other, Build(1000 + n, build.records), net.now, UNIX_S + 60 * n)
    assert middle.switch.counters.rejected == before + 20
    assert middle.switch.circuit_count == 1
    assert net.path[2].switch.counters.builds == 1, "nothing of it went on"


def test_builds_that_are_never_answered_are_bounded_in_number_and_time() -> None:
    net = SwitchNet(relays=3)
    for relay in net.path[1:]:
        relay.handle = lambda *_: None  # type: ignore[method-assign]
    for n in range(600):
        net.start(circuit_id=100 + n)
    net.run()
    guard = net.path[0]
    assert guard.switch.circuits_of(net.guard_link.other) <= 256
    assert guard.build.pending_count <= 256
    net.now += 9
    guard.switch.handle_timeout(net.now)
    net.run()
    assert guard.build.pending_count == 0
    assert guard.switch.circuits_of(net.guard_link.other) == 0
    assert len([m for m in net.customer.got if isinstance(m, Built | Destroy)]) == 600, "each one was told"

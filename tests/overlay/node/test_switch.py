"""Relays' switches: builds that pass, are refused, time out; circuits that end from either side."""

import pytest
from switch_net import SwitchNet

from circuits.building.client import BuildDone, BuildFailed, FailureKind
from circuits.building.messages import Refusal
from overlay.engine.interface import FlowFault
from overlay.messages import Build, Built, Destroy
from overlay.node.switch import DESTROY_EXPIRED, DESTROY_FAULT_BASE


def built(net: SwitchNet, build, index: int = -1):
    message = net.customer.got[index]
    assert isinstance(message, Built)
    return build.handle_built(message.records)


@pytest.mark.parametrize("relays", [1, 2, 3, 4])
def test_a_circuit_stands_on_every_relay(relays: int) -> None:
    net = SwitchNet(relays=relays)
    build = net.start()
    net.run()
    outcome = built(net, build)
    assert isinstance(outcome, BuildDone)
    assert [relay.switch.circuit_count for relay in net.path] == [1] * relays
    kinds = [relay.engine.flows[0].what[0] for relay in net.path]
    assert kinds == ["relay"] * (relays - 1) + ["exit"]
    assert [relay.engine.flows[0].what[1] for relay in net.path] == list(outcome.roots)


def test_a_second_circuit_uses_the_links_that_are_there() -> None:
    net = SwitchNet()
    net.start(circuit_id=7)
    net.run()
    net.start(circuit_id=8)
    net.run()
    assert [len(relay.dialled) for relay in net.path] == [1, 1, 0]
    assert [relay.switch.circuit_count for relay in net.path] == [2, 2, 2]


def test_destroy_from_the_customer_ends_it_everywhere() -> None:
    net = SwitchNet()
    net.start()
    net.run()
    net.queue.append((net.guard_link, Destroy(7, 0)))
    net.run()
    for relay in net.path:
        assert relay.switch.circuit_count == 0
        assert relay.engine.open_flows == []
    assert net.path[-1].leases == 0


def test_a_lost_link_in_the_middle_ends_it_everywhere() -> None:
    net = SwitchNet()
    net.start()
    net.run()
    middle = net.path[1]
    net.cut(middle, middle.links[net.path[2].node_id])
    assert [relay.switch.circuit_count for relay in net.path] == [0, 0, 0]
    assert net.path[-1].leases == 0
    assert net.customer.got[-1] == Destroy(7, DESTROY_FAULT_BASE + FlowFault.LINK_CLOSED)


def test_a_fault_in_an_engine_ends_it_everywhere() -> None:
    net = SwitchNet()
    net.start()
    net.run()
    relay = net.path[1]
    relay.switch.on_flow_lost(relay.engine.flows[0], FlowFault.BAD_PACKETS, net.now)
    net.run()
    assert [relay.switch.circuit_count for relay in net.path] == [0, 0, 0]
    assert net.customer.got[-1] == Destroy(7, DESTROY_FAULT_BASE + FlowFault.BAD_PACKETS)


def test_a_relay_that_cannot_be_reached_is_named_to_the_client_alone() -> None:
    net = SwitchNet()
    net.path[2].reachable = False
    build = net.start()
    net.run()
    outcome = built(net, build)
    assert isinstance(outcome, BuildFailed)
    assert (outcome.hop, outcome.refusal) == (1, Refusal.NEXT_UNREACHABLE)
    assert [relay.build.pending_count for relay in net.path] == [0, 0, 0]


def test_a_relay_that_is_not_in_the_directory_is_not_dialled() -> None:
    net = SwitchNet()
    del net.relays[net.path[2].node_id]
    build = net.start()
    net.run()
    outcome = built(net, build)
    assert isinstance(outcome, BuildFailed)
    assert outcome.refusal is Refusal.NEXT_FORBIDDEN
    assert net.path[1].dialled == []


def test_a_relay_that_is_no_exit_says_so() -> None:
    net = SwitchNet()
    build = net.start(hops=net.path[:2])
    net.run()
    outcome = built(net, build)
    assert isinstance(outcome, BuildFailed)
    assert (outcome.hop, outcome.refusal) == (1, Refusal.ROLE)


def test_silence_is_refused_by_the_relay_next_to_it() -> None:
    net = SwitchNet()
    net.path[2].handle = lambda link, message, now: None
    build = net.start()
    net.run()
    assert net.customer.got == []
    for relay in net.path[:2]:
        relay.switch.handle_timeout(net.now + 8.1)
    net.run()
    outcome = built(net, build, 0)
    assert isinstance(outcome, BuildFailed)
    assert outcome.kind is FailureKind.REFUSED
    assert [relay.build.pending_count for relay in net.path[:2]] == [0, 0]
    assert [relay.switch.circuits_of(end) for relay in net.path[:2] for end in relay.links.values()] == [
        0,
        0,
        0,
    ]


def test_a_late_answer_to_a_refused_build_is_ignored() -> None:
    net = SwitchNet()
    net.start()
    relay = net.path[1]
    late: list = []
    original = relay.handle
    relay.handle = lambda link, message, now: (
        late.append((link, message)) if isinstance(message, Built) else original(link, message, now)
    )
    net.run()
    relay.switch.handle_timeout(net.now + 8.1)
    net.run()
    original(*late[0], net.now)
    net.run()
    assert relay.switch.circuit_count == 0
    assert net.path[2].switch.circuit_count == 0


def test_a_replayed_build_is_rejected() -> None:
    net = SwitchNet()
    build = net.start(circuit_id=7)
    net.run()
    net.queue.append((net.guard_link, Build(9, build.records)))
    net.run()
    assert net.customer.got[-1] == Destroy(9, 3)
    assert net.path[0].switch.circuit_count == 1


@pytest.mark.parametrize("circuit_id", [0, 1 << 31, (1 << 32) - 1])
def test_ids_of_the_wrong_half_are_rejected(circuit_id: int) -> None:
    net = SwitchNet()
    net.start(circuit_id=circuit_id)
    net.run()
    assert net.customer.got == [Destroy(circuit_id, 1)]


def test_an_id_in_use_is_rejected_and_its_circuit_stays() -> None:
    net = SwitchNet()
    net.start(circuit_id=7)
    net.run()
    net.start(circuit_id=7)
    net.run()
    assert net.customer.got[-1] == Destroy(7, 1)
    assert net.path[0].switch.circuit_count == 1


@pytest.mark.parametrize("records", [b"", b"x", bytes(5952), b"\xff" * 5952, bytes(15_000)])
def test_garbage_is_rejected(records: bytes) -> None:
    net = SwitchNet()
    net.queue.append((net.guard_link, Build(5, records)))
    net.run()
    (answer,) = net.customer.got
    assert isinstance(answer, Destroy)
    assert net.path[0].build.pending_count == 0


def test_a_flood_of_builds_is_cut_off() -> None:
    net = SwitchNet(relays=1)
    for i in range(300):
        net.queue.append((net.guard_link, Build(i + 1, bytes(5952))))
    net.run()
    assert [message.code for message in net.customer.got].count(2) == 100


def test_one_customer_cannot_take_all_circuits() -> None:
    net = SwitchNet(relays=1)
    for i in range(300):
        net.now += 0.1
        net.start(circuit_id=i + 1)
        net.run()
    assert net.path[0].switch.circuit_count == 256


def test_no_link_takes_more_circuits_than_the_operator_allows() -> None:
    net = SwitchNet(relays=1)
    net.path[0].switch._max_per_customer = net.path[0].switch._max_per_link = 3
    for i in range(5):
        net.start(circuit_id=i + 1)
        net.run()
    assert net.path[0].switch.circuit_count == 3
    assert net.customer.got[-1] == Destroy(5, 2)


def test_a_circuit_ends_with_its_lifetime() -> None:
    net = SwitchNet()
    net.start(lifetime_s=60)
    net.run()
    net.path[1].switch.handle_timeout(net.now + 59)
    assert net.path[1].switch.circuit_count == 1
    net.path[1].switch.handle_timeout(net.now + 61)
    net.run()
    assert [relay.switch.circuit_count for relay in net.path] == [0, 0, 0]
    assert net.customer.got[-1] == Destroy(7, DESTROY_EXPIRED)


def test_a_relay_that_is_paid_less_than_its_price_refuses() -> None:
    net = SwitchNet(price=1000)
    relay = net.path[1]
    relay.price = 10  # what its descriptor says; its configuration asks 1000
    build = net.start()
    net.run()
    outcome = built(net, build)
    assert isinstance(outcome, BuildFailed)
    assert (outcome.hop, outcome.refusal) == (1, Refusal.PRICE)


def test_a_relay_that_cannot_pay_onward_refuses_and_only_the_client_reads_why() -> None:
    net = SwitchNet(price=100)
    net.path[1].unpayable = "the purse for it is being filled"
    build = net.start()
    net.run()
    outcome = built(net, build)
    assert isinstance(outcome, BuildFailed)
    assert (outcome.hop, outcome.refusal) == (1, Refusal.UNPAID)
    assert "being filled" in outcome.sentence
    assert [relay.switch.circuit_count for relay in net.path[1:]] == [0, 0]
    assert net.path[2].switch.counters.builds == 0, "the next relay hears nothing of it"


def test_prices_go_with_circuits_and_paid_ones_can_be_ended_alone() -> None:
    net = SwitchNet(price=100)
    build = net.start()
    net.run()
    assert isinstance(built(net, build), BuildDone)
    guard, middle, last = net.path
    (paid_in, paid_out), (middle_in, middle_out), (last_in, last_out) = (
        next(iter(relay.carried.values())) for relay in net.path
    )
    assert paid_out == middle_in
    assert middle_out == last_in
    assert last_out == 0
    assert paid_in >= 100 + paid_out
    link = next(iter(guard.switch._links))
    guard.switch.end_paid(link, incoming=False, code=97, now=net.now)
    assert guard.switch.circuit_count == 1, "nothing goes out to the customer"
    guard.switch.end_paid(link, incoming=True, code=97, now=net.now)
    net.run()
    assert [relay.switch.circuit_count for relay in net.path] == [0, 0, 0]
    assert not any(relay.carried for relay in net.path)
    assert net.customer.got[-1] == Destroy(net.customer.got[0].circuit_id, 97)
    assert middle.switch.counters.destroyed == last.switch.counters.destroyed == 1


def test_a_stopping_relay_ends_what_it_carries() -> None:
    net = SwitchNet()
    net.start()
    net.run()
    net.path[0].switch.close(net.now)
    net.run()
    assert [relay.switch.circuit_count for relay in net.path] == [0, 0, 0]
    net.start(circuit_id=8)
    net.run()
    assert net.customer.got[-1] == Destroy(8, 2)


def test_unknown_circuits_are_nobodys_fault() -> None:
    net = SwitchNet()
    net.queue.append((net.guard_link, Destroy(99, 1)))
    net.queue.append((net.guard_link, Built(99, b"x" * 100)))
    net.run()
    assert net.customer.got == []

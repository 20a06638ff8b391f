"""Flows and meters: what waits for money, what is lost, and who is charged for what."""

from engine_net import CLIENT, Net, tcp4, udp4

SERVER = bytes([203, 0, 113, 7])


def singles(count: int) -> list[bytes]:
    return [udp4(CLIENT.v4, SERVER, 53, b"q" * 900) for _ in range(count)]


def trains(count: int) -> list[bytes]:
    return [tcp4(CLIENT.v4, SERVER, 443, b"x" * 1300, n) for n in range(count)]


def answers(count: int) -> list[bytes]:
    return [udp4(SERVER, CLIENT.v4, 40000, b"a" * 900) for _ in range(count)]


def test_an_exit_holds_unpaid_trains_in_order_until_there_is_credit() -> None:
    net = Net(2)
    meter = net.meters[2]
    meter.credit_wei = 0
    for packet in trains(5):
        net.nodes[0].engine.on_tun_packets([packet])
        net.run()
    assert net.nodes[-1].tun.written == []
    assert meter.refused_packets
    assert net.nodes[-1].engine.budget.used_bytes > 0
    net.nodes[-1].engine.add_credit(meter, [net.exit], 100)
    net.run()
    assert net.nodes[-1].tun.written == trains(5)
    assert net.nodes[-1].engine.budget.used_bytes == 0
    assert meter.charged_wei + meter.credit_wei == 100


def test_held_trains_are_forgotten_with_their_flow() -> None:
    net = Net(2)
    net.meters[2].credit_wei = 0
    net.nodes[0].engine.on_tun_packets(trains(5))
    net.run()
    net.nodes[-1].engine.drop(net.exit)
    assert net.nodes[-1].engine.budget.used_bytes == 0
    net.nodes[-1].engine.add_credit(net.meters[2], [net.exit], 100)
    assert net.nodes[-1].tun.written == []


def test_of_single_packets_those_that_are_paid_go_on() -> None:
    for place in (1, 2):
        net = Net(2)
        net.meters[place].credit_wei = 3
        net.nodes[0].engine.on_tun_packets(singles(10))
        net.run()
        assert len(net.nodes[-1].tun.written) == 3
        assert net.meters[place].credit_wei == 0
        assert net.meters[place].refused_packets == 7


def test_what_waits_at_an_exits_entry_shows_on_its_meter() -> None:
    for packets in (answers(3), [tcp4(SERVER, CLIENT.v4, 40000, b"b" * 1300)] * 3):
        net = Net(1)
        net.meters[1].credit_wei = 0
        net.nodes[-1].engine.on_tun_packets(packets)
        net.run()
        assert net.nodes[0].tun.written == []
        assert net.meters[1].refused_packets
        net.nodes[-1].engine.add_credit(net.meters[1], [net.exit], 10)
        net.run()
        assert sorted(net.nodes[0].tun.written) == sorted(packets)


def test_a_single_packet_that_a_relay_drops_on_the_way_back_is_not_charged() -> None:
    net = Net(2)
    net.links[0][1].datagram_room = lambda: 0  # the relay's way to the client is blocked
    net.nodes[-1].engine.on_tun_packets(answers(2000))
    net.run()
    before = net.meters[1].charged_wei
    assert before == 0, "nothing has left"
    relay = net.relays[0]
    owed = relay.price_out.meter.charged_wei
    assert owed == net.meters[2].charged_wei, "but it owes the exit for all that came"
    del net.links[0][1].datagram_room
    net.nodes[1].engine.on_writable(net.links[0][1])
    net.run()
    got = len(net.nodes[0].tun.written)
    assert 0 < got <= 2000
    assert net.meters[1].charged_wei == relay.counters.backward.packets - relay.counters.backward.dropped
    assert net.meters[0].charged_wei == net.meters[1].charged_wei, "the client owes just what came"


def test_both_sides_of_every_link_count_alike() -> None:
    net = Net(3)
    for _ in range(20):
        net.nodes[0].engine.on_tun_packets([*singles(7), *trains(7)])
        net.nodes[-1].engine.on_tun_packets(answers(9))
        net.run()
    owed = [net.meters[0], *(relay.price_out.meter for relay in net.relays)]
    assert [m.charged_wei for m in owed] == [m.charged_wei for m in net.meters[1:]]
    assert len({m.charged_wei for m in net.meters}) == 1

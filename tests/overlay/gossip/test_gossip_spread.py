"""How directories become alike: many machines on links in memory, a clock that jumps."""

import random

import pytest
from gossip_net import LIFETIME_S, UNIX_S, Net, describe, identity_of, member, roots_of

from overlay.gossip.limits import GossipLimits
from overlay.gossip.messages import Digest, decode_gossip
from overlay.gossip.roots import RootList
from overlay.gossip.types import Kind


def alike(nodes):
    return len({node.store.root for node in nodes}) == 1


def complete(nodes, count):
    return lambda: all(len(node.store) == count for node in nodes)


def test_what_each_publishes_reaches_all_within_seconds():
    net, roots = Net(), roots_of(range(20))
    nodes = [net.node(number, roots) for number in range(20)]
    net.mesh(nodes, 3)
    net.run(1.0)
    for number, node in enumerate(nodes):
        node.publish(describe(number))
    assert net.run(6.0, stop=complete(nodes, 20)) < 6.0
    assert alike(nodes)
    assert all(node.gossip.counters.faults == 0 for node in nodes)


def test_a_change_goes_round_and_takes_the_place_of_the_older_one():
    net, roots = Net(), roots_of(range(12))
    nodes = [net.node(number, roots) for number in range(12)]
    net.mesh(nodes, 3)
    for number, node in enumerate(nodes):
        node.publish(describe(number))
    net.run(5.0)
    nodes[4].publish(describe(4, sequence=2, country="IS"))
    began = net.now
    key = nodes[4].identity.node_id
    net.run(began + 5.0, stop=lambda: all(node.store.get(key).descriptor.sequence == 2 for node in nodes))
    assert net.now < began + 5.0
    assert alike(nodes)


def test_a_late_joiner_with_one_link_has_everything_soon():
    net, roots = Net(), roots_of(range(600))
    nodes = [net.node(number, roots) for number in range(5)]
    net.mesh(nodes, 2)
    for node in nodes:
        node.load([describe(number) for number in range(10, 510)])
    late = net.node(599, roots)
    net.join(late, nodes[0])
    began = net.now
    net.run(began + 5.0, stop=complete([late], 500))
    assert net.now < began + 5.0
    assert late.gossip.synced


def test_a_third_leaves_at_once_and_the_others_complete():
    net, roots = Net(seed=3), roots_of(range(40))
    nodes = [net.node(number, roots) for number in range(40)]
    net.mesh(nodes, 5)
    for number, node in enumerate(nodes):
        node.publish(describe(number))
    net.run(net.now + 0.06)  # the announcements are under way
    dead = net.random.sample(nodes, 13)
    for node in dead:
        net.kill(node)
    survivors = [node for node in nodes if node.alive]
    ids = {node.identity.node_id for node in survivors}
    began = net.now

    def survivors_known():
        return all(ids <= {entry.descriptor.identity for entry in node.store} for node in survivors)

    net.run(began + 90.0, stop=survivors_known)
    assert survivors_known()
    net.run(net.now + 120.0, stop=lambda: alike(survivors))
    assert alike(survivors), "also on what the dead had told only some"


def test_half_of_the_network_leaves_and_its_descriptors_expire():
    net, roots = Net(), roots_of(range(20))
    nodes = [net.node(number, roots) for number in range(20)]
    net.mesh(nodes, 6)
    for number, node in enumerate(nodes):
        node.publish(describe(number))
    net.run(5.0)
    for node in nodes[10:]:
        net.kill(node)
    net.now = LIFETIME_S / 2
    made_s = int(UNIX_S + net.now)
    for number, node in enumerate(nodes[:10]):
        node.publish(describe(number, sequence=2, published_s=made_s, expires_s=made_s + LIFETIME_S))
    net.run(net.now + 120.0)
    assert all(len(node.store) == 20 for node in nodes[:10])
    net.now = LIFETIME_S + 1.0
    net.run(net.now + 120.0)
    assert all(len(node.store) == 10 for node in nodes[:10])
    assert alike(nodes[:10])


def test_a_partition_of_ten_minutes_heals():
    net, roots = Net(), roots_of(range(30))
    left = [net.node(number, roots) for number in range(10)]
    right = [net.node(number, roots) for number in range(10, 20)]
    net.mesh(left, 3)
    net.mesh(right, 3)
    bridge = net.join(left[0], right[0])
    for node in left + right:
        node.publish(describe(node.number))
    net.run(5.0)
    assert alike(left + right)
    net.cut(bridge)
    for node in left + right:
        node.publish(describe(node.number, sequence=2))
    net.run(605.0)
    assert not alike(left + right)
    net.join(left[3], right[7])
    began = net.now
    net.run(began + 30.0, stop=lambda: alike(left + right))
    assert alike(left + right)
    assert {entry.descriptor.sequence for entry in left[0].store} == {2}


def test_lost_messages_are_made_up_for_by_reconciliation():
    net, roots = Net(seed=5), roots_of(range(15))
    nodes = [net.node(number, roots) for number in range(15)]
    net.mesh(nodes, 3)
    dice = random.Random(9)
    net.filter = lambda sender, receiver, message: None if dice.random() < 0.3 else message
    for number, node in enumerate(nodes):
        node.publish(describe(number))
    net.run(300.0)
    net.filter = None
    net.run(600.0, stop=lambda: alike(nodes))
    assert alike(nodes)
    assert len(nodes[0].store) == 15


def test_two_directories_with_one_sequence_number_each_are_not_alike_and_become_so():
    net, roots = Net(), roots_of(range(5))
    a, b = net.node(0, roots), net.node(1, roots)
    a.load([describe(3, sequence=7, country="SE")])
    b.load([describe(3, sequence=7, country="IS")])
    assert a.store.root != b.store.root, "the digest covers content"
    net.join(a, b)
    net.run(5.0, stop=lambda: alike([a, b]))
    assert alike([a, b])
    assert a.store.conflicts + b.store.conflicts == 1


def test_a_customer_has_the_whole_directory_and_tells_nothing_of_its_own():
    net, roots = Net(), roots_of(range(300))
    guard = net.node(0, roots)
    guard.load([describe(number) for number in range(1, 250)])
    said = []
    customer = net.node(299, roots, is_customer=True)

    def listen(sender, receiver, message):
        if sender is customer:
            said.append(message)
        return message

    net.filter = listen
    net.join(customer, guard)
    net.run(5.0, stop=complete([customer], 249))
    assert len(customer.store) == 249
    assert customer.gossip.synced
    digests = [decode_gossip(raw) for raw in said if isinstance(decode_gossip(raw), Digest)]
    assert digests
    assert all(not any(digest.root) and digest.count == 0 and digest.seen == "" for digest in digests)
    assert all(peer.kind is Kind.CUSTOMER for peer in guard.gossip.peers.values())
    before = len(said)
    guard.publish(describe(0))
    net.run(net.now + 900.0)
    assert len(customer.store) == 250, "it asks again by itself"
    assert len(said) - before < 60


def test_idle_nodes_say_little():
    net, roots = Net(), roots_of(range(10))
    nodes = [net.node(number, roots) for number in range(10)]
    net.mesh(nodes, 4)
    for number, node in enumerate(nodes):
        node.publish(describe(number))
    net.run(30.0)
    before, began = net.bytes, net.now
    net.run(began + 600.0)
    assert (net.bytes - before) / 600 / 10 < 50, "bytes per second and node"


def test_members_that_come_later_are_fetched_when_the_root_list_knows_them():
    net = Net()
    old, new = roots_of(range(5)), roots_of(range(6))
    a, b = net.node(0, new), net.node(1, old)
    a.load([describe(5)])
    net.join(b, a)
    net.run(10.0)
    assert len(b.store) == 0
    b.do(b.gossip.set_roots(new, net.now))
    began = net.now
    net.run(began + 10.0, stop=complete([b], 1))
    assert len(b.store) == 1
    b.do(b.gossip.set_roots(old, net.now))
    assert len(b.store) == 0, "who left the list is forgotten"


@pytest.mark.parametrize("skew_s", [3600.0, -3600.0])
def test_a_clock_that_is_an_hour_wrong_sees_everything_all_the_same(skew_s):
    net, roots = Net(), roots_of(range(6))
    nodes = [net.node(number, roots) for number in range(5)]
    wrong = net.node(5, roots, skew_s=skew_s)
    net.mesh([*nodes, wrong], 3)
    for node in [*nodes, wrong]:
        made_s = int(UNIX_S + net.now + node.skew_s)
        node.publish(describe(node.number, published_s=made_s, expires_s=made_s + LIFETIME_S))
    net.run(10.0)
    assert all(len(node.store) == 6 for node in [*nodes, wrong])


def test_this_node_alone_says_what_is_so_of_it():
    net, roots = Net(), roots_of(range(3))
    node, other = net.node(0, roots), net.node(1, roots)
    node.publish(describe(0, sequence=5))
    other.load([describe(0, sequence=9)])
    net.join(node, other)
    net.run(5.0)
    assert node.store.get(identity_of(0).node_id).descriptor.sequence == 5
    assert node.store.rival_sequence == 9, "the next one must be higher"
    node.publish(describe(0, sequence=10))
    net.run(net.now + 5.0)
    assert other.store.get(identity_of(0).node_id).descriptor.sequence == 10


def test_any_small_network_ends_alike():
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    net = Net(seed=seed, limits=GossipLimits(round_s=5.0))
    roots = RootList([member(number, stake_wei=dice.randint(0, 3)) for number in range(60)])
    nodes = [net.node(number, roots) for number in range(8)]
    net.mesh(nodes, 2)
    for _ in range(60):
        node = dice.choice(nodes)
        number = dice.randrange(8, 60)
        node.load([describe(number, sequence=dice.randint(1, 4), country=dice.choice(["SE", "IS"]))])
        if dice.random() < 0.3:
            net.run(net.now + dice.random() * 3)
        if dice.random() < 0.1 and len(node.links) > 1:
            net.cut(dice.choice(list(node.links.values())))
            net.join(node, dice.choice([one for one in nodes if one is not node]))
    net.run(net.now + 900.0, stop=lambda: alike(nodes))
    if not alike(nodes):
        for one in nodes:  # a graph that fell apart is no fault of gossip's
            net.join(nodes[0], one) if one is not nodes[0] else None
        net.run(net.now + 900.0, stop=lambda: alike(nodes))
    assert alike(nodes)

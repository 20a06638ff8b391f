import random

from gossip_net import describe, identity_of, member, roots_of

from overlay.descriptor import Address
from overlay.gossip.limits import GossipLimits
from overlay.gossip.neighbours import EXCHANGE_S, WANTED, DialNeighbour, LetGo, Neighbours
from overlay.gossip.roots import RootList
from overlay.gossip.store import Store, network_of

UNIX_S = 1_800_000_000.0


def make(roots, seed=1):
    return Neighbours(identity_of(0).node_id, random.Random(seed)), Store(roots, GossipLimits())


def dials(outputs):
    return [output for output in outputs if isinstance(output, DialNeighbour)]


def settle(neighbours, store, up, now, *, reachable=lambda identity: True):
    for wanted in dials(neighbours.decide(store, up, now)):
        good = reachable(wanted.identity)
        neighbours.handle_dialled(wanted.identity, good, now)
        if good:
            up.add(wanted.identity)


def test_it_picks_a_few_of_different_networks_and_payees():
    members = [
        member(number, payee=bytes([number % 7]) * 20, addresses=(Address(f"10.{number % 9}.0.{number}", 1),))
        for number in range(1, 60)
    ]
    neighbours, store = make(RootList(members))
    up = set()
    for now in range(10):
        settle(neighbours, store, up, float(now))
    assert len(up) == WANTED
    chosen = [store.roots.get(identity) for identity in up]
    assert len({one.payee for one in chosen}) == WANTED
    assert len({network_of(one.addresses[0].ip) for one in chosen}) == WANTED


def test_all_of_one_network_are_better_than_none():
    members = [member(number, addresses=(Address("127.0.0.1", 4000 + number),)) for number in range(1, 9)]
    neighbours, store = make(RootList(members))
    up = set()
    for now in range(5):
        settle(neighbours, store, up, float(now))
    assert len(up) == WANTED


def test_who_cannot_be_reached_is_passed_over_for_others():
    neighbours, store = make(roots_of(range(1, 30)))
    dead = {identity_of(number).node_id for number in range(1, 20)}
    up = set()
    for now in range(60):
        settle(neighbours, store, up, float(now), reachable=lambda identity: identity not in dead)
    assert len(up) == WANTED
    assert not up & dead


def test_a_lost_link_is_made_again_and_a_lost_neighbour_replaced():
    neighbours, store = make(roots_of(range(1, 30)))
    up = set()
    for now in range(5):
        settle(neighbours, store, up, float(now))
    gone = next(iter(up))
    up.discard(gone)
    (again,) = dials(neighbours.decide(store, up, 10.0))
    assert again.identity == gone, "first the same one"
    neighbours.handle_dialled(gone, False, 10.0)
    (other,) = dials(neighbours.decide(store, up, 10.1))
    assert other.identity != gone


def test_links_that_others_made_count_only_for_whom_it_picked():
    neighbours, store = make(roots_of(range(1, 100)))
    up = {identity_of(number).node_id for number in range(50, 100)}
    first = dials(neighbours.decide(store, up, 0.0))
    assert len(neighbours.chosen) == WANTED
    assert {one.identity for one in first} == set(neighbours.chosen) - up


def test_the_descriptors_address_goes_before_the_root_lists():
    neighbours, store = make(roots_of([1]))
    moved = describe(1, addresses=(Address("192.0.2.7", 9), Address("2001:db8::7", 9)))
    store.offer(moved.encoded, 0.0, UNIX_S)
    (wanted,) = dials(neighbours.decide(store, set(), 0.0))
    assert wanted.addresses == moved.descriptor.addresses
    neighbours, _ = make(roots_of([1]))
    neighbours.own_families = frozenset({6})
    (wanted,) = dials(neighbours.decide(store, set(), 0.0))
    assert wanted.addresses == (Address("2001:db8::7", 9),)


def test_contacts_of_the_configuration_help_where_the_root_list_has_no_address():
    neighbours, store = make(RootList([member(1, addresses=())]))
    assert neighbours.decide(store, set(), 0.0) == []
    extra = [member(1, addresses=(Address("192.0.2.9", 9),))]
    (wanted,) = dials(neighbours.decide(store, set(), 1.0, extra))
    assert wanted.addresses == (Address("192.0.2.9", 9),)


def test_now_and_then_one_is_exchanged():
    neighbours, store = make(roots_of(range(1, 40)))
    up = set()
    for now in range(5):
        settle(neighbours, store, up, float(now))
    before = set(neighbours.chosen)
    outputs = neighbours.decide(store, up, 2 * EXCHANGE_S)
    let_go = [output.identity for output in outputs if isinstance(output, LetGo)]
    assert len(let_go) == 1
    assert let_go[0] in before
    assert let_go[0] not in neighbours.chosen
    assert len(neighbours.chosen) == WANTED


def test_it_never_picks_itself():
    neighbours, store = make(roots_of([0]))
    assert neighbours.decide(store, set(), 0.0) == []

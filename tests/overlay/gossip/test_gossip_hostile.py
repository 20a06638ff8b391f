"""Peers that forge, flood, lie, stall and surround. What they cost is bounded, and the others go on."""

import random

import pytest
from gossip_net import LIFETIME_S, UNIX_S, Net, address_of, describe, identity_of, member, roots_of
from hypothesis import given
from hypothesis import strategies as st

from overlay.descriptor import Address, sign_descriptor
from overlay.errors import DecodeError
from overlay.gossip.limits import GossipLimits
from overlay.gossip.messages import (
    Buckets,
    Digest,
    GetBuckets,
    Have,
    Page,
    Part,
    Pull,
    Push,
    Want,
    decode_gossip,
    encode_gossip,
    is_gossip,
)
from overlay.gossip.neighbours import DialNeighbour, Neighbours
from overlay.gossip.roots import RootList
from overlay.gossip.store import Store, Verdict, short_hash
from overlay.gossip.types import Close, Kind, Seen, Send
from payments.keys import PurseKey

NOW_S = int(UNIX_S)
LIAR = Digest(b"L" * 16, 7, False, "")


def store_of(roots, **limits):
    return Store(roots, GossipLimits(**limits))


def offer(store, entry, *, now=0.0, unix_s=UNIX_S):
    return store.offer(entry.encoded if hasattr(entry, "encoded") else entry, now, unix_s)


def forge(entry):
    return entry.encoded[:-1] + bytes([entry.encoded[-1] ^ 1])


class Puppet:
    """A node whose machine is silent: the test says what it sends, and sees what comes."""

    def __init__(self, net, number, victim, roots, *, is_chosen=False):
        self.net = net
        self.node = net.node(number, roots)
        self.victim = victim
        self.heard = []
        self.answer = None
        original = net.filter

        def listen(sender, receiver, message):
            if original is not None:
                message = original(sender, receiver, message)
            if receiver is self.node:
                said = decode_gossip(message)
                self.heard.append(said)
                if self.answer is not None:
                    self.answer(said)
                return None
            return None if sender is self.node and message not in self.mine else message

        self.mine = set()
        net.filter = listen
        if is_chosen:
            self.wire = net.join(victim, self.node)
        else:
            self.wire = net.join(self.node, victim)

    def say(self, message):
        raw = message if isinstance(message, bytes) else encode_gossip(message)
        self.mine.add(raw)
        self.net.inject(self.wire, self.node, raw)

    def got(self, kind):
        return [message for message in self.heard if isinstance(message, kind)]


def small(**limits):
    """A victim that holds ten, a puppet that is a partner."""
    net, roots = Net(limits=GossipLimits(**limits)), roots_of(range(100))
    victim = net.node(0, roots)
    victim.load([describe(number) for number in range(1, 11)])
    return net, victim, Puppet(net, 50, victim, roots)


# -- descriptors that are not to be taken


def test_each_kind_of_bad_descriptor_is_refused_for_its_reason():
    payee = PurseKey(b"p" * 32).address
    roots = RootList([*(member(number) for number in range(5)), member(5, payee=payee)])
    store = store_of(roots)
    long = describe(1, expires_s=NOW_S + 9 * 86400)
    cases = [
        (describe(77), Verdict.NOT_A_MEMBER),
        (forge(describe(1)), Verdict.FORGED),
        (b"", Verdict.MALFORMED),
        (b"\x92" * 3000, Verdict.MALFORMED),
        (describe(1).encoded + bytes(2048), Verdict.MALFORMED),
        (describe(1, published_s=NOW_S - 100, expires_s=NOW_S), Verdict.EXPIRED),
        (describe(1, published_s=NOW_S + 3700, expires_s=NOW_S + 9000), Verdict.FROM_THE_FUTURE),
        (long, Verdict.LIVES_TOO_LONG),
        (describe(5), Verdict.WRONG_PAYEE),
        (describe(1, payee=payee), Verdict.WRONG_PAYEE),
        (describe(5, payee=payee), Verdict.NEW),
        (describe(1), Verdict.NEW),
        (describe(1), Verdict.HELD),
        (describe(1, sequence=0), Verdict.OLD),
        (describe(1, sequence=2), Verdict.CHANGED),
        (describe(1), Verdict.OLD),
    ]
    for entry, verdict in cases:
        assert offer(store, entry) is verdict
    assert len(store) == 2


def test_of_two_with_one_sequence_number_all_keep_the_same_in_any_order():
    entries = [describe(3, country=country) for country in ("SE", "IS", "DE", "FR", "NL")]
    kept = set()
    for seed in range(10):
        order = list(entries)
        random.Random(seed).shuffle(order)
        store = store_of(roots_of(range(5)))
        for entry in order:
            assert offer(store, entry) in (Verdict.NEW, Verdict.CHANGED, Verdict.LOST)
        kept.add(store.root)
    assert len(kept) == 1


def test_forgeries_of_a_nodes_own_descriptor_are_faults():
    store = Store(roots_of(range(9)), GossipLimits(), own=identity_of(1).node_id)
    own = describe(1)
    assert offer(store, forge(own)) is Verdict.FORGED
    assert store.rival_sequence == -1
    assert offer(store, own) is Verdict.OLD
    assert store.rival_sequence == own.descriptor.sequence
    assert offer(store, own) is Verdict.OLD


def test_a_node_that_changes_all_the_time_is_slowed_down():
    store = store_of(roots_of(range(5)))
    verdicts = [offer(store, describe(3, sequence=number), now=number * 0.01) for number in range(1, 100)]
    assert verdicts.count(Verdict.TOO_OFTEN) > 85
    assert offer(store, describe(3, sequence=1000), now=120.0) is Verdict.CHANGED


def test_a_replayed_descriptor_never_takes_the_place_of_a_newer_one():
    net, victim, puppet = small()
    newer = describe(1, sequence=9)
    victim.load([newer])
    puppet.say(Have(short_hash(describe(1).encoded)))
    net.run(1.0)
    (want,) = puppet.got(Want)
    puppet.say(Push((describe(1).encoded,)))
    net.run(2.0)
    assert want.shorts == short_hash(describe(1).encoded)
    assert victim.store.get(identity_of(1).node_id) == newer


def test_nothing_that_does_not_verify_is_passed_on():
    net, roots = Net(), roots_of(range(100))
    victim, bystander = net.node(0, roots), net.node(1, roots)
    puppet = Puppet(net, 50, victim, roots)
    net.join(victim, bystander)
    bad = forge(describe(7))
    puppet.say(Have(short_hash(bad)))
    net.run(1.0)
    puppet.say(Push((bad,)))
    net.run(100.0)
    assert len(victim.store) == 0
    assert len(bystander.store) == 0
    assert victim.gossip.counters.faults == 1


# -- a flood of nodes


def flood(count, *, where, stake=0):
    numbers = range(1000, 1000 + count)
    members = [member(number, stake_wei=stake) for number in numbers]
    return members, [describe(number, addresses=(where(number),)) for number in numbers]


def test_one_network_cannot_fill_the_table():
    honest = [member(number) for number in range(50)]
    members, entries = flood(60, where=lambda number: Address(f"66.66.{number % 250}.{number // 250}", 1))
    store = store_of(RootList([*honest, *members]), max_per_prefix=16, max_entries=500)
    for entry in entries:
        offer(store, entry)
    for number in range(50):
        assert offer(store, describe(number)) is Verdict.NEW
    assert len(store) == 50 + 16


def test_which_of_a_network_stay_does_not_depend_on_the_order():
    members, entries = flood(60, where=lambda number: Address(f"66.66.{number % 250}.1", 1))
    rich = [member(number, stake_wei=10) for number in range(1000, 1008)]
    roots = RootList([*rich, *members[8:]])
    kept = set()
    for seed in range(6):
        order = list(entries)
        random.Random(seed).shuffle(order)
        store = store_of(roots, max_per_prefix=16)
        for entry in order:
            offer(store, entry)
        kept.add(store.root)
        held = {entry.descriptor.identity for entry in store}
        assert {one.identity for one in rich} <= held, "stake stays"
    assert len(kept) == 1


def test_who_names_many_networks_pushes_nobody_out_of_them():
    """Addresses are named, not proven: one stake must not count in full in each of eight networks."""
    honest = [member(number, stake_wei=10) for number in range(16)]
    squatters = [member(number, stake_wei=40) for number in range(1000, 1016)]
    store = store_of(RootList([*honest, *squatters]), max_per_prefix=16)
    for number in range(16):
        offer(store, describe(number, addresses=(Address(f"66.66.{number}.1", 1),)))
    named = [Address(f"66.{66 + network}.9.9", 1) for network in range(8)]
    for number in range(1000, 1016):
        assert offer(store, describe(number, addresses=tuple(named))) is Verdict.TOO_MANY
    assert offer(store, describe(1000, addresses=tuple(named[:2]))) is Verdict.NEW, "20 for each network"
    assert len(store) == 16
    # Both IP versions are one relay's rule, not its exception.
    both = (named[0], Address("2001:db9::1", 1))
    assert offer(store, describe(1001, addresses=both)) is Verdict.NEW


def test_a_flood_from_many_networks_without_stake_does_not_push_stakes_out():
    honest = [member(number, stake_wei=10**18) for number in range(80)]
    members, entries = flood(400, where=address_of)
    store = store_of(RootList([*honest, *members]), max_entries=100)
    for entry in entries:
        offer(store, entry)
    for number in range(80):
        offer(store, describe(number))
    assert len(store) == 100
    assert all(store.get(one.identity) is not None for one in honest)


def test_one_payee_cannot_fill_the_table():
    payee = PurseKey(b"p" * 32).address
    members = [member(number, payee=payee) for number in range(200)]
    store = store_of(RootList(members), max_per_operator=20)
    for number in range(200):
        offer(store, describe(number, payee=payee))
    assert len(store) == 20


def test_links_of_one_network_are_not_all_partners():
    net, roots = Net(), roots_of(range(200))
    victim = net.node(0, roots)
    for number in range(1, 60):
        near = net.node(number, roots)
        key = 1000 + number
        victim.links[key] = None
        victim.gossip.handle_link_up(key, near.identity.node_id, "66.66.6.6", is_chosen=False, now=0.0)
    kinds = [peer.kind for peer in victim.gossip.peers.values()]
    assert kinds.count(Kind.PARTNER) == victim.gossip.limits.max_partners_per_prefix
    for number in range(60, 199):
        ip = address_of(number).ip
        victim.gossip.handle_link_up(2000 + number, identity_of(number).node_id, ip, is_chosen=False, now=0.0)
    kinds = [peer.kind for peer in victim.gossip.peers.values()]
    assert kinds.count(Kind.PARTNER) <= victim.gossip.limits.max_partners
    outsider = identity_of(999).node_id
    victim.gossip.handle_link_up(9999, outsider, "1.2.3.4", is_chosen=True, now=0.0)
    assert victim.gossip.peers[9999].kind is Kind.CUSTOMER, "not in the root list"


def test_an_eclipse_fails_while_honest_relays_are_on_the_root_list():
    """All who dial the new node are an attacker's, and show it only their own; it picks for itself."""
    net = Net()
    evil, honest = range(100, 140), range(40)
    roots = roots_of([*evil, *honest, 999])
    good = [net.node(number, roots) for number in honest]
    net.mesh(good, 4)
    for node in good:
        node.publish(describe(node.number))
    attackers = [net.node(number, roots) for number in evil]
    for node in attackers:
        node.load([describe(number) for number in evil])
        node.gossip.store.roots = roots_of(evil)  # they hide the others
    new = net.node(999, roots)
    for node in attackers:
        net.join(node, new)
    net.run(20.0)
    assert {entry.descriptor.identity for entry in new.store} <= {identity_of(n).node_id for n in evil}
    assert len(new.store.missing_members()) >= 40, "it can tell that there are more"
    neighbours = Neighbours(new.identity.node_id, random.Random(4))
    by_id = {node.identity.node_id: node for node in net.nodes}
    linked = [node.identity.node_id for node in attackers]
    for _ in range(10):
        for wanted in neighbours.decide(new.store, linked, net.now):
            assert isinstance(wanted, DialNeighbour)
            net.join(new, by_id[wanted.identity])
            neighbours.handle_dialled(wanted.identity, True, net.now)
            linked.append(wanted.identity)
        net.run(net.now + 60.0)
    ids = {identity_of(number).node_id for number in honest}
    assert ids <= {entry.descriptor.identity for entry in new.store}


# -- peers that lie and stall


def test_a_peer_that_lies_about_its_digest_is_asked_less_and_less():
    net, victim, puppet = small()

    def answer(said):
        if isinstance(said, Digest) and said.asks:
            puppet.say(LIAR)
        elif isinstance(said, GetBuckets):
            puppet.say(Buckets(said.request, b"x" * 2048))
        elif isinstance(said, Pull):
            puppet.say(Page(said.request, (), True, b""))

    puppet.answer = answer
    for _ in range(400):
        puppet.say(LIAR)
        net.run(net.now + 5.0)
    assert victim.gossip.counters.fruitless_sessions < 15
    assert len(victim.store) == 10


def test_a_peer_that_never_answers_holds_nobody_up():
    net, roots = Net(), roots_of(range(100))
    victim = net.node(0, roots)
    puppet = Puppet(net, 50, victim, roots, is_chosen=True)
    puppet.say(LIAR)
    net.run(0.1)
    assert puppet.got(GetBuckets)
    honest = net.node(1, roots)
    honest.load([describe(number) for number in range(2, 60)])
    net.run(4.0)
    net.join(victim, honest)
    net.run(net.now + 5.0)
    assert len(victim.store) == 58
    net.run(60.0)
    assert not victim.gossip._sessions, "given up"


def test_a_slow_peer_holds_nobody_up():
    net, roots = Net(), roots_of(range(100))
    victim = net.node(0, roots)
    puppet = Puppet(net, 50, victim, roots)
    drip = iter(range(51, 99))

    def answer(said):
        if isinstance(said, GetBuckets):
            puppet.say(Buckets(said.request, b"x" * 2048))
        elif isinstance(said, Pull):
            for step, number in enumerate(drip):
                page = Page(said.request, (describe(number).encoded,), False, b"")
                net.at(net.now + 10.0 * step, lambda page=page: puppet.say(page))

    puppet.answer = answer
    puppet.say(LIAR)
    net.run(12.0)
    honest = net.node(1, roots)
    honest.load([describe(number) for number in range(2, 40)])
    net.join(victim, honest)
    net.run(net.now + 25.0)
    assert len(victim.store) >= 38


def test_a_listing_without_end_ends_with_the_link():
    """Ten gigabytes of pages: none is kept, and what may come is a megabyte and some."""
    net, victim, puppet = small()
    junk = tuple(bytes([number]) * 1900 for number in range(7))

    def answer(said):
        if isinstance(said, GetBuckets):
            puppet.say(Buckets(said.request, b"x" * 2048))
        elif isinstance(said, Pull):
            for _ in range(200):
                net.inject(puppet.wire, puppet.node, encode_gossip(Page(said.request, junk, False, b"")))

    puppet.mine = _Anything()
    puppet.answer = answer
    puppet.say(LIAR)
    net.run(30.0)
    assert victim.closed
    assert victim.gossip.counters.bytes_received < 4 * 1024 * 1024
    assert len(victim.store) == 10


def test_real_descriptors_without_end_bring_only_what_belongs():
    net, victim, puppet = small()
    outsiders = [describe(number).encoded for number in range(5000, 5400)]

    def answer(said):
        if isinstance(said, GetBuckets):
            puppet.say(Buckets(said.request, b"x" * 2048))
        elif isinstance(said, Pull):
            batch = [outsiders.pop() for _ in range(min(20, len(outsiders)))]
            puppet.say(Page(said.request, tuple(batch), True, bytes(range(256))))

    puppet.answer = answer
    puppet.say(LIAR)
    net.run(100.0)
    assert len(victim.store) == 10
    assert len(outsiders) >= 300, "nothing that is of use: it does not go on asking"


def test_what_was_not_asked_for_is_not_read_and_soon_ends_the_link():
    net, victim, puppet = small(useless_burst_bytes=20_000.0, useless_bytes_per_s=100.0)
    entry = describe(60)
    for _ in range(3):
        puppet.say(Push((entry.encoded,)))
        puppet.say(Page(77, (entry.encoded,), True, b""))
        puppet.say(Buckets(77, bytes(2048)))
    net.run(1.0)
    assert victim.store.get(identity_of(60).node_id) is None
    assert not victim.closed
    for number in range(61, 90):
        puppet.say(Push((describe(number).encoded,) * 3))
    net.run(2.0)
    assert victim.closed


def test_too_many_messages_end_the_link():
    net, victim, puppet = small(messages_per_s=10.0, message_burst=50.0)
    for number in range(100):
        puppet.say(Have(number.to_bytes(8, "big")))
    net.run(1.0)
    assert victim.closed


def test_announcements_of_nothing_are_bounded():
    net, victim, puppet = small(max_wanted=500)
    for number in range(20):
        shorts = b"".join((number * 1000 + step).to_bytes(8, "big") for step in range(1000))
        puppet.say(Have(shorts))
    net.run(1.0)
    assert victim.gossip._news.wanted_count == 500 // 8
    net.run(60.0)
    assert not victim.gossip._news.wanted_count, "never came, forgotten"


def test_a_peer_that_passes_on_forgeries_is_believed_no_more_for_a_while():
    net, victim, puppet = small()
    for number in range(20, 40):
        bad = forge(describe(number))
        puppet.say(Have(short_hash(bad)))
        net.run(net.now + 0.2)
        puppet.say(Push((bad,)))
        net.run(net.now + 0.2)
    puppet.say(Have(short_hash(describe(41).encoded)))
    before = len(puppet.got(Want))
    net.run(net.now + 1.0)
    assert len(puppet.got(Want)) == before
    assert victim.gossip.counters.faults >= 16


def test_asking_for_too_much_brings_silence():
    net, _, puppet = small(serve_bytes_per_s=100.0, serve_burst_bytes=9000.0, customer_bytes_per_s=100.0)
    whole = Pull(1, tuple(Part(bucket, b"") for bucket in range(256)))
    for number in range(30):
        puppet.say(Pull(number, whole.parts))
    net.run(5.0)
    sent = sum(len(encoded) for page in puppet.got(Page) for encoded in page.descriptors)
    assert 0 < sent < 12_000


def test_one_answer_is_bounded_and_names_what_is_left():
    net, roots = Net(), roots_of(range(1000))
    victim = net.node(0, roots)
    victim.load([describe(number) for number in range(1, 600)])
    puppet = Puppet(net, 700, victim, roots)
    puppet.say(Pull(5, tuple(Part(bucket, b"") for bucket in range(256))))
    net.run(2.0)
    pages = puppet.got(Page)
    size = sum(len(encoded) for page in pages for encoded in page.descriptors)
    assert size <= victim.gossip.limits.pull_answer_bytes
    assert [page.is_last for page in pages] == [False] * (len(pages) - 1) + [True]
    assert pages[-1].unfinished


def test_the_rest_of_a_directory_is_not_looked_at_for_a_full_answer_or_an_empty_budget(monkeypatch):
    net, roots = Net(), roots_of(range(1000))
    victim = net.node(0, roots)
    victim.load([describe(number) for number in range(1, 600)])
    looked = []
    missing = Store.missing
    monkeypatch.setattr(Store, "missing", lambda *args: looked.append(args[1]) or missing(*args))
    puppet = Puppet(net, 700, victim, roots)
    puppet.say(Pull(1, tuple(Part(bucket % 3, b"") for bucket in range(256))))
    net.run(2.0)
    assert puppet.got(Page), "it is answered"
    puppet.say(Pull(2, tuple(Part(bucket, b"") for bucket in range(256))))
    net.run(2.0)
    pages = puppet.got(Page)
    assert len(looked) < 256 + 200
    assert len(pages[-1].unfinished) > 50, "not looked at, so to be asked for again"


def test_a_false_word_for_an_address_is_no_address():
    net, roots = Net(), roots_of(range(1000))
    victim = net.node(0, roots)
    puppet = Puppet(net, 700, victim, roots)
    key = next(iter(victim.gossip.peers))
    for seen, heard in (("evil \x1b[2J", 0), ("0.0.0.0", 0), ("fe80::1%eth0", 0), ("192.0.2.7", 1)):
        raw = encode_gossip(Digest(b"L" * 16, 7, False, seen))
        outputs = victim.gossip.handle_message(key, raw, net.now, UNIX_S)
        assert sum(isinstance(output, Seen) for output in outputs) == heard
    assert puppet.victim is victim


def test_pages_of_no_use_do_not_keep_others_from_their_turn():
    net, roots = Net(), roots_of(range(1000))
    victim = net.node(0, roots)
    Puppet(net, 700, victim, roots)
    gossip, now = victim.gossip, 100.0
    key = next(iter(gossip.peers))
    sent = gossip.handle_message(key, encode_gossip(LIAR), now, UNIX_S)
    request = decode_gossip(sent[-1].message)
    assert isinstance(request, GetBuckets)
    sent = gossip.handle_message(key, encode_gossip(Buckets(request.request, b"x" * 2048)), now, UNIX_S)
    pull = decode_gossip(sent[-1].message)
    given_up = gossip.counters.fruitless_sessions
    for _ in range(8):
        now += 2.5
        gossip.handle_message(key, encode_gossip(Page(pull.request, (), False, b"")), now, UNIX_S)
        gossip.handle_timeout(now, UNIX_S)
    assert gossip.counters.fruitless_sessions == given_up + 1


def test_customers_are_neither_believed_nor_told_of_changes():
    net, roots = Net(), roots_of(range(100))
    relay = net.node(0, roots)
    customer = net.node(1, roots, is_customer=True)
    wire = net.join(customer, relay)
    net.run(1.0)
    told = []

    def listen(sender, receiver, message):
        told.append((sender, type(decode_gossip(message))))
        return message

    net.filter = listen
    net.inject(wire, customer, encode_gossip(Have(short_hash(describe(9).encoded))))
    net.inject(wire, customer, encode_gossip(Push((describe(9).encoded,))))
    net.inject(wire, customer, encode_gossip(Digest(b"x" * 16, 9, True, "")))
    relay.publish(describe(0))
    net.run(3.0)
    assert len(relay.store) == 1
    assert {kind for sender, kind in told if sender is relay} <= {Digest, Buckets, Page}


# -- bytes


class _Anything:
    def __contains__(self, item):
        return True

    def add(self, item):
        return None


hashes = st.binary(max_size=20).map(lambda data: data * 8)
some_bytes = st.lists(st.binary(max_size=50), max_size=5).map(tuple)
parts = st.lists(st.builds(Part, st.integers(0, 255), hashes), min_size=1, max_size=5).map(tuple)
messages = st.one_of(
    st.builds(
        Digest,
        st.binary(min_size=16, max_size=16),
        st.integers(0, 2**32 - 1),
        st.booleans(),
        st.text(max_size=45),
    ),
    st.builds(GetBuckets, st.integers(0, 2**32 - 1)),
    st.builds(Pull, st.integers(0, 9), parts),
    st.builds(Page, st.integers(0, 9), some_bytes, st.booleans(), st.binary(max_size=256)),
    st.builds(Have, hashes.filter(bool)),
    st.builds(Push, some_bytes),
)


@given(messages)
def test_every_message_is_read_as_it_was_written(message):
    raw = encode_gossip(message)
    assert is_gossip(raw)
    assert decode_gossip(raw) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data):
    for raw in (data, b"\x94" + bytes([64 + len(data) % 10]) + data):
        try:
            decode_gossip(raw)
        except DecodeError:
            continue


@given(st.lists(st.one_of(messages.map(encode_gossip), st.binary(max_size=60)), max_size=25))
def test_no_sequence_of_messages_harms_a_node(raws):
    net, roots = Net(), roots_of(range(20))
    victim = net.node(0, roots)
    victim.load([describe(number) for number in range(1, 4)])
    for key, identity in ((1, identity_of(5).node_id), (2, None)):
        victim.gossip.handle_link_up(key, identity, "10.0.0.9", is_chosen=key == 1, now=0.0)
    for number, raw in enumerate(raws):
        outputs = victim.gossip.handle_message(1 + number % 2, raw, number * 0.1, UNIX_S)
        assert all(isinstance(output, Close) or not isinstance(output, Send) or len(output.message) <= 16384
                   for output in outputs)  # fmt: skip
    victim.gossip.handle_timeout(1000.0, UNIX_S + 1000)
    assert len(victim.store) == 3


@pytest.mark.parametrize("kind", [Have, Want])
def test_hashes_that_are_cut_short_are_refused(kind):
    with pytest.raises(DecodeError, match="cut short"):
        decode_gossip(encode_gossip(kind(b"123456789")))


def test_a_descriptor_longer_than_allowed_does_not_fit_a_message():
    raw = encode_gossip(Push((bytes(2048),)))
    decode_gossip(raw)
    with pytest.raises(DecodeError):
        decode_gossip(raw.replace(b"\xc5\x08\x00", b"\xc5\x08\x01") + b"\0")


def test_a_stranger_may_not_vouch_for_itself_with_a_lifetime_of_years():
    entry = describe(1)
    descriptor = entry.descriptor
    assert descriptor.expires_s - descriptor.published_s == LIFETIME_S
    with pytest.raises(ValueError, match="lives longer"):
        sign_descriptor(identity_of(1), type(descriptor)(
            identity=descriptor.identity, sequence=1, published_s=NOW_S, expires_s=NOW_S + 400 * 86400,
            addresses=descriptor.addresses, onion_key=bytes(32)))  # fmt: skip

import onion_reference as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onion_paths import NEAR_EPOCH_END, root_of

from circuits.keychain import (
    BACKWARD,
    BACKWARD_STREAM,
    FORWARD,
    FORWARD_STREAM,
    EpochKeys,
    OrderedReceiveChain,
    ReceiveChain,
    SendChain,
    WindowReceiveChain,
    derive_chain,
    expand,
)
from circuits.params import COUNTER_LIMIT, EPOCH_AGE_S, EPOCHS_AHEAD, PREVIOUS_KEYS_S, WINDOW
from circuits.suites import SUITE_AES, get_suite

SUITE = get_suite(SUITE_AES)
LABELS = (FORWARD, BACKWARD, FORWARD_STREAM, BACKWARD_STREAM)
EPOCH = 1 << 20


@given(
    secret=st.binary(min_size=32, max_size=32),
    label=st.text("abc /", max_size=20),
    length=st.integers(1, 100),
)
def test_the_kdf_is_hkdf_expand(secret, label, length):
    assert expand(secret, label, length) == reference.expand(secret, label, length)


@given(root=st.binary(min_size=32, max_size=32), bit=st.integers(0, 255))
def test_no_two_chains_have_anything_in_common(root, bit):
    other = bytearray(root)
    other[bit // 8] ^= 1 << bit % 8
    chains = [derive_chain(of, label) for of in (root, bytes(other)) for label in LABELS]
    assert len({chain for chain, _ in chains}) == len(chains)
    assert len({counter for _, counter in chains}) == len(chains)
    assert all(0 <= counter < 1 << 48 for _, counter in chains)


def test_roots_have_one_length():
    with pytest.raises(ValueError, match="32 bytes"):
        derive_chain(bytes(31), FORWARD)


def test_keys_are_not_shown():
    keys = EpochKeys(SUITE, bytes(range(32)), 7)
    assert repr(keys) == "EpochKeys(epoch=7)"


# -- senders ---


def take(chain, now, count=1):
    """Use `count` counters of one epoch; return them and the epoch."""
    assert chain.prepare(now) >= count
    first = chain.counter + 1
    chain.counter += count
    return list(range(first, first + count)), chain.keys.epoch


def test_a_sender_counts_up_and_changes_keys_at_the_boundary():
    for name, left in NEAR_EPOCH_END[FORWARD].items():
        chain = SendChain(root_of(name), FORWARD, SUITE)
        start = derive_chain(root_of(name), FORWARD)[1]
        seen = []
        for _ in range(left + 5):
            counters, epoch = take(chain, 0.0)
            assert epoch == counters[0] >> 20
            seen += counters
        assert seen == list(range(start + 1, start + left + 6))
        assert seen[-1] >> 20 == (start >> 20) + 1


def test_a_sender_says_how_far_its_keys_reach():
    ((name, left), *_) = NEAR_EPOCH_END[FORWARD].items()
    chain = SendChain(root_of(name), FORWARD, SUITE)
    assert chain.prepare(0.0) == left
    take(chain, 0.0, left)
    assert chain.prepare(0.0) == EPOCH


def test_a_sender_jumps_when_the_epoch_is_old():
    chain = SendChain(root_of("x"), FORWARD, SUITE)
    ((counter,), epoch) = take(chain, 50.0)
    assert take(chain, 50.0 + EPOCH_AGE_S - 0.1) == ([counter + 1], epoch)
    assert take(chain, 50.0 + EPOCH_AGE_S) == ([(epoch + 1) << 20], epoch + 1)
    # However long it was silent, it goes on by one epoch only.
    assert take(chain, 9e9) == ([(epoch + 2) << 20], epoch + 2)


def test_an_idle_sender_gives_up_used_keys_once():
    chain = SendChain(root_of("x"), FORWARD, SUITE)
    epoch = chain.keys.epoch
    chain.expire(1e6)
    assert chain.keys.epoch == epoch  # nothing was sent with them
    take(chain, 0.0)
    chain.expire(EPOCH_AGE_S - 1)
    assert chain.keys.epoch == epoch
    for now in (EPOCH_AGE_S, 10 * EPOCH_AGE_S, 100 * EPOCH_AGE_S):
        chain.expire(now)
        assert chain.keys.epoch == epoch + 1
    # The new epoch is as old as its first packet.
    assert take(chain, 1e6)[0] == [(epoch + 1) << 20]
    assert take(chain, 1e6 + EPOCH_AGE_S - 1)[1] == epoch + 1


def test_the_time_may_run_out_at_the_very_end_of_an_epoch():
    ((name, left), *_) = NEAR_EPOCH_END[FORWARD].items()
    chain = SendChain(root_of(name), FORWARD, SUITE)
    (counters, epoch) = take(chain, 0.0, left)
    assert take(chain, EPOCH_AGE_S + 1) == ([counters[-1] + 1], epoch + 1)


@pytest.mark.parametrize("now", [0.0, 1e6])
def test_counters_end_and_never_start_again(now):
    chain = SendChain(root_of("x"), FORWARD, SUITE)
    chain.keys = EpochKeys(SUITE, bytes(32), (COUNTER_LIMIT >> 20) - 1)
    chain.counter = COUNTER_LIMIT - 4
    assert take(chain, 0.0)[0] == [COUNTER_LIMIT - 3]
    if now == 0.0:
        take(chain, now, 2)
    for _ in range(3):
        assert chain.prepare(now) == 0
        chain.expire(now)
        assert chain.counter < COUNTER_LIMIT


# -- receivers ---


def receive(chain, counter, now=0.0):
    """Take a packet as authentic; whether the chain would have tried it."""
    keys = chain.find(counter)
    if keys is None:
        return False
    assert keys.epoch == counter >> 20
    chain.accept(counter, keys, now)
    return True


def same_keys(keys, label, root, counter):
    """Whether `keys` are those of the reference: both ciphers agree with it."""
    direction, lane = label.split()[0], reference.STREAM if "stream" in label else reference.DATAGRAM
    aead, header = reference.keys_at(root, direction, lane, counter)
    body, tag = reference.seal(SUITE_AES, aead, counter, b"extra", b"plain")
    nonce = reference.nonce_of(counter)
    keys.stream.reset_nonce(nonce + bytes(4))
    return keys.aead.decrypt(nonce, body + tag, b"extra") == b"plain" and keys.stream.update(
        bytes(40)
    ) == reference.keystream(SUITE_AES, header, counter, 40)


@pytest.mark.parametrize("label", LABELS)
def test_sender_and_receiver_have_the_keys_of_the_reference(label):
    root = root_of("keys")
    sender, receiver = SendChain(root, label, SUITE), WindowReceiveChain(root, label, SUITE)
    for epoch in range(4):
        ((counter,), _) = take(sender, epoch * EPOCH_AGE_S)
        keys = receiver.find(counter)
        assert same_keys(keys, label, root, counter)
        assert same_keys(sender.keys, label, root, counter)
        receiver.accept(counter, keys, 0.0)


def make_receiver(kind=WindowReceiveChain, label=FORWARD):
    root = root_of("x")
    return kind(root, label, SUITE), derive_chain(root, label)[1]


def test_a_receiver_reaches_a_few_epochs_ahead_and_no_further():
    chain, start = make_receiver()
    epoch = start >> 20
    assert chain.find((epoch + EPOCHS_AHEAD + 1) << 20) is None
    assert not chain.is_old((epoch + EPOCHS_AHEAD + 1) << 20)
    far = (epoch + EPOCHS_AHEAD) << 20
    keys = chain.find(far)
    assert same_keys(keys, FORWARD, root_of("x"), far)
    # Looking changes nothing: only an authentic packet moves a receiver.
    assert chain.current.epoch == epoch
    chain.accept(far, keys, 0.0)
    assert chain.current is keys


def test_looking_ahead_keeps_one_set_of_keys():
    chain, start = make_receiver()
    near, far = ((start >> 20) + steps << 20 for steps in (1, 3))
    assert chain.find(near) is chain.find(near + 5)
    assert chain.find(far).epoch == far >> 20
    assert chain.find(near).epoch == near >> 20


def test_previous_keys_stay_for_a_while():
    chain, start = make_receiver()
    assert receive(chain, start + 2)
    assert receive(chain, ((start >> 20) + 1) << 20, now=10.0)
    assert receive(chain, start + 1, now=10.1)
    assert not receive(chain, start + 2)
    chain.expire(10.0 + PREVIOUS_KEYS_S - 0.1)
    assert receive(chain, start + 3)
    chain.expire(10.0 + PREVIOUS_KEYS_S)
    assert chain.find(start + 4) is None
    assert chain.is_old(start + 4)


def test_previous_keys_go_when_the_window_has_left_their_epoch():
    chain, start = make_receiver()
    boundary = ((start >> 20) + 1) << 20
    assert receive(chain, start + 1)
    assert receive(chain, boundary + WINDOW - 1)
    assert chain.find(start + 2) is not None
    assert receive(chain, boundary + WINDOW)
    assert chain.find(start + 2) is None


def test_an_epoch_that_was_skipped_cannot_come_back():
    chain, start = make_receiver()
    assert receive(chain, start + 1)
    assert receive(chain, ((start >> 20) + 2) << 20)
    skipped = ((start >> 20) + 1) << 20
    assert chain.find(skipped) is None
    assert chain.is_old(skipped)


def test_no_epoch_lies_past_the_last_counter():
    chain = ReceiveChain(root_of("x"), FORWARD, SUITE)
    chain.current = EpochKeys(SUITE, bytes(32), (COUNTER_LIMIT >> 20) - 1)
    assert chain.find(COUNTER_LIMIT - 1) is chain.current
    assert chain.find(COUNTER_LIMIT) is None


def test_an_ordered_receiver_takes_the_next_counter_only():
    chain, start = make_receiver(OrderedReceiveChain, FORWARD_STREAM)
    boundary = ((start >> 20) + 1) << 20
    for counter in (start, start + 2, boundary + 1, boundary + EPOCH, 0):
        assert chain.find(counter) is None
    assert receive(chain, start + 1)
    assert not receive(chain, start + 1)
    assert receive(chain, start + 2)
    assert not chain.is_old(start + 1)


def test_an_ordered_receiver_follows_a_jump_and_forgets():
    chain, start = make_receiver(OrderedReceiveChain, FORWARD_STREAM)
    boundary = ((start >> 20) + 1) << 20
    assert receive(chain, start + 1)
    assert receive(chain, boundary)
    assert not receive(chain, start + 2)
    assert chain._previous is None
    assert receive(chain, boundary + 1)
    assert receive(chain, boundary + EPOCH)


@given(data=st.data())
def test_no_counter_is_accepted_twice_however_packets_are_mixed(data):
    chain, start = make_receiver()
    boundary = ((start >> 20) + 1) << 20
    places = st.sampled_from([start + 1, boundary - 1, boundary, boundary + WINDOW, boundary + EPOCH])
    accepted = []
    now = 0.0
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.sampled_from([0.0, 0.0, 0.5, 2.0]))
        chain.expire(now)
        counter = data.draw(places) + data.draw(st.integers(-3, 3))
        if receive(chain, counter, now):
            accepted.append(counter)
    assert len(set(accepted)) == len(accepted)

from hypothesis import given
from hypothesis import strategies as st

from overlay.tabs.backing import BACKED_SHARE, MAX_ASKERS, Backing

A, B, C = b"\x0a" * 20, b"\x0b" * 20, b"\x0c" * 20


def test_who_has_shown_nothing_may_bind_the_limit_and_no_more():
    backing = Backing(250, lambda front: 0)
    for payee in (A, B, C):
        backing.ask(payee, "stranger")
    assert backing.may_open(A, 100)
    assert backing.may_open(B, 100)
    assert not backing.may_open(C, 100)
    assert backing.may_open(B, 100), "the same purse once more is no further one"
    backing.forget("stranger")
    backing.ask(C, "another stranger")
    assert not backing.may_open(C, 100), "what is bound stays bound when its asker goes"


def test_who_has_money_in_its_purse_is_served_and_frees_what_was_bound_for_it():
    left = {"customer": 0}
    backing = Backing(100, lambda front: left[front])
    backing.ask(A, "customer")
    backing.ask(B, "customer")
    assert backing.may_open(A, 100)
    assert not backing.may_open(B, 100)
    left["customer"] = 100 // BACKED_SHARE
    assert backing.may_open(B, 100)
    left["customer"] = 0
    assert backing.may_open(A, 100), "its first opening was confirmed meanwhile, so nothing is bound"


def test_our_own_wishes_need_nobody():
    assert Backing(0, lambda front: 0).may_open(A, 10**18)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 100)), max_size=200))
def test_what_is_remembered_is_bounded(asks):
    backing = Backing(1, lambda front: 0)
    for payee, front in asks:
        backing.ask(payee, front)
    assert all(len(askers) <= MAX_ASKERS for askers in backing._askers.values())
    for front in range(101):
        backing.forget(front)
    assert backing._askers == {}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 100), st.booleans()), max_size=60))
def test_unbacked_openings_never_exceed_the_limit(openings):
    backing = Backing(300, lambda front: 10**6 if front == "rich" else 0)
    bound: dict[int, int] = {}
    for payee, wei, is_rich in openings:
        name = payee.to_bytes(20, "big")
        backing.ask(name, "rich" if is_rich else "poor")
        if backing.may_open(name, wei) and "rich" not in backing._askers[name]:
            bound[payee] = wei
        for known in [known for known in bound if "rich" in backing._askers[known.to_bytes(20, "big")]]:
            del bound[known]
        assert sum(bound.values()) <= 300

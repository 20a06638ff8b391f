import pytest

from overlay.descriptor import Address
from overlay.gossip.reachability import (
    AddressTest,
    DialBackGate,
    Finding,
    Outcome,
    explain,
)

HERE = Address("192.0.2.7", 4433)
SIX = Address("2001:db8::7", 4433)
BOTH = frozenset({4, 6})


def judged(outcomes, *, seen=("192.0.2.7",) * 3, local=("192.0.2.7",), address=HERE):
    test = AddressTest(address)
    test.outcomes = {bytes([number]) * 32: outcome for number, outcome in enumerate(outcomes)}
    return test.finding(seen, frozenset(local))


def test_what_the_answers_tell():
    yes, no = Outcome.REACHED, Outcome.NO_ANSWER
    assert judged([]) is Finding.UNKNOWN
    assert judged([yes]) is Finding.REACHABLE, "one is enough if there is only one"
    assert judged([yes, yes, no]) is Finding.REACHABLE
    assert judged([yes, no, no]) is not Finding.REACHABLE
    assert judged([no, no]) is Finding.FIREWALL
    assert judged([no, no], local=("10.0.0.5",)) is Finding.NAT
    assert judged([no, no], local=("10.0.0.5",), seen=("198.51.100.1",) * 2) is Finding.WRONG_ADDRESS
    private = Address("10.0.0.5", 4433)
    found = judged([no, no], local=("10.0.0.5",), seen=("198.51.100.1",) * 2, address=private)
    assert found is Finding.NAT
    assert judged([Outcome.OTHER_IDENTITY, no]) is Finding.OTHER_NODE
    assert judged([Outcome.PATH_TOO_SMALL]) is Finding.PATH_TOO_SMALL
    assert judged([Outcome.NO_FAMILY, Outcome.TOO_OFTEN]) is Finding.UNKNOWN
    assert judged([Outcome.NOT_TRIED], seen=("198.51.100.1",)) is Finding.WRONG_ADDRESS
    assert judged([Outcome.NOT_TRIED], seen=("192.0.2.7",), address=SIX) is Finding.UNKNOWN
    assert judged([no], address=SIX, seen=("192.0.2.7",), local=("2001:db8::7",)) is Finding.FIREWALL


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (Finding.FIREWALL, "let UDP port 4433 in"),
        (Finding.NAT, "Forward UDP port 4433"),
        (Finding.WRONG_ADDRESS, "198.51.100.1"),
        (Finding.OTHER_NODE, "another node answers"),
        (Finding.PATH_TOO_SMALL, "1500-byte"),
    ],
)
def test_the_operator_is_told_what_to_do(finding, words):
    assert words in explain(finding, HERE, ["198.51.100.1"])


def test_there_is_nothing_to_say_of_what_is_fine():
    assert explain(Finding.REACHABLE, HERE, []) == ""
    assert explain(Finding.UNKNOWN, HERE, []) == ""


def test_only_where_the_request_came_from_or_what_is_declared_is_dialled():
    gate = DialBackGate(0.0)
    victim = Address("203.0.113.99", 443)
    answers = gate.judge(b"p" * 32, "192.0.2.7", [SIX], [HERE, SIX, victim], BOTH, 0.0)
    assert answers == [(HERE, None), (SIX, None), (victim, Outcome.NOT_TRIED)]
    assert gate.judge(b"q" * 32, "192.0.2.7", [SIX], [SIX], frozenset({4}), 0.0) == [(SIX, Outcome.NO_FAMILY)]


def test_nobody_can_have_an_address_knocked_at_often():
    gate = DialBackGate(0.0)
    tried = 0
    for number in range(1000):  # a thousand identities that all declare one address
        peer = number.to_bytes(32, "big")
        answers = gate.judge(peer, "192.0.2.7", [], [HERE], BOTH, number * 0.01)
        tried += answers[0][1] is None
    assert tried <= 6
    tried = 0
    for number in range(1000):  # one that asks all the time
        answers = gate.judge(
            b"p" * 32, "192.0.2.8", [], [Address("192.0.2.8", number + 1)], BOTH, 20 + number * 0.01
        )
        tried += answers[0][1] is None
    assert tried <= 4


def test_all_together_stay_bounded():
    gate = DialBackGate(0.0)
    tried = 0
    for number in range(5000):
        ip = f"10.{number // 250}.{number % 250}.1"
        answers = gate.judge(number.to_bytes(32, "big"), ip, [], [Address(ip, 1)], BOTH, number * 0.001)
        tried += answers[0][1] is None
    assert tried <= 40

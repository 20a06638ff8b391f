"""Echoes of one circuit: which losses count."""

from circuits.pool.health import Health
from circuits.pool.types import PoolSettings


def token(number):
    return number.to_bytes(8, "big")


def test_echoes_lost_before_the_first_answer_say_nothing_of_the_circuit():
    """Its relays may still be opening their purses."""
    health = Health(PoolSettings(), 0.0)
    for number in range(12):
        health.note_sent_echo(token(number), float(number))
    assert (health.sent, health.lost, health.loss) == (0, 0, 0.0)
    assert health.note_echo(token(11), 12.0)
    assert (health.sent, health.lost, health.loss) == (1, 0, 0.0)
    assert not health.is_slow()


def test_echoes_lost_after_it_do():
    health = Health(PoolSettings(), 0.0)
    health.note_sent_echo(token(0), 0.0)
    health.note_echo(token(0), 0.1)
    for number in range(1, 5):
        health.note_sent_echo(token(number), float(number))
    health.note_echo(token(4), 4.1)
    assert (health.sent, health.lost) == (5, 3)
    assert health.loss > 0.3
    for number in range(5, 20):
        health.note_sent_echo(token(number), float(number))
    assert health.lost == 3 + 7, "eight are remembered; older ones are lost"
    assert health.is_slow()
    assert health.last_rtt_s is not None

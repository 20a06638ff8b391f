"""How long a link has waited for any answer: what a customer decides by whether its guard is there."""

import pytest
from links_net import PAIR_IDS, PAIRS, Pair

from overlay.links.backends.base import BackendName
from overlay.messages import Destroy, encode_control


@pytest.mark.parametrize("backends", PAIRS, ids=PAIR_IDS)
def test_a_peer_that_is_gone_is_noticed_by_what_is_under_way(
    backends: tuple[BackendName, BackendName],
) -> None:
    pair = Pair(backends).connect()
    pair.run_for(2)
    assert pair.dialler.unanswered_s(pair.now) == 0.0
    pair.filter = lambda *_: []
    pair.dialler.send_control(encode_control(Destroy(1, 0)))
    pair.flush()
    begun = pair.now
    pair.run_for(4)
    assert 2.0 <= pair.dialler.unanswered_s(pair.now) <= pair.now - begun
    assert pair.dialler.end is None
    pair.filter = lambda _, datagram: [datagram]
    pair.run_for(5)
    assert pair.dialler.unanswered_s(pair.now) == 0.0
    assert pair.dialler.end is None

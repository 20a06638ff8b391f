"""A peer's last message and its close in one batch: what the handler then asks of the link does nothing."""

import pytest
from links_net import PAIR_IDS, PAIRS, Pair

from circuits.params import LINK_FRAME
from overlay.links.backends.base import BackendName, StreamLimitError
from overlay.links.link import Link
from overlay.messages import Destroy, encode_control

LAST_WORDS = encode_control(Destroy(7, 0))


@pytest.mark.parametrize("backends", PAIRS, ids=PAIR_IDS)
def test_the_last_message_is_handled_on_a_closed_connection(
    backends: tuple[BackendName, BackendName],
) -> None:
    pair = Pair(backends).connect()
    pair.run_for(1)
    acceptor = pair.acceptor
    stream = acceptor.open_stream()
    acceptor.send_stream(stream, b"x" * 100)
    pair.flush()
    pair.run_for(1)
    pair.run_until(lambda: not pair._queue)  # nothing is on its way any more
    theirs = next(iter(pair.handlers[0].streams))

    held: list[bytes] = []
    pair.filter = lambda index, packet: [] if index == 0 and not held.append(packet) else [packet]
    back = pair.dialler.open_stream()
    pair.dialler.send_stream(back, b"y")
    pair.dialler.send_control(LAST_WORDS)
    pair.flush()
    pair.dialler.close()
    pair.flush()
    assert len(held) >= 2

    heard = []

    def answer(link: Link, message: bytes) -> None:
        heard.append(message)
        link.send_control(LAST_WORDS)
        link.reset_stream(stream, 0)
        link.stop_stream(back, 0)
        link.send_stream(theirs, b"z" * 100)
        link.send_datagrams([bytes(LINK_FRAME)] * min(2, link.datagram_room()))
        assert link.stream_backlog() >= 0
        assert link.stream_backlog(stream) >= 0
        try:
            link.send_stream(link.open_stream(), b"new", fin=True)
        except StreamLimitError:
            heard.append(b"no stream")

    pair.handlers[1].on_control = answer  # type: ignore[method-assign]
    for packet in held:
        acceptor.receive(packet, len(packet), pair.addresses[0], pair.now)
    acceptor.process(pair.now)
    acceptor.notify_writable()
    pair.flush()
    assert heard[0] == LAST_WORDS
    assert acceptor.end is not None
    assert pair.handlers[1].closes

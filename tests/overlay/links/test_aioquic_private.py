"""What the aioquic back end uses of the library's private parts: a release that moves it fails here first."""

from links_net import ACCEPTOR, Pair

from overlay.links.backends.aioquic_backend import AioquicConnection
from overlay.links.backends.base import MAX_STREAMS
from overlay.links.constants import LINK_FRAME, CloseCode
from overlay.links.limits import LinkLimits

BOTH = ("aioquic", "aioquic")


def test_window_flight_queue_and_round_trip_can_be_read():
    pair = Pair(BOTH).connect()
    connection = pair.sides[0].connection
    conn = connection._conn
    assert conn._loss.congestion_window > 10_000
    assert len(conn._datagrams_pending) == 0
    pair.dialler.send_datagrams([bytes(LINK_FRAME)] * 12)
    assert len(conn._datagrams_pending) == 12
    pair.flush()
    assert conn._loss.bytes_in_flight > 2 * LINK_FRAME
    assert 0 < conn._loss._rtt_smoothed < 1
    assert connection.peer_key() == ACCEPTOR.node_id
    assert conn._close_at is not None


def test_losses_are_counted():
    pair = Pair(BOTH).connect()
    stream_id = pair.dialler.open_stream()
    dropped = 0

    def drop(index, datagram):
        nonlocal dropped
        if index == 0 and len(datagram) > 1000 and dropped < 3:
            dropped += 1
            return []
        return [datagram]

    pair.filter = drop
    pair.dialler.send_stream(stream_id, bytes(60_000), True)
    pair.flush()
    pair.run_until(lambda: pair.handlers[1].finished)
    assert pair.sides[0].connection.packets_lost() >= 3


def test_the_backlog_follows_what_was_sent():
    pair = Pair(BOTH).connect()
    stream_id = pair.dialler.open_stream()
    pair.dialler.send_stream(stream_id, bytes(100_000))
    assert pair.dialler.stream_backlog() >= 100_000
    assert pair.dialler.stream_backlog(stream_id) == 100_000
    pair.flush()
    left = pair.dialler.stream_backlog(stream_id)
    assert 0 < left < 100_000
    assert pair.dialler.stream_backlog() == left
    pair.dialler.reset_stream(stream_id, 1)
    assert pair.dialler.stream_backlog() == 0
    pair.flush()
    pair.run_until(lambda: pair.handlers[1].resets)
    assert pair.dialler.stream_backlog() == 0


def test_stream_limits_are_raised():
    pair = Pair(BOTH).connect()
    for side in pair.sides:
        assert isinstance(side.connection, AioquicConnection)
        assert side.connection._conn._remote_max_streams_uni == MAX_STREAMS


def test_a_peer_that_leaves_gaps_loses_its_link_before_it_fills_the_memory():
    """aioquic grows its windows whether or not data can be delivered; the link has a bound of its own."""
    for acceptor in ("aioquic", "qh3"):
        limits = LinkLimits(max_held_bytes=12 * 1024 * 1024)
        pair = Pair(("aioquic", acceptor), limits=limits, delay_s=0.001).connect()
        conn = pair.sides[0].connection._conn
        conn._loss._cc.congestion_window = 1 << 30
        streams = []
        for _ in range(30):
            stream_id = pair.dialler.open_stream()
            pair.dialler.send_stream(stream_id, bytes(1 << 20))
            conn._streams[stream_id].sender._pending.subtract(0, 1)  # the first byte is never sent
            streams.append(stream_id)
        pair.flush()
        start = pair.now
        pair.run_until(lambda: pair.acceptor.end is not None or pair.now > start + 5)  # noqa: B023
        if acceptor == "aioquic":
            assert pair.acceptor.end.code == CloseCode.MEMORY
        else:
            assert conn._remote_max_data_used <= 8 * 1024 * 1024
        assert pair.handlers[1].streams == {}

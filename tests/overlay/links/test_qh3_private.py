"""What the qh3 back end uses of the library's private parts: a release that moves it fails here first."""

import inspect

import pytest
from links_net import Pair
from qh3 import _hazmat
from qh3.quic.connection import QuicConnection
from qh3.quic.tls_bridge import QuicTlsBridge

from overlay.links.backends import qh3_backend
from overlay.links.backends.base import MAX_DATAGRAM_FLIGHT_BYTES, MAX_STREAMS
from overlay.links.constants import LINK_FRAME


def test_the_congestion_window_and_bytes_in_flight_can_be_read():
    pair = Pair(("qh3", "qh3")).connect()
    core = pair.sides[0].connection._conn._core
    assert isinstance(core, _hazmat.QuicConnectionCore)
    assert core.congestion_window > 10_000
    before = core.bytes_in_flight
    pair.dialler.send_datagrams([bytes(LINK_FRAME)] * 5)
    pair.flush()
    assert core.bytes_in_flight >= before + 5 * LINK_FRAME
    assert isinstance(core.smoothed_rtt, float)
    assert core.loss_total == 0
    assert core.received_authenticated_packet is True
    kind, due = core.get_timer()
    assert isinstance(kind, str)
    assert isinstance(due, float)


def test_the_library_itself_ignores_the_window_for_datagrams():
    """The reason for the gate. When this fails, qh3 has learned to wait and the gate can go."""
    pair = Pair(("qh3", "qh3")).connect()
    connection = pair.sides[0].connection
    core = connection._conn._core
    for _ in range(500):
        connection._conn.send_datagram_frame(bytes(LINK_FRAME))
    while connection._conn.datagrams_to_send(pair.now):
        pass
    assert core.bytes_in_flight > 5 * core.congestion_window


def test_the_gate_holds_datagrams_to_the_window():
    pair = Pair(("qh3", "qh3")).connect()
    connection = pair.sides[0].connection
    core = connection._conn._core
    connection.send_datagrams([bytes(LINK_FRAME)] * 500)
    connection.transmit(pair.now, 1000)
    assert core.bytes_in_flight <= min(core.congestion_window, MAX_DATAGRAM_FLIGHT_BYTES)
    assert connection.datagram_room() == 0


def test_events_have_the_shape_that_is_read():
    pair = Pair(("qh3", "qh3")).connect()
    stream_id = pair.dialler.open_stream()
    pair.dialler.send_stream(stream_id, b"data", True)
    pair.dialler.send_datagrams([bytes(LINK_FRAME)])
    for packet in pair.dialler.transmit(pair.now, 10):
        pair.sides[1].connection.receive(packet[0], len(packet[0]), pair.addresses[0], pair.now)
    core = pair.sides[1].connection._conn._core
    events = []
    while (event := core.next_event()) is not None:
        events.append(event)
    assert ("datagram", bytes(LINK_FRAME)) in events
    assert ("stream_data", stream_id, b"data", True) in events


def test_the_constructor_argument_with_the_stream_limit_is_where_it_was():
    seen = []

    def spy(*arguments):
        seen.append(arguments)
        return _hazmat.QuicConnectionCore(*arguments)

    create = qh3_backend._with_globals(QuicConnection._create_core, QuicConnectionCore=spy)

    class Spied(QuicConnection):
        _create_core = create

    pair = Pair(("qh3", "qh3"), start=False)
    conn = Spied(configuration=pair.sides[0].connection._conn.configuration)
    conn.connect(("10.0.0.2", 1), 0.0)
    position = qh3_backend._CORE_ARGUMENT_UNI_STREAMS
    assert seen[0][position - 1 : position + 1] == (100, qh3_backend._LIBRARY_STREAM_LIMIT)


def test_both_sides_announce_the_larger_stream_limit():
    pair = Pair(("qh3", "qh3")).connect()
    for side in pair.sides:
        assert side.connection._conn._core.stream_limits[1] == MAX_STREAMS


def test_methods_that_are_copied_have_no_closure():
    for function in (
        QuicConnection._create_core,
        QuicConnection._create_tls,
        QuicTlsBridge.serialize_transport_parameters,
    ):
        assert function.__closure__ is None
        assert "super" not in inspect.getsource(function)


def test_the_public_path_gives_the_same():
    """Without the lean paths (as during the handshake) the wrapper's own events say the same."""
    pair = Pair(("qh3", "qh3")).connect()
    for side in pair.sides:
        side.connection._up = False
    stream_id = pair.dialler.open_stream()
    pair.dialler.send_stream(stream_id, b"data" * 1000, True)
    pair.dialler.send_datagrams([bytes(LINK_FRAME)] * 3)
    pair.flush()
    pair.run_until(lambda: pair.handlers[1].finished and len(pair.handlers[1].frames) == 3)
    assert pair.handlers[1].streams == {stream_id: b"data" * 1000}


def test_a_dialler_with_a_short_hello_gets_its_answer_too():
    """qh3 fails in the middle of its answer (RFC 9000 section 8.1, threefold limit); the rest comes later."""
    pair = Pair(("aioquic", "qh3"), start=False)
    pair.sides[0].connection._conn._configuration.quantum_readiness_test = False
    pair.dialler.connect(pair.now)
    pair.flush()
    pair.connect()


def test_the_timer_of_an_acknowledgement_has_the_name_that_is_looked_for():
    pair = Pair(("qh3", "qh3")).connect()
    pair.run_until(lambda: not any(side.connection.bytes_in_flight() for side in pair.sides))
    stream_id = pair.dialler.open_stream()
    pair.dialler.send_stream(stream_id, b"data", False)
    for packet in pair.dialler.transmit(pair.now, 10):
        pair.sides[1].connection.receive(packet[0], len(packet[0]), pair.addresses[0], pair.now)
    kind, due = pair.sides[1].connection._conn._core.get_timer()
    assert kind == qh3_backend._ACK_TIMER
    assert due == pytest.approx(pair.now + 0.001)

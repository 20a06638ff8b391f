import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.errors import DecodeError
from circuits.params import MAX_TRAIN_BYTES, MAX_TRAIN_UNITS, UNIT
from circuits.trains import TrainReader, encode_frame


def packet_of(units, fill):
    return bytes((fill,)) * (units * UNIT)


def test_frame():
    packet = packet_of(3, 7)
    assert encode_frame(packet) == b"\x03" + packet


@pytest.mark.parametrize("size", [0, 1, UNIT - 1, UNIT + 1, MAX_TRAIN_BYTES + UNIT])
def test_only_whole_units_are_framed(size):
    with pytest.raises(ValueError, match="units"):
        encode_frame(bytes(size))


@given(
    units=st.lists(st.integers(1, MAX_TRAIN_UNITS), max_size=8),
    cuts=st.lists(st.integers(0, 8 * MAX_TRAIN_BYTES), max_size=30),
)
def test_frames_survive_any_cutting(units, cuts):
    packets = [packet_of(count, index) for index, count in enumerate(units)]
    stream = b"".join(map(encode_frame, packets))
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    reader, read = TrainReader(), []
    for start, end in itertools.pairwise(places):
        read += reader.feed([stream[start:end]])
        assert reader.held_bytes < MAX_TRAIN_BYTES
    assert read == packets
    assert reader.held_bytes == 0
    together = [stream[start:end] for start, end in itertools.pairwise(places)]
    assert TrainReader().feed(together) == packets


def test_single_bytes_cost_no_object_each():
    reader, packet = TrainReader(), packet_of(2, 9)
    frame = encode_frame(packet)
    for index in range(len(frame) - 1):
        assert reader.feed([frame[index : index + 1]]) == []
        assert len(reader._pieces) < 200
    assert reader.feed([frame[-1:]]) == [packet]


@pytest.mark.parametrize("count", [0, 49, 255])
def test_other_counts_are_refused(count):
    with pytest.raises(DecodeError):
        TrainReader().feed([bytes((count,))])
    with pytest.raises(DecodeError):
        TrainReader().feed([encode_frame(packet_of(1, 1)) + bytes((count,))])


@given(st.lists(st.binary(max_size=3 * UNIT), max_size=20))
def test_garbage_is_read_or_refused(chunks):
    reader = TrainReader()
    try:
        for chunk in chunks:
            for packet in reader.feed([chunk]):
                assert len(packet) % UNIT == 0
            assert reader.held_bytes < MAX_TRAIN_BYTES
    except DecodeError:
        pass

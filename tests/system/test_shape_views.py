"""What each relay sees once its links are decrypted: whole units, and no bytes that another link shares.

Engines in memory: what runs over real links can be decrypted by nobody, which `test_shape_wire_system.py`
looks at. Here the view is what a relay's own QUIC hands it.
"""

import random
from collections import defaultdict

import pytest
from engine_net import CLIENT, Net, tcp4, udp4

from circuits.params import LINK_FRAME, MAX_TRAIN_UNITS, UNIT
from circuits.trains import TrainReader

SERVER = bytes([203, 0, 113, 7])
RUN_BYTES = 8  # two equal runs among a few megabytes of random bytes: less than one chance in a million
GRANT_BYTES = 12


def aligned_runs(data: bytes) -> list[bytes]:
    return [data[at : at + RUN_BYTES] for at in range(0, len(data) - RUN_BYTES + 1, RUN_BYTES)]


def busy_net(hops: int, suite: int, seed: int) -> tuple[Net, list[bytes]]:
    """A net that has carried both lanes both ways, and the payloads of it."""
    rng = random.Random(seed)
    net = Net(hops, suite)
    payloads: list[bytes] = []

    def payload(size: int) -> bytes:
        payloads.append(rng.randbytes(size))
        return payloads[-1]

    for _ in range(6):
        up, down = [], []
        for _ in range(rng.randrange(1, 60)):
            up.append(tcp4(CLIENT.v4, SERVER, 443, payload(rng.choice([0, 1, 40, 700, 1340]))))
            down.append(tcp4(SERVER, CLIENT.v4, 40000, payload(rng.choice([0, 9, 1340, 1340, 1340]))))
        for _ in range(rng.randrange(20)):
            up.append(udp4(CLIENT.v4, SERVER, 53, payload(rng.randrange(1200))))
            down.append(udp4(SERVER, CLIENT.v4, 40000, payload(rng.randrange(1200))))
        net.nodes[0].engine.on_tun_packets(up)
        net.nodes[-1].engine.on_tun_packets(down)
        net.nodes[0].engine.echo(net.client, rng.randbytes(8))
        net.run()
    return net, payloads


def views(net: Net) -> dict[str, dict[str, list[bytes]]]:
    """For each direction of each link: single packets and trains, of which anything else is an error."""
    found: dict[str, dict[str, list[bytes]]] = defaultdict(lambda: {"singles": [], "trains": []})
    streams: dict[tuple[str, int], bytes] = defaultdict(bytes)
    for link, event in net.carried:
        if event[0] == "datagrams":
            assert {len(frame) for frame in event[1]} == {LINK_FRAME}
            found[link.name]["singles"] += [frame[4:] for frame in event[1]]
        else:
            assert event[0] == "stream", event
            streams[link.name, event[1]] += event[2]
    for (name, _), data in streams.items():
        circuit_id, rest = data[:4], data[4:]
        if circuit_id == bytes(4):
            assert len(rest) % GRANT_BYTES == 0  # credits: a circuit's number and a count
            continue
        reader = TrainReader()
        found[name]["trains"] += reader.feed([rest])
        assert reader.held_bytes == 0
    return found


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_every_link_carries_whole_units_and_bytes_of_its_own(hops: int, suite: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    net, payloads = busy_net(hops, suite, seed)
    seen = views(net)
    names = [name for pair in net.links for name in (pair[0].name, pair[1].name)]
    assert set(seen) == set(names)

    sizes: dict[str, list[list[int]]] = {"up": [], "down": []}
    for pair in net.links:
        for direction, link in zip(("up", "down"), pair, strict=True):
            trains, singles = seen[link.name]["trains"], seen[link.name]["singles"]
            assert trains
            assert singles
            assert {len(packet) for packet in singles} == {UNIT}
            assert all(len(packet) % UNIT == 0 for packet in trains)
            units = [len(packet) // UNIT for packet in trains]
            assert max(units) <= MAX_TRAIN_UNITS
            sizes[direction].append([len(singles), *units])
    # A packet has the same size on all links: nobody can tell its place on the path from it.
    for each in sizes.values():
        assert all(other == each[0] for other in each)
    assert any(units > 8 for units in sizes["down"][0][1:])

    # No run of bytes of one link is on another, either way and at whatever place, nor in a payload.
    owners = {run: "a payload" for piece in payloads for run in aligned_runs(piece)}
    for name in names:
        for packet in seen[name]["trains"] + seen[name]["singles"]:
            for run in aligned_runs(packet):
                assert owners.setdefault(run, name) == name
    for name in names:
        for packet in seen[name]["trains"] + seen[name]["singles"]:
            for at in range(len(packet) - RUN_BYTES + 1):
                assert owners.get(packet[at : at + RUN_BYTES], name) == name

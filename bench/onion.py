"""What the onion core costs: microseconds per packet for each operation, as JSON on standard output.

    python -m bench.onion [--batch 32] [--hops 3] [--seconds 0.5]

Each figure is the best of several rounds in one thread, keys and ciphers warm. `singles` are batches of
packets of one unit, `train_48` is one train of 48 units per call; `aead_pass` and `stream_pass` are the bare
ciphers over one packet's worth, for comparison. Memory is what one more circuit's keys take of a relay.
"""

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from circuits.inner import Direction, Item, ItemType, body_capacity, decode_body, encode_body
from circuits.onion import (
    LANE_DATAGRAM,
    LANE_STREAM,
    ClientBackward,
    ClientForward,
    ExitBackward,
    RelayBackward,
    RelayForward,
)
from circuits.params import MAX_TRAIN_UNITS, UNIT
from circuits.suites import SUITES, get_suite

ROUNDS = 9
LANES = {"singles": LANE_DATAGRAM, "train_48": LANE_STREAM}


def best_us(work, make_batches, seconds):
    """The best round's microseconds per packet of `work(batch)`; `make_batches` is not measured."""
    best = float("inf")
    deadline = time.perf_counter() + seconds
    for _ in range(ROUNDS):
        batches = make_batches()
        start = time.perf_counter()
        for batch in batches:
            work(batch)
        end = time.perf_counter()
        best = min(best, (end - start) / sum(map(len, batches)) * 1e6)
        if end > deadline:
            break
    return round(best, 2)


class Circuit:
    """All parts of one circuit in one lane, and the packets that each of them would be given."""

    def __init__(self, suite, lane, batch, hops):
        self.roots = [os.urandom(32) for _ in range(hops)]
        units = 1 if lane == LANE_DATAGRAM else MAX_TRAIN_UNITS
        self.batches = 64 if lane == LANE_DATAGRAM else 50
        self.client = ClientForward(self.roots, suite, lane, os.urandom)
        self.relays = [RelayForward(root, suite, lane) for root in self.roots]
        self.exit = ExitBackward(self.roots[-1], suite, lane, os.urandom)
        self.wraps = [RelayBackward(root, suite, lane) for root in self.roots[:-1]]
        self.opener = ClientBackward(self.roots, suite, lane)
        self.forward = [os.urandom(body_capacity(Direction.FORWARD, units))] * batch
        self.backward = [os.urandom(body_capacity(Direction.BACKWARD, units))] * batch

    def forward_bodies(self):
        return [self.forward] * self.batches

    def backward_bodies(self):
        return [self.backward] * self.batches

    def sealed(self):
        return [self.client.seal_many(self.forward, 0.0) for _ in range(self.batches)]

    def at_exit(self):
        packets = self.sealed()
        for relay in self.relays[:-1]:
            packets = [[opened.data for opened in relay.open_many(batch, 0.0)] for batch in packets]
        return packets

    def from_exit(self):
        return [self.exit.seal_many(self.backward, 0.0) for _ in range(self.batches)]

    def at_client(self):
        packets = self.from_exit()
        for wrap in reversed(self.wraps):
            packets = [wrap.wrap_many(batch, 0.0) for batch in packets]
        return packets

    def check(self):
        """Refuse to report figures of packets that failed."""
        for part in (self.client, *self.relays, self.exit, *self.wraps, self.opener):
            if part.failures or part.dropped or part.broken:
                raise SystemExit(f"{type(part).__name__} refused what was measured")


def measure_bare(suite, size):
    """The ciphers alone, over `size` bytes."""
    key, data, extra, nonce = bytes(32), os.urandom(size), bytes(80), bytes(12)
    aead, stream = get_suite(suite).new_aead(key), get_suite(suite).new_stream(key)

    def aead_pass(batch):
        for _ in batch:
            aead.encrypt(nonce, data, extra)

    def stream_pass(batch):
        for _ in batch:
            stream.reset_nonce(bytes(16))
            stream.update(data)

    return {"aead_pass": aead_pass, "stream_pass": stream_pass}


def measure(suite, lane, batch, hops, seconds):
    """Every operation of one suite and lane; a new circuit for each, since a counter serves once."""
    results = {}

    def run(name, make_work):
        circuit = Circuit(suite, lane, batch, hops)
        work, make_batches = make_work(circuit)
        results[name] = best_us(work, make_batches, seconds)
        circuit.check()

    size = body_capacity(Direction.FORWARD, 1 if lane == LANE_DATAGRAM else MAX_TRAIN_UNITS)
    for name, work in measure_bare(suite, size).items():
        run(name, lambda circuit, work=work: (work, circuit.forward_bodies))
    run("client_seal", lambda c: (lambda batch: c.client.seal_many(batch, 0.0), c.forward_bodies))
    run("relay_open_forward", lambda c: (lambda batch: c.relays[0].open_many(batch, 0.0), c.sealed))
    run("exit_open_deliver", lambda c: (lambda batch: c.relays[-1].open_many(batch, 0.0), c.at_exit))
    run("exit_seal", lambda c: (lambda batch: c.exit.seal_many(batch, 0.0), c.backward_bodies))
    if hops > 1:
        run("relay_wrap_backward", lambda c: (lambda batch: c.wraps[-1].wrap_many(batch, 0.0), c.from_exit))
    run("client_open", lambda c: (lambda batch: c.opener.open_many(batch, 0.0), c.at_client))
    item = Item(ItemType.IP, 0, os.urandom(min(size - 4, 65_000)))
    body = encode_body((item,), size)
    run(
        "encode_body", lambda c: (lambda batch: [encode_body((item,), size) for _ in batch], c.forward_bodies)
    )
    run("decode_body", lambda c: (lambda batch: [decode_body(body) for _ in batch], c.forward_bodies))
    return results


def resident_bytes():
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(suite, used, count=1000):
    """Bytes that a relay's four parts of one circuit take, without or with packets of both lanes in each."""
    rng, kept = os.urandom, []

    def add():
        root = rng(32)
        for lane in LANES.values():
            relay, wrap = RelayForward(root, suite, lane), RelayBackward(root, suite, lane)
            if used:
                packets = ClientForward([root], suite, lane, rng).seal_many([bytes(UNIT - 96)], 0.0)
                relay.open_many(packets, 0.0)
                wrap.wrap_many(packets, 0.0)
            kept.append((relay, wrap))

    for _ in range(20):
        add()
    before = resident_bytes()
    for _ in range(count):
        add()
    return round((resident_bytes() - before) / count)


def in_new_process(function, *arguments):
    """Call it where no freed memory blurs what is taken."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench.onion"
    )
    parser.add_argument("--batch", type=int, default=32, help="single packets per call (default 32)")
    parser.add_argument("--hops", type=int, default=3, choices=range(1, 5))
    parser.add_argument("--seconds", type=float, default=0.5, help="at most about this long per figure")
    options = parser.parse_args()
    report = {"python": platform.python_version(), "hops": options.hops, "batch": options.batch}
    for suite in SUITES:
        report[get_suite(suite).name] = {
            f"{name}_us_per_packet": measure(
                suite, lane, options.batch if lane == LANE_DATAGRAM else 1, options.hops, options.seconds
            )
            for name, lane in LANES.items()
        } | {
            "relay_bytes_per_spare_circuit": in_new_process(measure_memory, suite, False),
            "relay_bytes_per_used_circuit": in_new_process(measure_memory, suite, True),
        }
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

"""Makes tests/vectors/onion.json: `python tests/vectors/generate_onion.py`, from the repository's root.

The packets come from tests/support/onion_reference.py, which shares no code with the package.
"""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import onion_reference as reference

FILE = Path(__file__).with_name("onion.json")
PROVENANCE = (
    "Made by tests/vectors/generate_onion.py with tests/support/onion_reference.py, a second "
    "implementation that shares no code with the package. Root of hop I: 32 bytes of value I. Forward "
    "payload byte i = i mod 256, backward payload byte i = 7i mod 256; random tail of a forward header "
    "all aa, of a backward header all bb. The packet is the first of its sender ('first'), or the first"
    " one of the next epoch after one packet ('jump'). Links count from the client. Packets without "
    "circuit id, as SHA-256 in hex. The case of suite 1, lane 1, 3 hops, 'first' agrees with the known "
    "answers of the design, which came from a third, throw-away implementation."
)
SUITES, LANES = (1, 2), {1: (1,), 2: (1, 2, 48)}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def root_of(hop):
    return bytes((hop,)) * 32


def counter_at(root, direction, lane, place):
    first = reference.first_counter(root, direction, lane)
    return first if place == "first" else ((first >> 20) + 1) << 20


def make_case(suite, lane, hops, units, place):
    roots = [root_of(hop) for hop in range(1, hops + 1)]
    payload = bytes(i % 256 for i in range(1384 * units - 96))
    counters = [counter_at(root, "fwd", lane, place) for root in roots]
    packet = reference.client_forward(roots, suite, lane, counters, payload, b"\xaa" * (24 * (4 - hops)))
    forward = [packet]
    for root in roots[:-1]:
        forward.append(reference.relay_forward(root, suite, lane, forward[-1])[2])
    payload = bytes(7 * i % 256 for i in range(1384 * units - 48))
    counter = counter_at(roots[-1], "bwd", lane, place)
    backward = [reference.exit_backward(roots[-1], suite, lane, counter, payload, b"\xbb" * 24)]
    for root in reversed(roots[:-1]):
        counter = counter_at(root, "bwd", lane, place)
        backward.append(reference.relay_backward(root, suite, lane, counter, backward[-1]))
    return {
        "suite": suite,
        "lane": lane,
        "hops": hops,
        "units": units,
        "packet": place,
        "forward_starts": packet[:8].hex(),
        "forward_links": [digest(packet) for packet in forward],
        "backward_links": [digest(packet) for packet in reversed(backward)],
    }


def make_chain(direction, lane):
    root = root_of(1)
    label = reference.label_of(direction, lane)
    first = reference.first_counter(root, direction, lane)
    aead, header = reference.keys_at(root, direction, lane, first)
    following = reference.keys_at(root, direction, lane, first + (1 << 20))
    return {
        "label": label,
        "chain": reference.expand(root, label + " chain", 32).hex(),
        "first_counter": first,
        "aead_key": aead.hex(),
        "header_key": header.hex(),
        "next_epoch_aead_key": following[0].hex(),
        "next_epoch_header_key": following[1].hex(),
    }


def make_file():
    return {
        "provenance": PROVENANCE,
        "chains_of_hop_1": [make_chain(direction, lane) for direction in ("fwd", "bwd") for lane in LANES],
        "packets": [
            make_case(suite, lane, hops, units, place)
            for suite in SUITES
            for lane, sizes in LANES.items()
            for hops in (1, 2, 3, 4)
            for units in sizes
            for place in ("first", "jump")
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make_file(), indent=1) + "\n")

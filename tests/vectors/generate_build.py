"""Makes tests/vectors/build.json: `python tests/vectors/generate_build.py`, from the repository's root.

All randomness comes from SHAKE-256 streams named in the file, but for the ML-KEM encapsulations: the library
draws those itself, so a first run records secret and ciphertext, and every later run is given them back and
must reproduce the rest.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from circuits import handshake
from circuits.building.client import BuildDone, BuildHop, ClientBuild
from circuits.building.messages import ExitAddresses, ExitHere, round_up_to_grid
from circuits.building.onion_keys import OnionKeys
from circuits.building.relay import BecomeExit, RelayBuild

FILE = Path(__file__).with_name("build.json")
UNIX_S = 1_800_000_000
SUITE, LIFETIME_S = 2, 3600
ADDRESSES = ExitAddresses(
    IPv4Address("100.64.3.4"),
    IPv6Address("fd68:6f70:6661::304"),
    IPv4Address("100.64.0.1"),
    IPv6Address("fd68:6f70:6661::1"),
)
PROVENANCE = (
    "Made by tests/vectors/generate_build.py with this repository's own code: a record of what it does, "
    "not an independent authority. Randomness: SHAKE-256 of the stream's name, read front to back. Per "
    "case: stream 'client N' (for each hop 32 bytes X25519, 64 bytes ML-KEM seed; then 1488 bytes for "
    "each unused record), 'onion key I' (32 bytes), 'relay N I' (16 bytes replay memory, then 32 bytes "
    "X25519, then, at the exit, 4464 bytes of records). Identity of hop I: 32 bytes of value I. The ML- "
    "KEM encapsulations are recorded. SHA-256 of whole messages, in hex."
)


def stream(name: str) -> handshake.Rng:
    """Return an rng that reads SHAKE-256 of `name`."""
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        position += length
        return hashlib.shake_256(name.encode()).digest(position)[position - length :]

    return read


def make_case(count: int, encapsulations: list[tuple[bytes, bytes]] | None) -> dict[str, Any]:
    """Build a path of `count` relays; with given (secret, ciphertext) pairs, or recording fresh ones."""
    used: list[tuple[bytes, bytes]] = []

    def encapsulator(index: int) -> Callable[[bytes], tuple[bytes, bytes]]:
        def encapsulate(public: bytes) -> tuple[bytes, bytes]:
            pair = handshake.encapsulate(public) if encapsulations is None else encapsulations[index]
            used.append(pair)
            return pair

        return encapsulate

    ids = [bytes([i + 1]) * 32 for i in range(count)]
    keys = [OnionKeys.generate(UNIX_S, stream(f"onion key {i + 1}")) for i in range(count)]
    hops = [
        BuildHop(
            ids[i], keys[i].current.public, (f"10.0.{i}.1" if i % 2 else f"2001:db8::{i}", 4433), 1000 + i
        )
        for i in range(count)
    ]
    client = ClientBuild(
        hops,
        ExitHere(IPv4Address("100.64.3.4"), None, True),
        suite=SUITE,
        lifetime_s=LIFETIME_S,
        rng=stream(f"client {count}"),
        now=0.0,
        unix_s=UNIX_S,
    )
    build, built, pendings, relays = [client.records], [], [], []
    for i in range(count):
        relay = RelayBuild(
            ids[i], keys[i], {SUITE}, stream(f"relay {count} {i + 1}"), encapsulate=encapsulator(i)
        )
        output = relay.handle_build(build[-1], 0.0, UNIX_S)
        relays.append(relay)
        pendings.append(output.pending)
        if isinstance(output, BecomeExit):
            built.append(relay.accept_exit(output.pending, ADDRESSES).records)
        else:
            build.append(output.records)
    for i in reversed(range(count - 1)):
        built.append(relays[i].handle_built(pendings[i], built[-1]).records)
    done = client.handle_built(built[-1])
    assert isinstance(done, BuildDone)

    def sha256(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    return {
        "hops": count,
        "node_ids": [i.hex() for i in ids],
        "onion_keys": [key.current.public.hex() for key in keys],
        "addresses": [f"[{host}]:{port}" for host, port in (hop.address for hop in hops)],
        "prices_asked": [hop.price_wei_per_packet for hop in hops],
        "prices_in_out": client.prices,
        "encapsulations": [{"secret": s.hex(), "ciphertext": c.hex()} for s, c in used],
        "build_links": [sha256(message) for message in build],
        "built_links": [sha256(message) for message in reversed(built)],
        "roots": [root.hex() for root in done.roots],
    }


def make_file(old: dict[str, Any] | None) -> dict[str, Any]:
    """Return the whole file's content; `old` gives the encapsulations."""
    cases = []
    for count in (1, 2, 3, 4):
        given = None
        if old is not None:
            given = [
                (bytes.fromhex(e["secret"]), bytes.fromhex(e["ciphertext"]))
                for e in old["cases"][count - 1]["encapsulations"]
            ]
        cases.append(make_case(count, given))
    return {
        "provenance": PROVENANCE,
        "protocol": handshake.PROTOCOL.decode(),
        "unix_s": UNIX_S,
        "suite": SUITE,
        "lifetime_s": LIFETIME_S,
        "wanted": {"ipv4": "100.64.3.4", "ipv6": None, "wants_ipv6": True},
        "given": {
            "ipv4": str(ADDRESSES.ipv4),
            "ipv6": str(ADDRESSES.ipv6),
            "dns_ipv4": str(ADDRESSES.dns_ipv4),
            "dns_ipv6": str(ADDRESSES.dns_ipv6),
        },
        "grid": [[n, round_up_to_grid(n)] for n in (0, 1, 15, 17, 1000, 123_456_789, 10**18 + 1)],
        "cases": cases,
    }


if __name__ == "__main__":
    kept = json.loads(FILE.read_text()) if FILE.exists() and "--fresh" not in sys.argv else None
    FILE.write_text(json.dumps(make_file(kept), indent=1) + "\n")

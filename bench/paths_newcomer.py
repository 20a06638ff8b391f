"""How soon a new honest relay is used: its part of guards, middles and exits by the day.

    python -m bench.paths_newcomer [--clients N] [--json FILE] [--markdown]

The market of bench.paths_attack with its 1,000 relays, and customers who came in the course of half a year,
so that their guards are of all ages. Then 50 relays of the usual size and stake join, unknown to everybody.
Every customer builds circuits each few hours by the very code that chooses paths. "Part" is of all circuits,
divided by the part that a relay of the same size would have which had been there always: 100 % is its due.
Customers who come after the newcomers draw by weight at once, and are shown apart.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path as FilePath

from bench.paths_attack import LEAST_STAKE, PORTS, USUAL_CAPACITY, honest_market
from circuits.backoff import BackOff
from circuits.candidates import Candidate, Constraints, Position
from circuits.guards import GuardStore, Moment
from circuits.path import Path, choose_path
from circuits.path_index import PathIndex
from circuits.pool.prober import Prober
from circuits.quality import QualityBook

NEWCOMERS = 50
DAY_S = 86_400.0
BEFORE_DAYS = 180
BEFORE_STEP_S = 2 * DAY_S
STEP_S = 6 * 3600.0
SHOWN_DAYS = (0.25, 1.0, 3.0, 7.0, 14.0, 30.0)
UNIX_S = 1.8e9
NEW = b"\xa0"
POSITIONS = (Position.GUARD, Position.MIDDLE, Position.EXIT)
LOOKS_PER_HOUR = 12


def newcomers() -> list[Candidate]:
    """Relays of the usual size and stake, each of its own operator and network, a quarter exits."""
    quality = QualityBook().score(bytes(32), UNIX_S)
    found = []
    for number in range(NEWCOMERS):
        found.append(
            Candidate(
                NEW + number.to_bytes(31, "big"),
                bytes(32),
                ((f"210.{number}.1.1", 4433),),
                True,
                number % 4 == 0,
                PORTS,
                payee=NEW + number.to_bytes(19, "big"),
                price_wei_per_packet=60_000,
                capacity_bytes_per_s=USUAL_CAPACITY,
                quality=quality,
                stake_wei=2 * LEAST_STAKE,
            )
        )
    return found


def known(candidate: Candidate) -> Candidate:
    """The same relay once it has been measured for long."""
    return replace(candidate, measured_bytes_per_s=candidate.capacity_bytes_per_s // 2, quality=0.9)


def is_new(node_id: bytes) -> bool:
    return node_id[:1] == NEW


def due(index: PathIndex) -> dict[Position, float]:
    """Return the newcomers' part of each position's weight."""
    return {
        position: sum(
            share
            for entry, share in index.select(position, Constraints()).shares()
            if is_new(entry.candidate.node_id)
        )
        for position in POSITIONS
    }


def used(
    stores: list[GuardStore], index: PathIndex, rng: random.Random, at_s: float, circuits: int = 1
) -> dict[Position, float]:
    """Have each customer build circuits at a time; return the newcomers' part of each position."""
    counts = dict.fromkeys(POSITIONS, 0)
    done = 0
    for store in stores:
        moment = Moment(index, BackOff(), rng.randbytes, at_s, UNIX_S + at_s)
        for _ in range(circuits):
            path = choose_path(Constraints(), store.get(Constraints()), moment)
            if not isinstance(path, Path):
                continue
            done += 1
            for hop in path.hops:
                counts[hop.position] += is_new(hop.candidate.node_id)
    return {position: count / max(1, done) for position, count in counts.items()}


def first_looks(index: PathIndex, clients: int, hours: float) -> float:
    """Return the looks at each newcomer in so many hours, for 1,000 customers; `clients` are simulated."""
    rng = random.Random(3)
    found = 0
    for _ in range(clients):
        # A customer who has measured the usual relays: those that it has not come first.
        book = QualityBook()
        for entry in index.select(Position.MIDDLE, Constraints()).entries:
            if not is_new(entry.candidate.node_id):
                book.note_probe_rate((entry.candidate.node_id,), 1e6, UNIX_S)
        store = GuardStore()
        prober = Prober(LOOKS_PER_HOUR, rng.randbytes, 0.0)
        for number in range(int(hours * LOOKS_PER_HOUR)):
            now = (number + 1) * 3600 / LOOKS_PER_HOUR
            look = prober.choose(
                Constraints(), store, book, Moment(index, BackOff(), rng.randbytes, now, UNIX_S + now)
            )
            if look is not None:
                found += is_new(look.target)
                book.note_probe_rate((look.target,), 1e6, UNIX_S + now)
    return found / clients * 1000 / NEWCOMERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.paths_newcomer", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=400, help="simulated customers (400)")
    parser.add_argument("--json", type=FilePath, metavar="FILE", help="write the figures")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    honest, fresh = honest_market(), newcomers()
    before, joined = PathIndex(honest), PathIndex([*honest, *fresh])
    always = PathIndex([*honest, *(known(one) for one in fresh)])
    fair, weighed = due(always), due(joined)
    rng = random.Random(1)
    stores = [GuardStore() for _ in range(arguments.clients)]
    at_s = 0.0
    while at_s < BEFORE_DAYS * DAY_S:
        at_s += BEFORE_STEP_S
        used(stores[: max(1, int(len(stores) * at_s / (BEFORE_DAYS * DAY_S)))], before, rng, at_s)
    begun_s, rows = at_s, []
    while at_s - begun_s < SHOWN_DAYS[-1] * DAY_S:
        at_s += STEP_S
        days = (at_s - begun_s) / DAY_S
        shown = days in SHOWN_DAYS
        part = used(stores, joined, rng, at_s, circuits=12 if shown else 1)
        if shown:
            rows.append((f"after {days:g} days", part))
    rows.append(
        ("new customers, at once", used([GuardStore() for _ in stores], joined, rng, at_s, circuits=12))
    )
    looks = first_looks(joined, min(20, arguments.clients), 1.0)
    bar = "|" if arguments.markdown else ""
    print(f"{bar} {'part of its due, per cent':<28}{bar} guard {bar} middle {bar} exit {bar}")
    if arguments.markdown:
        print("|---|---|---|---|")
    for name, part in [("by weight", weighed), *rows]:
        cells = f" {bar} ".join(f"{100 * part[position] / fair[position]:5.0f}" for position in POSITIONS)
        print(f"{bar} {name:<28}{bar} {cells} {bar}")
    print(f"\nlooks at each newcomer in its first hour, of 1,000 customers: {looks:.0f}")
    if arguments.json is not None:
        figures = [{"when": n, **{p.value: v / fair[p] for p, v in part.items()}} for n, part in rows]
        arguments.json.write_text(json.dumps({"rows": figures, "looks_per_1000": looks}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What share of circuits an attacker gets with k % of the nodes, or of the stake: guard, exit, both ends.

    python -m bench.paths_attack [--clients N] [--circuits N] [--json FILE] [--markdown]

A market of 1,000 honest relays (a quarter exits) with the usual spread of sizes; attackers of several kinds
join it. Guard and exit shares are exact (the weights themselves); both ends come from simulated new clients,
each with guards of its own, by the very code that chooses paths. Seeds are fixed: the figures are the same
on every run with the same options.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

from circuits.backoff import BackOff
from circuits.candidates import Candidate, Constraints, Position
from circuits.guards import GuardStore, Moment
from circuits.path import Path, choose_path
from circuits.path_index import PathIndex

HONEST = 1000
LEAST_STAKE = 10**18
SHARES = (0.01, 0.05, 0.10, 0.20, 0.30)
USUAL_CAPACITY = 12_500_000
EVIL = b"\xee"


class AllPorts:
    """An exit that lets everything out."""

    def allows(self, port: int) -> bool:
        return True


PORTS = AllPorts()


def honest_market(seed: int = 7) -> list[Candidate]:
    """Honest relays of operators with one to eight of them, crowded into hosting companies' networks.

    Sizes are log-normal; the stake is the least there may be and roughly as much again for the usual size.
    """
    rng = random.Random(seed)
    hosters = [f"{rng.randrange(1, 200)}.{rng.randrange(256)}" for _ in range(400)]
    crowd = [1 / (place + 3) for place in range(len(hosters))]
    found: list[Candidate] = []
    operator = 0
    while len(found) < HONEST:
        operator += 1
        networks = rng.choices(hosters, crowd, k=2)
        for _ in range(min(HONEST - len(found), 1 + int(rng.paretovariate(1.3)), 8)):
            number = len(found)
            size = min(rng.lognormvariate(0, 1.0), 20)
            capacity = int(size * USUAL_CAPACITY)
            found.append(
                Candidate(
                    b"\x01" + number.to_bytes(31, "big"),
                    bytes(32),
                    ((f"{rng.choice(networks)}.{number // 250}.{number % 250 + 1}", 4433),),
                    True,
                    number % 4 == 0,
                    PORTS,
                    payee=operator.to_bytes(20, "big"),
                    price_wei_per_packet=int(rng.lognormvariate(11, 0.4)),
                    capacity_bytes_per_s=capacity,
                    measured_bytes_per_s=capacity // 2,
                    quality=rng.uniform(0.8, 0.98),
                    stake_wei=int(LEAST_STAKE * (1 + size * rng.uniform(0.3, 1.7))),
                )
            )
    return found


def evil_nodes(
    count: int, *, operators: int, networks: int, exits: float = 0.25, **changes: object
) -> list[Candidate]:
    """Nodes of an attacker, spread over so many accounts and /16 networks."""
    found = []
    for number in range(count):
        network = number % networks
        values: dict[str, object] = {
            "payee": EVIL + (number % operators).to_bytes(19, "big"),
            "price_wei_per_packet": 1,
            "capacity_bytes_per_s": USUAL_CAPACITY,
            "measured_bytes_per_s": USUAL_CAPACITY // 2,
            "quality": 0.98,
            "stake_wei": LEAST_STAKE,
            **changes,
        }
        node = Candidate(
            EVIL + number.to_bytes(31, "big"),
            bytes(32),
            ((f"{200 + network // 256 % 50}.{network % 256}.{number // networks % 256}.9", 4433),),
            True,
            number % max(1, round(1 / exits)) == 0,
            PORTS,
        )
        found.append(replace(node, **values))  # type: ignore[arg-type]
    return found


def by_nodes(share: float) -> int:
    """How many nodes make so large a share of all."""
    return max(1, round(HONEST * share / (1 - share)))


def by_stake(share: float, honest: list[Candidate]) -> int:
    """The wei that make so large a share of all stake."""
    return int(sum(c.stake_wei for c in honest) * share / (1 - share))


@dataclass(frozen=True, slots=True)
class Attack:
    """A kind of attacker: its nodes for a share of what it has."""

    name: str
    measure: str
    nodes: Callable[[float, list[Candidate]], list[Candidate]]


def _few_large(share: float, honest: list[Candidate]) -> list[Candidate]:
    count = by_nodes(share)
    return evil_nodes(
        count,
        operators=count,
        networks=count,
        capacity_bytes_per_s=10 * USUAL_CAPACITY,
        measured_bytes_per_s=5 * USUAL_CAPACITY,
        stake_wei=10 * LEAST_STAKE,
    )


def _stake_spread(share: float, honest: list[Candidate]) -> list[Candidate]:
    stake = by_stake(share, honest)
    usual = sorted(c.stake_wei for c in honest)[len(honest) // 2]
    count = max(1, stake // usual)
    return evil_nodes(count, operators=count, networks=count, stake_wei=usual)


def _stake_thin(share: float, honest: list[Candidate]) -> list[Candidate]:
    count = max(1, by_stake(share, honest) // LEAST_STAKE)
    return evil_nodes(count, operators=count, networks=count)


ATTACKS = (
    Attack(
        "one name, one /16",
        "nodes",
        lambda share, honest: evil_nodes(by_nodes(share), operators=1, networks=1),
    ),
    Attack(
        "many names, one /16",
        "nodes",
        lambda share, honest: evil_nodes(by_nodes(share), operators=by_nodes(share), networks=1),
    ),
    Attack(
        "many names, a /16 each",
        "nodes",
        lambda share, honest: evil_nodes(
            by_nodes(share), operators=by_nodes(share), networks=by_nodes(share)
        ),
    ),
    Attack(
        "the same, all exits",
        "nodes",
        lambda share, honest: evil_nodes(
            by_nodes(share), operators=by_nodes(share), networks=by_nodes(share), exits=1.0
        ),
    ),
    Attack(
        "the same, says 1,000 times its size",
        "nodes",
        lambda share, honest: evil_nodes(
            by_nodes(share),
            operators=by_nodes(share),
            networks=by_nodes(share),
            capacity_bytes_per_s=1000 * USUAL_CAPACITY,
            measured_bytes_per_s=0,
        ),
    ),
    Attack("the same, truly ten times as large", "nodes", _few_large),
    Attack("one node with all of it", "stake", lambda share, honest: evil_nodes(
        1, operators=1, networks=1, exits=1.0, stake_wei=by_stake(share, honest)
    )),
    Attack("usual nodes, a /16 each", "stake", _stake_spread),
    Attack("least stake each, a /16 each", "stake", _stake_thin),
)  # fmt: skip


def is_evil(node_id: bytes) -> bool:
    return node_id[:1] == EVIL


def shares(honest: list[Candidate], evil: list[Candidate], clients: int, circuits: int) -> dict[str, float]:
    """Return the parts of circuits with the attacker's guard, exit, and both."""
    index = PathIndex([*honest, *evil])
    wanted = Constraints()
    found = {"nodes": float(len(evil))}
    for name, position in (("guard", Position.GUARD), ("exit", Position.EXIT)):
        selection = index.select(position, wanted)
        total = 0.0
        for entry, share in selection.shares():
            total += share * is_evil(entry.candidate.node_id)
        found[name] = total
    both = met = done = 0
    for number in range(clients):
        store, rng = GuardStore(), random.Random(number).randbytes
        seen = False
        for _ in range(circuits):
            result = choose_path(wanted, store.get(wanted), Moment(index, BackOff(), rng, 0.0, 1.8e9))
            if isinstance(result, Path):
                done += 1
                ends = is_evil(result.node_ids[0]), is_evil(result.exit.node_id)
                both += all(ends)
                seen |= all(ends)
        met += seen
    return found | {"both": both / max(1, done), "clients": met / clients}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.paths_attack", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1500, help="simulated clients for both ends (1500)")
    parser.add_argument("--circuits", type=int, default=4, help="circuits of each (4)")
    parser.add_argument("--json", type=FilePath, metavar="FILE", help="write the figures")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    arguments = parser.parse_args()
    honest = honest_market()
    report: list[dict[str, object]] = []
    bar = "|" if arguments.markdown else ""
    for measure in ("nodes", "stake"):
        attacks = [attack for attack in ATTACKS if attack.measure == measure]
        head = [f"attacker with k % of the {measure}", *(f"{share:.0%}" for share in SHARES)]
        print(f"\n{bar} " + f" {bar} ".join(head).ljust(44) + f" {bar}")
        if arguments.markdown:
            print("|---|" + "---|" * len(SHARES))
        for attack in attacks:
            cells = []
            for share in SHARES:
                figures = shares(honest, attack.nodes(share, honest), arguments.clients, arguments.circuits)
                report.append({"attack": attack.name, "measure": measure, "share": share, **figures})
                percent = [100 * figures[name] for name in ("guard", "exit", "both")]
                cells.append("{:.1f} / {:.1f} / {:.1f}".format(*percent))
            print(f"{bar} {attack.name:<36} {bar} " + f" {bar} ".join(f"{c:>18}" for c in cells) + f" {bar}")
    print(f"\nguard / exit / both ends, in per cent of circuits; {HONEST} honest relays")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What money costs a relay: processor time per packet that it is paid for and pays for, as JSON lines.

    python -m bench.money [--rate 20000] [--seconds 10]

A relay's desk between a neighbour that pays and one that is paid, all three real (books, tickets, counts,
reports), with a real ledger on disk; packets are only counted, `--rate` a second for `--seconds` of simulated
time, read as often as a node reads them. Only what the relay does is measured. `ticket_per_packet` gives one
hash a packet; `as_nodes_do` is the default, where a ticket pays for more packets the faster the link.
A last row issues and accepts 20,000 tickets by themselves, with a signed book for each 1,024.
`accept` is checking what came; `all` is that, paying onward, counting, and writing the ledger. Per cent are
of what a Python relay spends on a packet (`--relay-us`); `onion` is its cipher alone, in trains of 48 units.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import payments.payer_tab
from bench.onion import Circuit, best_us
from circuits.onion import LANE_STREAM
from circuits.params import MAX_TRAIN_UNITS
from overlay.tabs.desk import Act, Desk
from overlay.tabs.earning import EarningTerms
from overlay.tabs.paying import PayingTerms
from overlay.tabs.types import Fund, LoadOwn, Reading, Side
from payments.books import Domain, SignedBook
from payments.formats import KIND_BOOK, KIND_TICKET, decode_message, decode_ticket
from payments.hashing import BACKEND
from payments.io.ledger import Ledger, PurseKeyed
from payments.keys import PurseKey
from payments.payee import Payee
from payments.payer import Payer
from payments.state import EMPTY
from payments.tab import CloseCircuits, Credit, CutOff, Dispute, Load, Send, Store
from payments.validator import PurseView

DOMAIN = Domain(31337, b"\xc0" * 20)
PRICE_WEI = 10**11
READ_S = 0.05
RTT_S = 0.05
FULL = PurseView(10**24)
RELAY_US = 13.0
"""User and system time of a Python relay (qh3) for each packet of a bulk download, on the machine of
docs/benchmarks.md while others used it."""


class Node:
    """A desk whose acts are carried out at once; `cpu_s` is what its own work took."""

    def __init__(self, number: int, ledger: Ledger) -> None:
        self.key = PurseKey(bytes([number]) * 32)
        self.node_id = bytes([number]) * 32
        self.ledger = ledger
        self.cpu_s = 0.0
        self.accept_cpu_s = 0.0
        self.counts: dict[tuple[str, Side], list[int]] = {}
        self.outbox: list[tuple[str, bytes]] = []
        self.waiting: list[tuple[str, Store]] = []
        self.desk: Desk[str] = Desk(
            EarningTerms(DOMAIN, self.key.address, self.node_id, PRICE_WEI),
            PayingTerms(DOMAIN, self.key, 10**20, 10**23),
            lambda link, side: self._read(link, side),
            lambda link: 0.0,
        )

    def _read(self, link: str, side: Side) -> Reading:
        forward, backward, charged, credit = self.counts.setdefault((link, side), [0, 0, 0, 0])
        return Reading(forward, backward, charged, credit if side == "earning" else None, 0)

    def do(self, acts: list[Act[str]], now: float) -> None:
        """Carry acts out."""
        for act in acts:
            match act.output:
                case Send(message):
                    self.outbox.append((act.link, message))
                case Credit(wei):
                    self.counts.setdefault((act.link, "earning"), [0, 0, 0, 0])[3] += wei
                case Load(payer):
                    state = self.ledger.load("payee", PurseKeyed(DOMAIN, payer, self.key.address))
                    self.do(self.desk.on_loaded(act.link, payer, state, FULL, now), now)
                case LoadOwn(payee):
                    state = self.ledger.load("payer", PurseKeyed(DOMAIN, self.key.address, payee))
                    self.do(self.desk.on_own_loaded(act.link, state, FULL, now), now)
                case Store():
                    if act.side == "earning":
                        self.waiting.append((act.link, act.output))
                    self._store(act.link, act.side, act.output)
                case CutOff() | CloseCircuits() | Dispute() | Fund():
                    raise SystemExit(f"an honest neighbour was treated so: {act.output}")

    def _store(self, link: str, side: Side, store: Store) -> None:
        tabs = self.desk.links[link]
        if side == "paying" and tabs.paying is not None:
            purse = PurseKeyed(DOMAIN, self.key.address, tabs.paying.payee)
            self.ledger.store("payer", purse, store.state)
        elif tabs.earning is not None and tabs.earning.tab.payer is not None:
            purse = PurseKeyed(DOMAIN, tabs.earning.tab.payer, self.key.address)
            self.ledger.store("payee", purse, store.state)

    def stored(self, now: float) -> None:
        """The ledger's writer comes back."""
        waiting, self.waiting = self.waiting, []
        for link, store in waiting:
            self.do(self.desk.on_stored(link, store.sequence, now), now)


def measure(rate: int, seconds: float) -> dict[str, float]:
    """Processor microseconds a packet at the relay in the middle, and how many packets had to wait."""
    with tempfile.TemporaryDirectory() as folder:
        ledgers = [Ledger(Path(folder) / str(number)) for number in range(3)]
        nodes = [Node(number + 1, ledgers[number]) for number in range(3)]
        payer, relay, last = nodes
        ends = {"front": (payer, relay), "back": (relay, last)}
        for link, (one, two) in ends.items():
            one.do(one.desk.link_up(link, two.node_id, two.key.address, bytes(32), 0, 0.0), 0.0)
            two.do(two.desk.link_up(link, one.node_id, one.key.address, bytes(32), 0, 0.0), 0.0)
        prices = {"front": 2 * PRICE_WEI, "back": PRICE_WEI}
        for node, front, back in ((payer, None, "front"), (relay, "front", "back"), (last, "back", None)):
            acts = node.desk.circuit_up(
                1, front, prices.get(front or "", 0), back, prices.get(back or "", 0), 0.0
            )
            node.do(acts, 0.0)
        carried = held = 0
        for step in range(int(seconds / READ_S)):
            now = step * READ_S
            for node in nodes:
                begin = time.process_time()
                for link, (one, two) in ends.items():
                    if node in (one, two):
                        node.do(node.desk.on_readings(link, RTT_S, now), now)
                node.stored(now)
                node.cpu_s += time.process_time() - begin
            for node in nodes:
                sent, node.outbox = node.outbox, []
                for link, message in sent:
                    one, two = ends[link]
                    target = two if node is one else one
                    begin = time.process_time()
                    acts = target.desk.on_message(link, message, now)
                    accepted = time.process_time()
                    target.do(acts, now)
                    target.cpu_s += time.process_time() - begin
                    if message[0] in (KIND_BOOK, KIND_TICKET):
                        target.accept_cpu_s += accepted - begin
            room = [
                node.counts.get((link, "earning"), [0, 0, 0, 0])[3] // prices[link]
                for node, link in ((relay, "front"), (last, "back"))
            ]
            packets = max(0, min(int(rate * READ_S), *room))
            carried, held = carried + packets, held + int(rate * READ_S) - packets
            for link, (one, two) in ends.items():
                cost = packets * prices[link]
                for node, side in ((one, "paying"), (two, "earning")):
                    counts = node.counts.setdefault((link, side), [0, 0, 0, 0])  # type: ignore[arg-type]
                    counts[0] += packets // 4
                    counts[1] += packets - packets // 4
                    counts[2] += cost
                two.counts[(link, "earning")][3] -= cost
        for ledger in ledgers:
            ledger.close()
        return {
            "us": relay.cpu_s / max(1, carried) * 1e6,
            "accept_us": relay.accept_cpu_s / max(1, carried) * 1e6,
            "held_share": held / max(1, carried + held),
        }


def issue_and_accept(tickets: int, per_message: int) -> tuple[float, float]:
    """Return the processor seconds that a payer and a payee spend on so many tickets, books included."""
    payer_key, payee = PurseKey(b"\x11" * 32), b"\x02" * 20
    payer = Payer(payer_key, DOMAIN, payee, EMPTY, FULL, tickets_per_message=per_message)
    begun = time.process_time()
    messages = payer.issue(tickets, 1)
    issued_s = time.process_time() - begun
    receiver = Payee(DOMAIN, payee, payer_key.address, EMPTY, FULL)
    begun = time.process_time()
    for message in messages:
        if message[0] == KIND_TICKET:
            receiver.accept_ticket(*decode_ticket(message))
        else:
            book = decode_message(message, payee)
            assert isinstance(book, SignedBook)
            receiver.accept_book(book)
    accepted_s = time.process_time() - begun
    if receiver.worth_wei != tickets:
        raise AssertionError("the payee did not accept what was issued")
    return issued_s, accepted_s


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int, default=20_000, help="packets a second")
    parser.add_argument(
        "--relay-us", type=float, default=RELAY_US, help="what carrying a packet takes a Python relay"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated time")
    options = parser.parse_args()
    circuit = Circuit(2, LANE_STREAM, 1, 3)
    onion = (
        best_us(lambda batch: circuit.relays[0].open_many(batch, 0.0), circuit.sealed, 0.5) / MAX_TRAIN_UNITS
    )
    coarse = payments.payer_tab.MAX_TICKET_PACKETS
    for name, packets in (("ticket_per_packet", 1), ("as_nodes_do", coarse)):
        payments.payer_tab.MAX_TICKET_PACKETS = packets
        found = measure(options.rate, options.seconds)
        row = {
            "bench": "money",
            "tickets": name,
            "keccak": BACKEND,
            "rate": options.rate,
            "accept_us_per_packet": round(found["accept_us"], 3),
            "all_us_per_packet": round(found["us"], 3),
            "onion_us_per_packet": round(onion, 3),
            "accept_per_cent": round(100 * found["accept_us"] / options.relay_us, 2),
            "all_per_cent": round(100 * found["us"] / options.relay_us, 2),
            "held_share": round(found["held_share"], 4),
        }
        print(json.dumps(row))
    for per_message in (1, 1024):
        rounds = [issue_and_accept(20_000, per_message) for _ in range(5)]
        best = [min(seconds) for seconds in zip(*rounds, strict=True)]
        row = {
            "bench": "tickets",
            "tickets": 20_000,
            "per_message": per_message,
            "issue_s": round(best[0], 4),
            "accept_s": round(best[1], 4),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()

"""The customer's part in the market: what is known of relays, looks at more of them, choices made meanwhile.

Belongs to a `ClientNode`: makes its path index from directory and quality book, keeps the book on disk, takes
looks at relays while nothing else is going on, and answers `hopfare market` and `hopfare set`. Decisions are
in `circuits.quality`, `circuits.pool.prober` and `overlay.choices`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import trio

from circuits.building.messages import Refusal
from circuits.candidates import NoPath, show_price
from circuits.errors import DecodeError as CircuitsDecodeError
from circuits.guards import Moment
from circuits.params import UNIT
from circuits.path_index import PathIndex
from circuits.pool.policy_watch import PolicyWatch
from circuits.pool.prober import BURST_WAIT_S, Look, Prober
from circuits.quality import MAX_QUALITY_BYTES, QualityBook, decode_quality
from overlay.choices import apply_choice, find_name, reset_choice, show_choices
from overlay.config.io.load import load_config
from overlay.errors import FileError
from overlay.identity import format_node_id
from overlay.io.files import read_private, write_atomic
from overlay.logs import get_logger
from overlay.market import list_rows
from overlay.node.candidates import list_candidates, make_constraints
from overlay.node.choices import keep_choice, load_choices
from overlay.node.lease import Circuit
from overlay.node.supervise import keep_running
from payments.tab import CloseReason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path as FilePath

    from circuits.building.client import BuildFailed
    from circuits.candidates import Constraints
    from overlay.config.model import Config
    from overlay.engine.interface import FlowHandle
    from overlay.links.link import Link
    from overlay.node.client import ClientNode

QUALITY_FILE = "quality"
SAVE_S = 600.0
"""Between writes of the book: a crash costs what was learnt since."""
REWEIGH_S = 60.0
"""Between path indices for the sake of new measurements, in a directory of up to SMALL relays ..."""
SMALL = 2000
QUIET_S = 10.0
"""No look is taken for so long after a customer's packet."""
RATE_SPAN_S = 1.0
LEAST_RATE_BYTES_PER_S = 50_000
"""Slower traffic says nothing of what relays could do."""
CLOCK_SPAN_S = 600.0
CLOCK_RELAYS = 2
"""Different relays that call this machine's clock wrong within so long are believed."""
POOR_BUILDS, POOR_SUCCESS = 20.0, 0.5
"""The user is told of a guard that spoiled more than half of so many builds (Tor's path bias has 0.5 too)."""

log = get_logger("client")


class ClientMarket:
    """What a customer's node knows of relays and wants of them."""

    def __init__(self, node: ClientNode, book: QualityBook, file: FilePath) -> None:
        self.book = book
        self.stakes: Mapping[bytes, int] = {}
        """Wei by identity, from the root list where that has them."""
        self._node = node
        self._file = file
        self._problem = ""
        self._index: PathIndex | None = None
        self._reweigh_at = 0.0
        self._index_wanted = trio.Event()
        self._save_at = trio.current_time() + SAVE_S
        self._prober = Prober(node.config.client.probes_per_hour, os.urandom, trio.current_time())
        self._looks: dict[FlowHandle, tuple[Look, trio.Event]] = {}
        self._watch = PolicyWatch()
        self._clock: deque[tuple[float, bytes]] = deque(maxlen=16)
        self._moved: dict[int, tuple[float, int]] = {}
        self._busy_at = trio.current_time()

    # -- what the node tells
    # -------------------------------------------------------------------------------------

    def make_index(self) -> PathIndex:
        """The directory as path choice sees it now."""
        self._index = self._build_index()
        self._reweigh_at = trio.current_time() + REWEIGH_S
        return self._index

    def renew_index(self) -> None:
        """Have paths chosen by the directory and the book of now: at once, or where that takes long, soon."""
        if len(self._node.directory) <= SMALL:
            self._node.act(self._node.pool.set_index(self.make_index(), trio.current_time()))
            return
        self._index_wanted.set()

    async def _keep_index(self) -> None:
        """Make the index in a thread when asked: 10,000 relays take a fifth of a second, in which packets
        would wait.

        Directory and candidates are values; the book may change under the thread, which at worst reads
        figures of a moment ago.
        """
        while True:
            await self._index_wanted.wait()
            self._index_wanted = trio.Event()
            try:
                self._index = await trio.to_thread.run_sync(self._build_index)
            except BaseException:
                self._index_wanted.set()
                raise
            self._node.act(self._node.pool.set_index(self._index, trio.current_time()))

    def _build_index(self) -> PathIndex:
        candidates = list_candidates(self._node.directory, time.time(), self.book, self.stakes)
        return PathIndex(candidates, self._index)

    def note_build_failed(self, node_ids: tuple[bytes, ...], outcome: BuildFailed) -> bool:
        """Look at a failed build; True if it failed over the time of day."""
        if outcome.refusal is not Refusal.CLOCK:
            return False
        self._clock.append((trio.current_time(), node_ids[outcome.hop]))
        return True

    def note_moved(self, circuit: Circuit, now: float) -> None:
        """A circuit's packets grew: reckon its rate about once a second."""
        if circuit.watchers:  # without a connection on it they are echoes of our own
            self._busy_at = now
        packets = circuit.heard_packets + circuit.sent_packets
        begun, before = self._moved.setdefault(circuit.circuit_id, (now, packets))
        passed_s = now - begun
        if passed_s < RATE_SPAN_S:
            return
        if len(self._moved) > 4 * self._node.config.client.max_circuits:
            self._moved.clear()
        self._moved[circuit.circuit_id] = (now, packets)
        rate = (packets - before) * UNIT / passed_s
        if passed_s < 2 * RATE_SPAN_S and rate >= LEAST_RATE_BYTES_PER_S:
            self._node.pool.note_rate(circuit.circuit_id, rate, now)

    def note_unpayable(self, link: Link, reason: CloseReason) -> None:
        """A guard's account and ours have been closed."""
        if reason in (CloseReason.DISPUTE, CloseReason.FORGERY) and link.peer is not None:
            self.book.note_dispute(link.peer, time.time())

    def note_refused(self, circuit: Circuit, host: str, port: int) -> None:
        """An exit would not let a connection out ("administratively prohibited")."""
        with suppress(ValueError):
            leaves = circuit.path.exit
            if not ip_address(host).is_global or not leaves.ports.allows(port):
                return  # as its descriptor says
            if self._watch.note_refused(leaves.node_id, port, host):
                log.warning("exit refuses what it lists", peer=format_node_id(leaves.node_id), port=port)
                self._node.act(self._node.pool.handle_lie(circuit.circuit_id, trio.current_time()))

    def note_opened(self, circuit: Circuit, port: int) -> None:
        """An exit let a connection out."""
        self._watch.note_opened(circuit.path.exit.node_id, port)

    def take_echo(self, flow: FlowHandle, token: bytes) -> bool:
        """Take an echo if it belongs to a look."""
        found = self._looks.get(flow)
        if found is None:
            return False
        look, done = found
        if look.note_echo(token, trio.current_time()):
            done.set()
        return True

    # -- time
    # ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Looks, new weights and the book's file, until cancelled. A bug in them is logged, and they are
        begun again: circuits go on by what was known before.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_running, self._keep_index, log, "market failed")
            nursery.start_soon(keep_running, self._keep_looking, log, "market failed")

    async def _keep_looking(self) -> None:
        while True:
            now = trio.current_time()
            times = [now + 60.0, self._save_at]
            next_look = self._prober.next_time(now)
            if next_look is not None:
                times.append(max(next_look, self._busy_at + QUIET_S, now + 1.0))
            await trio.sleep_until(min(times))
            now = trio.current_time()
            if now >= self._save_at:
                self._save_at = now + SAVE_S
                if self.book.take_changed():
                    await trio.to_thread.run_sync(self._write, self.book.encode())
            if now - self._busy_at >= QUIET_S:
                await self._look(now)
            if now >= self._reweigh_at and len(self._node.directory) <= SMALL:
                self.renew_index()

    async def _look(self, now: float) -> None:
        node = self._node
        constraints = self.constraints()
        if self._index is None or not node.ready.is_set():
            return
        moment = Moment(self._index, node.pool.backoff, os.urandom, now, time.time())
        look = self._prober.choose(constraints, node.guards, self.book, moment)
        if look is None:
            return
        node_ids = look.path.node_ids
        # The id 0 is none of the pool's.
        outcome = await node.builds.build(0, look.path)
        unix_s = time.time()
        if not isinstance(outcome, Circuit):
            suspects = [node_ids[index] for index in outcome.suspects if index < len(node_ids)]
            # A guard that cannot be reached is for the pool to judge, which knows whether the line is up.
            if suspects and outcome.suspects != (0,) and not self.note_build_failed(node_ids, outcome):
                self.book.note_failed(suspects, unix_s)
            return
        try:
            self.book.note_works(node_ids, unix_s)
            done = trio.Event()
            self._looks[outcome.flow] = (look, done)
            for token in look.start(os.urandom, trio.current_time()):
                node.engine.echo(outcome.flow, token)
            node.endpoint.flush()
            with trio.move_on_after(BURST_WAIT_S):
                await done.wait()
            if outcome.link.end is None:
                look.note_result(self.book, time.time())
        finally:
            self._looks.pop(outcome.flow, None)
            node.give_up(outcome)

    def save(self) -> None:
        """Write the book now, if there is something new: for the end."""
        if self.book.take_changed():
            self._write(self.book.encode())

    def _write(self, data: bytes) -> None:
        try:
            write_atomic(self._file, data)
        except FileError as error:
            # What runs goes on; after a restart less is known of relays.
            if not self._problem:
                log.error("the quality of relays is not stored", reason=str(error))
            self._problem = f"the quality of relays is not stored: {error}"
        else:
            self._problem = ""

    # -- the customer's choices
    # ----------------------------------------------------------------------------------

    def constraints(self) -> Constraints:
        """What the configuration, with the choices made meanwhile, demands of every path."""
        return make_constraints(self._node.config, self._node.suites, self._node.families)

    def choose(self, key: str, value: str | None, *, keep: bool) -> dict[str, Any]:
        """Make a choice from now on, or with None take it back to what the configuration says.

        `keep` writes it down for later starts (and a choice taken back is forgotten). Raises OverlayError,
        with nothing changed, for a name or value that will not do.
        """
        node = self._node
        name = find_name(key)
        if value is not None:
            config = apply_choice(node.config, name, value)
        else:
            config = reset_choice(node.config, load_config(node.config.file), name)
        if keep or value is None:
            keep_choice(node.config.state_dir, name, value)
        self._use(config)
        log.info("changed while running", setting=name)
        return {
            "name": name,
            "value": show_choices(config)[name],
            "kept": keep and value is not None,
            "no_path": self.describe_no_path(),
        }

    def _use(self, config: Config) -> None:
        node = self._node
        now = trio.current_time()
        if config.client.probes_per_hour != node.config.client.probes_per_hour:
            self._prober = Prober(config.client.probes_per_hour, os.urandom, now)
        node.config = config
        if node.purse is not None:
            node.purse.use_limits(config.payments)
        node.act(node.pool.set_constraints(self.constraints(), now))

    def list_choices(self) -> dict[str, Any]:
        """What may be changed, what it is now, and what of it is kept."""
        kept: dict[str, str] = {}
        with suppress(FileError):
            kept = load_choices(self._node.config.state_dir)
        return {"choices": show_choices(self._node.config), "kept": sorted(kept)}

    # -- what the user is told
    # -----------------------------------------------------------------------------------

    async def rows(self) -> dict[str, Any]:
        """What `hopfare market` shows, whole."""
        rows = await trio.to_thread.run_sync(
            list_rows, self._node.directory, self.book, time.time(), self.stakes
        )
        return {"rows": rows, "coin": self._node.config.payments.coin}

    def describe_no_path(self) -> dict[str, Any] | None:
        """Why the last choice of a path found none, with what each rule left; None if it found one."""
        found = self._node.pool.no_path
        return None if found is None else describe_no_path(found)

    def problems(self) -> list[str]:
        """What the user should know, in sentences."""
        now = trio.current_time()
        problems = [self._problem] if self._problem else []
        relays = {node_id for at, node_id in self._clock if now - at < CLOCK_SPAN_S}
        if len(relays) >= CLOCK_RELAYS:
            problems.append(
                f"{len(relays)} relays say that this machine's clock is wrong by more than an hour: set it"
            )
        for node_id in self._node.list_guards():
            figures = self.book.figures(node_id, time.time())
            if figures.builds >= POOR_BUILDS and figures.success < POOR_SUCCESS:
                problems.append(
                    f"the guard {format_node_id(node_id)} spoils {1 - figures.success:.0%} of the circuits "
                    "over it: exclude it if that goes on (`hopfare set exclude NAME --keep`)"
                )
        return problems

    def status(self) -> dict[str, Any]:
        """For `hopfare status`."""
        limit = self.constraints().max_price_wei_per_packet
        resting = self._node.pool.resting_guard(trio.current_time())
        return {
            "max_price": show_price(limit) if limit is not None else None,
            "relays_measured": len(self.book),
            "looks": self._prober.looks,
            "guard_passed_over": format_node_id(resting) if resting is not None else None,
        }


def describe_no_path(found: NoPath) -> dict[str, Any]:
    """A failed choice of a path as values for JSON."""
    return {
        "kind": found.kind.value,
        "position": found.position.value,
        "sentence": found.sentence,
        "steps": [{"rule": step.rule, "left": step.left} for step in found.steps],
    }


def load_quality(path: FilePath, unix_s: float) -> QualityBook:
    """The book kept on disk, or an empty one; a damaged file is set aside and said so. Raises FileError."""
    if not path.exists():
        return QualityBook()
    try:
        return decode_quality(read_private(path, "quality of relays", MAX_QUALITY_BYTES), unix_s)
    except CircuitsDecodeError:
        aside = path.with_suffix(".damaged")
        with suppress(OSError):
            path.replace(aside)
        log.error("the file of relays' quality is damaged: it is begun anew", file=str(aside))
        return QualityBook()

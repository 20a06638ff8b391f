"""`hopfare demo`: a whole network on this machine, one page through it, and then yours to use.

Owns the order of things, the words and the tidying up. Everything that runs is in a `World`; the proxy's
listening socket alone is made here, in the caller's own network, and handed to the client by socket
activation, so that a browser on this machine can reach it while the client itself can reach relays only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from overlay.demo import uplink, view, view_money
from overlay.demo.box import LabError, wait_until
from overlay.demo.fetch import Fetched, fetch
from overlay.demo.fleet import Node
from overlay.demo.lab import missing_for_lab
from overlay.demo.live import show_live
from overlay.demo.money import COIN
from overlay.demo.view import Place, Traffic
from overlay.demo.view_money import read_account
from overlay.demo.web import checksum
from overlay.demo.world import World
from overlay.errors import LocalControlError
from overlay.node.io.local import call_local

EXITS = 2
WEB = "www.demo.test"
BIG_BYTES = {
    "auto": 50_000_000,
    "native": 200_000_000,
    "qh3": 50_000_000,
    "aioquic": 10_000_000,
    "mixed": 10_000_000,
}
INTERNET_VARIABLE = "HOPFARE_DEMO_INTERNET"
PLAIN_EVERY_S = 10.0
SETTLE_TIMEOUT_S = 120.0
STILL_TIMEOUT_S = 10.0
OK, FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asks for."""

    relays: int = 6
    hops: int = 3
    socks: str = "127.0.0.1:1080"
    quic: str = "auto"
    """auto, native (engine), qh3, aioquic, or mixed: every other relay on aioquic."""
    once: bool = False
    plain: bool = False
    money: bool = True
    """Whether relays ask a price, and a development chain settles it."""
    real_internet: bool | None = None
    """Whether exits lead to the real internet as well; None: if it can be had, and the demo keeps running."""


class _StopDemo(BaseException):
    """A signal asked for the end."""


def main(options: DemoOptions) -> int:
    """Run the demo; the exit status. Everything is undone when this returns or raises."""
    try:
        with _signals(), _listener(options.socks) as listener:
            return _Demo(options, listener).run()
    except (KeyboardInterrupt, _StopDemo):
        print("\nhopfare demo: interrupted, everything is gone again")
        return INTERRUPTED
    except LabError as error:
        print(f"hopfare demo: {error}", file=sys.stderr)
        return FAILED


class _Demo:
    """One run of the demo."""

    def __init__(self, options: DemoOptions, listener: socket.socket) -> None:
        self._options = options
        self._listener = listener
        self._socks: tuple[str, int] = listener.getsockname()[:2]
        self._console_is_live = sys.stdout.isatty() and not options.plain
        self._traffic: dict[str, Traffic] = {}
        self._joined = False
        self._path: list[Place] = []

    def run(self) -> int:
        reason = missing_for_lab()
        if reason is not None:
            raise LabError(reason)
        if self._options.hops > self._options.relays:
            raise LabError(f"{self._options.hops} hops need at least as many relays (--relays)")
        world = World(
            relays=self._options.relays,
            exits=EXITS,
            quic=self._backends(),
            money=self._options.money,
            discovery="gossip",
        )
        try:
            client = self._bring_up(world)
            self._show_once(world, client)
            if self._options.once:
                self._settle(world, client)
                return OK
            self._say("", "Ctrl-C ends the demo and removes everything.")
            with contextlib.suppress(KeyboardInterrupt, _StopDemo):
                self._keep_running(world, client)
            # A second Ctrl-C goes without the balance.
            with contextlib.suppress(KeyboardInterrupt, _StopDemo):
                self._settle(world, client)
            self._say("", "ending: relays, namespaces and files go")
            return OK
        finally:
            with _deaf():
                self._leave(world)

    def _bring_up(self, world: World) -> Node:
        begun = time.monotonic()
        rights = "as root" if os.geteuid() == 0 else "without root, in a user namespace"
        chain = ", a chain" if world.money is not None else ""
        self._say(
            f"making namespaces for {self._options.relays} relays{chain} and a small internet ({rights})"
        )
        world.open(start=False)
        if world.money is not None:
            self._say(
                f"a development chain runs ({world.money.kind}); contracts are deployed, every relay has an "
                "account with coins"
            )
        if self._wants_internet():
            self._join(world)
        self._say(
            f"starting {self._options.relays} relays, {EXITS} of them exits: each a process with its own /16"
        )
        for node in world.relays:
            node.start()
        for node in world.relays:
            node.wait_ready()
        if world.money is not None:
            self._say("every relay joins the registry with a stake, and tells the others what it offers")
        world.fleet.join()
        world.fleet.wait_known()
        client = world.fleet.client(
            {"client": {"hops": self._options.hops}}, socks_fd=self._listener.fileno(), wait=False
        )
        purse = ", and opens a purse towards its guard" if world.money is not None else ""
        self._say(f"starting the client: it builds circuits of {self._options.hops} relays{purse}")
        client.wait_ready()
        self._say(f"ready after {time.monotonic() - begun:.1f} s", "")
        return client

    def _show_once(self, world: World, client: Node) -> None:
        places = _places(world)
        fetch(self._socks, WEB, "/ip")  # the first one looks the name up, the second is what people feel
        before = _packets_by_circuit(client)
        page = fetch(self._socks, WEB, "/ip")
        path = _busiest_path(client, before, places)
        statuses = _statuses(world)
        self._say(*view.story(path, statuses, places, page), "")
        size = BIG_BYTES[self._options.quic]
        big = fetch(self._socks, WEB, f"/big/{size}")
        if big.sha256 != checksum(size):
            raise LabError("the large file came damaged through the circuit")
        self._path = _busiest_path(client, before, places)
        self._say(*view.timings(page, big))
        self._say(*self._extra_pages(), "")
        command = Path(sys.executable).with_name("hopfare")
        hopfare = str(command) if command.exists() else shutil.which("hopfare") or "hopfare"
        with contextlib.suppress(ValueError):
            hopfare = str(Path(hopfare).relative_to(Path.cwd()))
        if not self._options.once:
            guard = next(node for node in world.relays if node.name == self._path[0].name)
            self._say(
                *view.next_steps(
                    self._socks,
                    hopfare,
                    str(client.config_path),
                    real_internet=self._joined,
                    relay_config=str(guard.config_path) if world.money is not None else "",
                )
            )

    def _settle(self, world: World, client: Node) -> None:
        """Have all relays claim what they earned, and show that no money was made or lost."""
        if world.money is None:
            return
        self._say("", "settling: every relay claims on the chain what its tickets are worth")
        running = [node for node in world.relays if node.running]
        _wait_paid(running)
        with ThreadPoolExecutor(len(world.relays)) as pool:
            list(pool.map(_redeem, running))
        accounts = {node.name: read_account(_ask(node, "status"), _ask(node, "wallet")) for node in running}
        payer = read_account(_ask(client, "status"), _ask(client, "wallet"))
        self._say("", f"what each hop earned, in coins ({COIN})")
        places = {place.name: place for place in _places(world)}
        on_path = [place.name for place in self._path]
        rows = [(place, view.position(index, len(self._path))) for index, place in enumerate(self._path)]
        rows += [(place, place.role) for name, place in places.items() if name not in on_path]
        self._say(*view_money.money_table(rows, accounts, payer))
        self._say(view_money.spending(payer), "")
        balance = world.money.balance()
        names = {address: name for name, address in world.money.addresses.items()}
        self._say(*view_money.balance_lines(balance, names))
        if not balance.is_even:
            raise LabError("the sums of all money before and after are not equal")

    def _extra_pages(self) -> list[str]:
        lines = []
        pages: list[tuple[str, str, str]] = [
            ("IPv6 only", "v6only.demo.test", ""),
            ("another circuit", WEB, "somebody-else"),
        ]
        for what, host, user in pages:
            got = fetch(self._socks, host, "/ip", user=user)
            lines.append(f"{what:<20} http://{host}/ip says {_line_of(got)}")
        return lines

    def _keep_running(self, world: World, client: Node) -> NoReturn:
        places = _places(world)
        if self._console_is_live:
            show_live(lambda: self._observe(world, client, places), places)
        next_line_s = 0.0
        while True:
            _ended(world, client)
            statuses, state, rates, _ = self._observe(world, client, places)
            if time.monotonic() >= next_line_s:
                self._say(view.summary_line(statuses, state, rates))
                next_line_s = time.monotonic() + PLAIN_EVERY_S
            time.sleep(1.0)

    def _observe(
        self, world: World, client: Node, places: list[Place]
    ) -> tuple[dict[str, view.Status], view.Status | None, dict[str, float], list[dict[str, Any]]]:
        _ended(world, client)
        statuses, now_s = _statuses(world), time.monotonic()
        rates = {}
        for name, status in statuses.items():
            now = Traffic(now_s, view.packets_of(status))
            rates[name] = view.rate_bytes_per_s(self._traffic.get(name), now)
            self._traffic[name] = now
        try:
            return statuses, client.status(), rates, client.call("circuits")["circuits"]
        except LocalControlError:
            return statuses, None, rates, []

    def _backends(self) -> str | Mapping[str, str]:
        if self._options.quic != "mixed":
            return self._options.quic
        return {f"r{i}": "aioquic" for i in range(1, self._options.relays + 1, 2)}

    def _wants_internet(self) -> bool:
        if self._options.real_internet is not None:
            return self._options.real_internet
        refused = os.environ.get(INTERNET_VARIABLE, "").lower() in ("0", "no", "off") or "CI" in os.environ
        return not refused and not self._options.once and os.geteuid() == 0

    def _join(self, world: World) -> None:
        try:
            resolver = uplink.find_resolver()
            self._say(uplink.join_as_root(world.lab, resolver))
            self._joined = True
            world.start_internet(forward=resolver)
            world.wait_internet()
        except LabError as error:
            self._say(str(error))

    def _leave(self, world: World) -> None:
        with contextlib.suppress(LabError):
            uplink.leave_as_root(world.lab)
        world.close()

    def _say(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)


def _wait_paid(relays: list[Node]) -> None:
    """Wait until the last tickets of what was carried have come, or a while: others may go on."""
    seen: list[int] = []

    def still() -> bool:
        nonlocal seen
        before = seen
        seen = [read_account(_ask(node, "status"), {}).paid_wei for node in relays]
        return seen == before

    with contextlib.suppress(LabError):
        wait_until(still, STILL_TIMEOUT_S, "an end of all tickets", every_s=0.5)


def _redeem(node: Node) -> None:
    _ask(node, "wallet-redeem")


def _ask(node: Node, method: str) -> dict[str, Any]:
    try:
        return call_local(node.state_dir, method, timeout_s=SETTLE_TIMEOUT_S)
    except LocalControlError as error:
        raise LabError(f"{node.name}: {error}") from error


def _places(world: World) -> list[Place]:
    places = []
    for node in world.relays:
        country = str(node.settings["relay"]["country"])
        places.append(Place(node.name, node.role, world.lab.hosts[node.host], node.id, country))
    return places


def _statuses(world: World) -> dict[str, view.Status]:
    statuses: dict[str, view.Status] = {}
    for node in world.relays:
        with contextlib.suppress(LocalControlError):
            statuses[node.name] = node.status()
    return statuses


def _packets_by_circuit(client: Node) -> dict[int, int]:
    return {row["id"]: row["packets_down"] for row in client.call("circuits")["circuits"]}


def _busiest_path(client: Node, before: Mapping[int, int], places: list[Place]) -> list[Place]:
    """The path of the circuit that has received most since `before`: the one that the page came by."""
    rows = [row for row in client.call("circuits")["circuits"] if row["state"] != "building"]
    if not rows:
        raise LabError("the circuit was gone before it could be shown")
    row = max(rows, key=lambda row: row["packets_down"] - before.get(row["id"], 0))
    by_id = {place.node_id: place for place in places}
    return [by_id[node_id] for node_id in row["path"]]


def _line_of(page: Fetched) -> str:
    return page.text.splitlines()[0] if page.text else f"status {page.status}"


def _ended(world: World, client: Node) -> None:
    """Raise LabError if the client, or what the lab stands on, has ended by itself."""
    if not client.running:
        said = client.log_text().strip().splitlines()[-5:]
        raise LabError("the client ended by itself: " + " / ".join(said))
    if world.internet is not None and not world.internet.running:
        raise LabError("the small internet's servers ended by themselves")


@contextlib.contextmanager
def _listener(address: str) -> Iterator[socket.socket]:
    """The proxy's listening socket in the caller's network. Raises LabError if it cannot be had."""
    host, _, text = address.rpartition(":")
    host = host.strip("[]")
    if not host or not text.isdigit() or int(text) > 65535:
        raise LabError(f"--socks {address}: give an address and a port, such as 127.0.0.1:1080")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, int(text)))
            listener.listen(1024)
        except OSError as error:
            raise LabError(
                f"{address} cannot be had ({error.strerror}): another program, perhaps another hopfare or a "
                f"Tor, has that port. Choose another one: --socks {_another(host, int(text))}"
            ) from error
        yield listener


def _another(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port + 1, min(port + 50, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind((host, candidate))
            return f"[{host}]:{candidate}" if ":" in host else f"{host}:{candidate}"
    return "ADDRESS:PORT"


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that everything is tidied up on the way out."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _StopDemo

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let no signal break into the tidying up, which takes a second or two."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

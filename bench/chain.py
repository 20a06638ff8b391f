"""One chain of real nodes on this machine, loaded through its SOCKS5 proxy.

Three relays (the last one an exit) and a client, each a process of its own with real QUIC and TUN, in network
namespaces joined by veth pairs; the target servers are in another namespace behind the exit. Loaded by
`load.py`, the very code that measures Tor.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import emulate
import load
import udp

from overlay.demo import fleet, kernel
from overlay.demo.box import LabError, Process, wait_until
from overlay.demo.fleet import PORT, Node
from overlay.demo.lab import CLIENT, INTERNET
from overlay.demo.names import WWW_V4
from overlay.demo.toml import Settings
from overlay.demo.world import World
from overlay.errors import OverlayError

SOCKS = ("127.0.0.1", 1080)
IDLE_S = 20.0
PARALLEL = 500
PARALLEL_TIMEOUT_S = 60.0
Say = Callable[[str], None]


class Chain:
    """A running chain with one client. Context manager."""

    def __init__(
        self,
        backend: str,
        hops: int,
        *,
        client: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Settings] | None = None,
        controller: str | None = None,
        emulated: str | None = None,
    ) -> None:
        """Plan it: `hops` relays, the last one an exit; `client` are more settings of the client, `overrides`
        of relays by name. `controller` is the congestion control of all nodes (native engine only);
        the relay `emulated` is reached through an emulated link (from the port it
        advertises to the one after).
        """
        self.backend = backend
        self.hops = hops
        self.controller = controller
        self.world = World(relays=hops, exits=1, quic=backend, internet=False, overrides=overrides)
        self._client_settings = {
            "client": {"hops": hops, "circuits_ready": 1, "rotation": "1d", **(client or {})}
        }
        self._emulated = emulated
        self.emulator: emulate.Emulator | None = None
        self._holders: dict[str, Process] = {}
        self.client: Node

    def __enter__(self) -> Chain:
        with _controlled_by(self.controller):
            self._open()
        return self

    def _open(self) -> None:
        self.world.open(start=False)
        try:
            for host in filter(None, (CLIENT, INTERNET, self._emulated)):
                self._hold(host)
            if self._emulated is not None:
                address = self.world.lab.hosts[self._emulated].ipv4
                with self.inside(self._emulated):
                    self.emulator = emulate.Emulator(f"{address}:{PORT}", f"{address}:{PORT + 1}")
                    self.emulator.__enter__()
            # Only now: a relay that finds no answer waits before it tries again.
            self.world.fleet.start()
            self.client = self.world.fleet.client(self._client_settings)
        except BaseException:
            self.__exit__()
            raise

    def _hold(self, host: str) -> None:
        """Have a process in a host's namespace, by which that is entered."""
        holder = self._holders[host] = self.world.lab.spawn(host, ["sleep", "infinity"], log=f"holder-{host}")
        # It is there once it has become the program; before that it may still be in a namespace of ours.
        name = Path(f"/proc/{holder.pid}/comm")
        wait_until(lambda: name.read_text() == "sleep\n", 10, f"a process in {host}")

    def __exit__(self, *_: object) -> None:
        if self.emulator is not None:
            self.emulator.__exit__()
        self.world.close()

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Move this thread into a host's network namespace for a while; children are born there."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.enter_network(f"/proc/{self._holders[host].pid}/ns/net")
            try:
                yield
            finally:
                kernel.setns(home, kernel.CLONE_NEWNET)
        finally:
            os.close(home)

    @contextmanager
    def target(self, size_mb: int) -> Iterator[load.Target]:
        """The target servers, in the internet namespace."""
        servers = load.Target(WWW_V4, size_mb)
        with self.inside(INTERNET):
            servers.__enter__()
        try:
            yield servers
        finally:
            servers.__exit__()

    def processes(self) -> dict[str, int]:
        """Everything that is charged: relays by their place, the client, and what the client started."""
        named = {}
        for number, node in enumerate(self.world.relays, 1):
            named[f"relay{number}"] = _pid(node)
            for index, child in enumerate(children(_pid(node)), 1):
                named[f"relay{number} child {index}"] = child
        named["client"] = _pid(self.client)
        for index, child in enumerate(children(_pid(self.client)), 1):
            named[f"client child {index}"] = child
        return named


@contextmanager
def _controlled_by(controller: str | None) -> Iterator[None]:
    """Start nodes with another congestion control, which is no setting: nobody but a benchmark wants it."""
    plain = fleet._HOPFARE
    if controller is not None:
        fleet._HOPFARE = (
            "from overlay.engine.io import native_links; "
            "native_links.open_native_links.__wrapped__.__kwdefaults__.update(controller="
            f"{controller!r}); {plain}"
        )
    try:
        yield
    finally:
        fleet._HOPFARE = plain


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listing.read_text().split()):
            found += [child, *children(child)]
    return found


def measure(
    result: dict[str, Any],
    backend: str,
    hops: int,
    options: Mapping[str, int],
    parts: list[str],
    quiet: load.Quiet,
    say: Say,
    *,
    idle_s: float = IDLE_S,
    build_count: int = 50,
) -> bool:
    """Fill `result` with all but memory per circuit, on one chain; False if a part could not be measured.

    `parts` are of down, up, req, udp. Raises LabError if there is no chain at all.
    """
    fine = True
    roomy = {"max_circuits": 200}
    with Chain(backend, hops, client=roomy) as chain, chain.target(options["size_mb"]) as target:
        processes = chain.processes()
        result |= {"backend": backend, "hops": hops}
        if idle_s:
            result["idle_percent"] = idle(processes, say, idle_s)
        # One by one, so that what fails costs nothing else.
        steps: list[Callable[[], dict[str, Any]]] = [
            lambda part=part: load.measure(target, SOCKS, processes, dict(options), say, (part,), quiet)
            for part in ("down", "up", "req")
            if part in parts
        ]
        if "req" in parts:
            steps.append(lambda: {"parallel": parallel(target, say)})
            steps.append(lambda: {"build_ms": builds(chain, target, say, build_count)})
        if "udp" in parts:
            steps.append(lambda: {"udp": _udp(chain, processes, say)})
        for step in steps:
            try:
                with chain.inside(CLIENT):
                    result |= step()
            except (OverlayError, RuntimeError, OSError) as error:
                fine = False
                say(f"  could not be measured: {error}")
        result["status"] = {node.name: node.status() for node in chain.world.relays if node.running}
        result["mem_after"] = {name: load.mem_of(pid) for name, pid in processes.items() if _alive(pid)}
    return fine


def _udp(chain: Chain, processes: Mapping[str, int], say: Say) -> dict[str, Any]:
    with chain.inside(INTERNET):
        sink = udp.Sink(WWW_V4).__enter__()
    try:
        with chain.inside(CLIENT):
            return udp.measure(sink, WWW_V4, SOCKS, processes, say)
    finally:
        sink.__exit__()


def speeds(
    result: dict[str, Any], backend: str, hops: int, options: Mapping[str, int], quiet: load.Quiet, say: Say
) -> None:
    """Fill `result` with the speed of one stream each way, on a chain of its own. Raises as ``measure``."""
    with Chain(backend, hops) as chain, chain.target(options["size_mb"]) as target, chain.inside(CLIENT):
        args = (chain.processes(), target.pids)
        for key, up in (("down_1", False), ("up_1", True)):
            got = result[key] = load.throughput(target, SOCKS, args, up, 1, min(3, options["reps"]), quiet)
            speed, cpu = got["MB_per_s"]["median"], got["cpu_s_per_GB"]["median"]
            say(f"  {hops} hops {key:7} {speed:8.1f} MB/s   {cpu:.2f} CPU s/GB")


def idle(processes: Mapping[str, int], say: Say, seconds: float = IDLE_S) -> dict[str, float]:
    """CPU of each process while nothing is carried, in percent of a core."""
    before = {name: _cpu_ns(pid) for name, pid in processes.items()}
    begun = time.monotonic()
    time.sleep(seconds)
    wall_ns = (time.monotonic() - begun) * 1e9
    used = {name: round((_cpu_ns(pid) - before[name]) / wall_ns * 100, 3) for name, pid in processes.items()}
    say(f"  idle        worst {max(used.values()):.2f} % of a core")
    return used


def parallel(target: load.Target, say: Say, count: int = PARALLEL) -> dict[str, Any]:
    """`count` connections through the proxy, all open before the first one asks for anything."""
    ready = threading.Barrier(count)
    failures: list[str] = []
    times: list[float] = []

    def one() -> None:
        begun = time.monotonic()
        try:
            with socket.create_connection(SOCKS, PARALLEL_TIMEOUT_S) as connection:
                connection.sendall(b"\x05\x01\x00")
                load.read_n(connection, 2)
                connection.sendall(load.socks_connect_bytes(target.addr, target.port))
                if load.read_n(connection, 10)[1]:
                    raise ConnectionError("refused")
                ready.wait(PARALLEL_TIMEOUT_S)
                connection.sendall(load.get_bytes(target))
                received = b""
                while data := connection.recv(65536):
                    received += data
                if not received.endswith(load.SMALL):
                    raise ConnectionError("bad reply")
            times.append(time.monotonic() - begun)
        except (OSError, RuntimeError) as error:
            failures.append(f"{type(error).__name__}: {error}")
            ready.abort()

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slowest = max(times, default=0.0)
    say(f"  parallel    {count - len(failures)} of {count} connections, the slowest took {slowest:.2f} s")
    return {
        "connections": count,
        "failed": len(failures),
        "failures": failures[:5],
        "slowest_s": round(slowest, 3),
    }


def builds(chain: Chain, target: load.Target, say: Say, count: int = 50) -> dict[str, Any]:
    """How long circuits take to build, one after the other, as the client itself measures it.

    Each new user name at the proxy needs a circuit of its own.
    """
    before = {circuit["id"] for circuit in _circuits(chain)}
    for i in range(count):
        load.transfer(target, SOCKS, False, 1, 1000, [f"build{i}:x"])
        wait_until(
            lambda: all(circuit["state"] != "building" for circuit in _circuits(chain)), 10, "a circuit"
        )
    fresh = [c for c in _circuits(chain) if c["id"] not in before and c["build_ms"] is not None]
    summary: dict[str, Any] = load.summary([float(circuit["build_ms"]) for circuit in fresh], 2)
    say(f"  builds      {summary['median']:.1f} ms  [{summary['min']:.1f} .. {summary['max']:.1f}]")
    return summary


def per_circuit(backend: str, hops: int, count: int, say: Say) -> dict[str, Any]:
    """Memory that each process takes for a circuit: `count` of them, by as many proxy user names."""
    with Chain(backend, hops, client={"max_circuits": count + 24}) as chain, chain.target(1) as target:
        processes = chain.processes()

        def use(user: str) -> None:
            load.transfer(target, SOCKS, False, 1, 1000, [f"{user}:x"])

        with chain.inside(CLIENT):
            for i in range(8):
                use(f"warm{i}")
            before = {name: _rss_kb(pid) for name, pid in processes.items()}
            for i in range(count):
                use(f"user{i}")
            after = {name: _rss_kb(pid) for name, pid in processes.items()}
        circuits = {node.name: node.status()["circuits"] for node in chain.world.relays}
    each = {name: round((after[name] - before[name]) / count, 2) for name in processes}
    worst = max(value for name, value in each.items() if name.startswith("relay"))
    say(f"  memory      {worst:.1f} KB for each of {count} circuits in the relay that takes most")
    return {"circuits": circuits, "added": count, "KB_each": each, "worst_KB": worst}


def _circuits(chain: Chain) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chain.client.call("circuits")["circuits"]
    return found


def _pid(node: Node) -> int:
    if node.process is None:
        raise LabError(f"{node.name} does not run")
    return node.process.pid


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _cpu_ns(pid: int) -> int:
    """CPU time of a process, all its threads, in nanoseconds: finer than the ticks of /proc/PID/stat."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(path.read_text().split()[0])
    return total


def _rss_kb(pid: int) -> float:
    return float(load.mem_of(pid)["VmRSS_MiB"]) * 1048.576

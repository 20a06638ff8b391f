"""`bench/congestion`: the chain of three relays with one emulated link, under each congestion controller.

The link to the exit goes through `bench/emulate`: delay each way, loss by chance, a bottleneck with a
bounded queue. TCP is one download through SOCKS5 for some seconds; the waiting time is what small datagrams
of another socket see on their way to the exit meanwhile. UDP is an even stream at 60 % of the bottleneck
(2,000 datagrams per second at most). TCP in the namespaces is cubic.

    bench/congestion --json results.json --plot docs/decisions/0014-congestion.svg
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chain
import emulate
import load
import plots
import targets
import udp

from overlay.demo.box import wait_until
from overlay.demo.fleet import PORT
from overlay.demo.lab import CLIENT, INTERNET, missing_for_lab
from overlay.demo.names import WWW_V4
from overlay.errors import OverlayError

CONTROLLERS = ("cubic", "newreno", "bbr")
QUEUE_MS = 50.0
SETTLE_S = 0.3
UDP_SHARE = 0.6
MAX_UDP_PER_S = 2000
DEAD_S = 20.0

# Sends as fast as it can to whoever says "D", swallows what those send who say "U"; prints its port.
_SERVER = """
import socket, sys, threading
server = socket.create_server((sys.argv[1], 0), backlog=64)
print(server.getsockname()[1], flush=True)
def serve(sock):
    buffer = bytearray(1 << 16)
    try:
        if sock.recv(1) == b"D":
            while True:
                sock.sendall(buffer)
        got = 0
        while True:
            count = sock.recv_into(buffer)
            if not count:
                return
            got += count
            sock.send(b"." * min(count, 1))
    except OSError:
        pass
while True:
    sock, _ = server.accept()
    threading.Thread(target=serve, args=(sock,), daemon=True).start()
"""


@contextmanager
def server(address: str) -> Iterator[int]:
    """The endless server, in the caller's network namespace: its port."""
    process = subprocess.Popen([sys.executable, "-c", _SERVER, address], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def dial(port: int) -> socket.socket:
    """A stream to the endless server through the proxy."""
    sock = socket.create_connection(chain.SOCKS, DEAD_S)
    sock.settimeout(DEAD_S)
    sock.sendall(b"\x05\x01\x00")
    load.read_n(sock, 2)
    sock.sendall(load.socks_connect_bytes(WWW_V4, port))
    if load.read_n(sock, 10)[1]:
        raise RuntimeError("the proxy refused the stream")
    return sock


def download(port: int, seconds: float, skip_s: float) -> float:
    """Mbit/s of one stream over the last `seconds`, after `skip_s` in which it finds its speed."""
    with dial(port) as sock:
        sock.sendall(b"D")
        buffer = bytearray(1 << 20)
        start, got = time.monotonic() + skip_s, 0
        while True:
            count = sock.recv_into(buffer)
            now = time.monotonic()
            if now >= start:
                got += count
            if now >= start + seconds:
                return got * 8 / (now - start) / 1e6


def renew(chained: chain.Chain, port: int, link: dict[str, float]) -> None:
    """Have a new link to the exit under a new condition: start the exit again.

    A delay that grows on a living link would be another matter: BBR keeps the least of ten seconds, and loss
    recovery takes what is late for lost.
    """
    assert chained.emulator is not None
    chained.emulator.change(**link)
    chained.world.relays[-1].restart()

    def works() -> bool:
        try:
            with chained.inside(CLIENT):
                dial(port).close()
        except (OSError, RuntimeError):
            return False
        return True

    wait_until(works, 30, "a circuit over the new link")


def probe(associated: udp.Associated, stop: threading.Event) -> int:
    """Small datagrams, 50 a second, until told to stop; how many."""
    count = 0
    while not stop.wait(0.02):
        count += associated.send_one(count, 64)
    return count


def one(
    port: int, sink: udp.Sink, link: dict[str, float], seconds: float, chained: emulate.Emulator
) -> dict[str, Any]:
    """One condition: TCP with probes beside it, then UDP alone."""
    before = chained.stats()
    skip_s = 1.0 + link["delay_ms"] / 1e3 * 60  # slow start, of two congestion controls one in the other
    result: dict[str, Any] = dict(link)
    stop = threading.Event()
    with udp.Associated(chain.SOCKS, (WWW_V4, sink.port)) as associated:
        probes = threading.Thread(target=probe, args=(associated, stop))
        probes.start()
        try:
            result["tcp_mbit"] = round(download(port, seconds, skip_s), 2)
        except (OSError, RuntimeError) as error:
            result |= {"tcp_mbit": 0.0, "tcp_error": str(error)}
        finally:
            stop.set()
            probes.join()
        time.sleep(SETTLE_S)
        associated.mark()
        _, median_ms, worst_ms = sink.read()
        result |= {"probe_ms_p50": round(median_ms, 1), "probe_ms_p99": round(worst_ms, 1)}
        per_s = min(MAX_UDP_PER_S, link["rate_mbit"] * 1e6 * UDP_SHARE / 8 / udp.SIZE_BYTES)
        sent = associated.stream(per_s, seconds / 2, settle_s=1.0)
        came, median_ms, worst_ms = sink.read()
        result |= {
            "udp_per_s": round(per_s),
            "udp_loss": round(1 - came / sent, 4),
            "udp_ms_p50": round(median_ms, 1),
            "udp_ms_p99": round(worst_ms, 1),
        }
    after = chained.stats()
    result["link"] = {
        way: {
            name: count if name == "late_us" else count - before[way][name]
            for name, count in after[way].items()
        }
        for way in after
    }
    return result


def measure(controller: str, conditions: Sequence[dict[str, float]], seconds: float) -> list[dict[str, Any]]:
    """All conditions under one controller. Raises LabError, EmulatorError."""
    exit_host = "r3"
    behind = {exit_host: {"relay": {"listen": [f"10.3.0.1:{PORT + 1}"], "advertise": [f"10.3.0.1:{PORT}"]}}}
    results = []
    with chain.Chain("native", 3, overrides=behind, controller=controller, emulated=exit_host) as chained:
        assert chained.emulator is not None
        with chained.inside(INTERNET):
            sink = udp.Sink(WWW_V4).__enter__()
            serving = server(WWW_V4)
            port = serving.__enter__()
        try:
            for link in conditions:
                try:
                    renew(chained, port, link)
                    with chained.inside(CLIENT):
                        result = one(port, sink, link, seconds, chained.emulator)
                except (OverlayError, RuntimeError, OSError) as error:
                    result = dict(link) | {"error": str(error)}
                results.append({"controller": controller, **result})
                print("  " + _line(results[-1]), flush=True)
        finally:
            serving.__exit__(None, None, None)
            sink.__exit__()
    return results


def _line(result: dict[str, Any]) -> str:
    link = f"{result['rate_mbit']:g} Mbit/s, {result['delay_ms']:g} ms, {result['loss'] * 100:g} % loss"
    if "error" in result:
        return f"{link}: {result['error']}"
    return (
        f"{link}: TCP {result['tcp_mbit']:.1f} Mbit/s, probes {result['probe_ms_p50']:.0f} ms (p99"
        f" {result['probe_ms_p99']:.0f}); UDP lost {result['udp_loss'] * 100:.1f} %,"
        f" {result['udp_ms_p50']:.0f} ms (p99 {result['udp_ms_p99']:.0f})"
    )


def table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """One line for each link, and for each controller what TCP and UDP got there."""
    names = [name for name in CONTROLLERS if any(result["controller"] == name for result in results)]
    head = ["link"]
    for what in ("TCP Mbit/s", "wait p99 ms", "UDP lost %"):
        head += [f"{what} {name}" for name in names]
    links: dict[tuple[float, ...], dict[str, dict[str, Any]]] = {}
    for result in results:
        links.setdefault((result["rate_mbit"], result["delay_ms"], result["loss"]), {})[
            result["controller"]
        ] = result
    lines = []
    for (rate, delay, loss), found in links.items():
        cells = [f"{rate:g} Mbit/s, {delay:g} ms, {loss * 100:g} %"]
        for key, scale in (("tcp_mbit", 1.0), ("probe_ms_p99", 1.0), ("udp_loss", 100.0)):
            for name in names:
                value = found.get(name, {}).get(key)
                cells.append("-" if value is None else f"{value * scale:.1f}")
        lines.append(cells)
    return head, lines


def main() -> int:
    """Measure, print and plot; 2 if nothing can be measured."""
    parser = argparse.ArgumentParser(
        prog="bench/congestion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--controllers", default=",".join(CONTROLLERS))
    parser.add_argument("--delays", default="0,25,50", help="ms each way (default 0,25,50)")
    parser.add_argument("--losses", default="0,0.001,0.01", help="shares (default 0,0.001,0.01)")
    parser.add_argument("--rates", default="10,100", help="Mbit/s (default 10,100)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of TCP for each figure (default 4)")
    parser.add_argument("--json", type=Path, help="read it if it is there, add to it, write it")
    parser.add_argument("--plot", type=Path, help="write an SVG")
    parser.add_argument("--only-plot", action="store_true", help="measure nothing: tables and plot of --json")
    arguments = parser.parse_args()
    load.on_signals()
    kept: list[dict[str, Any]] = []
    if arguments.json is not None and arguments.json.exists():
        kept = json.loads(arguments.json.read_text())["results"]
    if not arguments.only_plot:
        reason = missing_for_lab() if os.geteuid() == 0 else "bench/congestion needs root"
        if reason is not None:
            print(reason)
            return 2
        conditions = [
            {"rate_mbit": rate, "delay_ms": delay, "loss": loss, "queue_ms": QUEUE_MS}
            for rate, delay, loss in itertools.product(
                *(
                    [float(value) for value in given.split(",")]
                    for given in (arguments.rates, arguments.delays, arguments.losses)
                )
            )
        ]
        for controller in arguments.controllers.split(","):
            print(f"\n{controller}", flush=True)
            try:
                results = measure(controller, conditions, arguments.seconds)
            except (OverlayError, RuntimeError, OSError) as error:
                print(f"  could not be measured: {error}")
                continue
            fresh = {_key(result) for result in results}
            kept = [result for result in kept if _key(result) not in fresh] + results
            if arguments.json is not None:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps({"results": kept}, indent=1))
    if not kept:
        return 2
    print("\n" + targets.render(*table(kept)))
    if arguments.plot is not None:
        arguments.plot.write_text(plots.congestion(kept, CONTROLLERS))
    return 0


def _key(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["controller"], result["rate_mbit"], result["delay_ms"], result["loss"]


if __name__ == "__main__":
    sys.exit(main())

"""What system tests use: a world of real nodes in namespaces, put right again between tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from overlay.demo.box import Completed, LabError, wait_until
from overlay.demo.capture import CapturedPacket
from overlay.demo.fleet import Node
from overlay.demo.lab import CLIENT
from overlay.demo.links import Capture
from overlay.demo.toml import Settings
from overlay.demo.world import PROXY, World

__all__ = ["CLIENT", "PROXY", "CapturedPacket", "Completed", "LabError", "SystemLab", "wait_until"]


class SystemLab:
    """A running world. `client()` starts (or keeps) a client; everything else acts on what is there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lab = world.lab
        self.links = world.links
        self._client_settings: Settings | None = None

    @property
    def relays(self) -> list[Node]:
        """r1 ... rN, the exits last."""
        return self.world.relays

    @property
    def exits(self) -> list[Node]:
        return self.world.fleet.exits

    def relay(self, name: str) -> Node:
        return next(node for node in self.relays if node.name == name)

    def client(self, overrides: Settings | None = None) -> Node:
        """The client, ready, with these settings on top of the defaults; restarted only if they differ."""
        wanted = overrides or {}
        running = next((node for node in self.world.fleet.clients if node.name == CLIENT), None)
        if running is not None and running.running and self._client_settings == wanted:
            running.wait_ready()
            return running
        node = self.world.fleet.client(wanted)
        self._client_settings = wanted
        return node

    def circuits(self) -> list[dict[str, Any]]:
        """What `hopfare circuits --json` shows of the client."""
        found: list[dict[str, Any]] = self.client_node().call("circuits")["circuits"]
        return found

    def client_node(self) -> Node:
        return next(node for node in self.world.fleet.clients if node.name == CLIENT)

    def client_curl(self, *arguments: str, user: str | None = None, timeout_s: float = 60.0) -> Completed:
        """curl in the client's namespace, through its SOCKS5 proxy, names resolved at the exit."""
        return self.world.curl(*arguments, user=user, timeout_s=timeout_s)

    def run_in(self, host: str, argv: list[str], **options: Any) -> Completed:
        """Run a program to its end in the namespace of a host: r1 ... rN, client, internet or hub."""
        return self.lab.run(host, argv, **options)

    def restart(self, node: Node) -> None:
        node.restart()

    def kill(self, node: Node) -> None:
        """kill -9."""
        node.kill()

    @contextmanager
    def capture_all(self, *hosts: str, segmented: bool = True) -> Iterator[dict[str, Capture]]:
        """Capture on the links of `hosts` (default: all relays and the client); stopped at the end.

        With `segmented` every packet is one, as on a real wire; super-packets are whole otherwise.
        """
        chosen = hosts or (*(node.host for node in self.relays), CLIENT)
        for host in chosen:
            self.links.segment(host, on=segmented)
        captures = {host: self.links.capture(host) for host in chosen}
        try:
            yield captures
        finally:
            for host, capture in captures.items():
                capture.stop()
                self.links.segment(host, on=False)

    def queries(self) -> list[dict[str, Any]]:
        """DNS queries that the small internet's name server has got, the oldest first."""
        import json

        log = self.world.internet_folder / "queries.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def put_right(self) -> None:
        """Bring back what a test has killed, cut or slowed down."""
        for host in self.lab.hosts:
            self.links.restore(host)
        dead = [node for node in self.relays if not node.running]
        for node in dead:
            node.start()
        for node in dead:
            node.wait_ready()

    def stop_client(self) -> None:
        for node in self.world.fleet.clients:
            node.stop()
        self._client_settings = None

    def logs(self, last_chars: int = 3000) -> str:
        """The end of every node's log, for a failed test's report."""
        nodes = (*self.world.fleet.clients, *self.relays)
        return "\n".join(
            f"--- {node.name} ({'running' if node.running else 'ended'})\n{node.log_text()[-last_chars:]}"
            for node in nodes
        )

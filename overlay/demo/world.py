"""The whole of it: a lab, its small internet and a fleet of nodes, opened and closed together.

    with World(relays=6, exits=2) as world:
        client = world.fleet.client({"client": {"hops": 3}})
        world.curl("http://www.demo.test/ip").text

The demo, the system tests and the benchmarks all stand on this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from overlay.demo.box import Completed, LabError, Process, wait_until
from overlay.demo.fleet import Fleet, Node
from overlay.demo.lab import CLIENT, INTERNET, Lab
from overlay.demo.links import Links
from overlay.demo.money import Money
from overlay.demo.toml import Settings

INTERNET_TIMEOUT_S = 30.0
PROXY = "127.0.0.1:1080"


class World:
    """Lab, internet and fleet. Context manager; on entry all relays are ready, no client runs yet."""

    def __init__(
        self,
        *,
        relays: int = 6,
        exits: int = 2,
        quic: str | Mapping[str, str] = "auto",
        overrides: Mapping[str, Settings] | None = None,
        rootless: bool | None = None,
        parent: Path | None = None,
        keep_folder: bool = False,
        internet: bool = True,
        money: bool = False,
        discovery: Literal["list", "gossip"] = "list",
    ) -> None:
        """Plan it; see `Lab` and `Fleet` for the arguments. Without `internet` no servers are started, with
        `money` a development chain is. With `discovery` "gossip" relays find each other, by the registry if
        there is a chain; else one signed list has all descriptors.
        """
        self.lab = Lab(relays, rootless=rootless, parent=parent, keep_folder=keep_folder)
        self.links = Links(self.lab)
        self.money = Money(self.lab) if money else None
        self.internet: Process | None = None
        self._fleet: Fleet | None = None
        self._exits = exits
        self._quic = quic
        self._overrides = overrides
        self._with_internet = internet
        self._discovery: Literal["list", "gossip"] = discovery

    def __enter__(self) -> Self:
        """Open everything."""
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        self.close()

    @property
    def fleet(self) -> Fleet:
        """The nodes. Raises LabError before `open`."""
        if self._fleet is None:
            raise LabError("the lab is not open")
        return self._fleet

    @property
    def relays(self) -> list[Node]:
        """The relays, the exits last."""
        return self.fleet.relays

    def open(self, *, start: bool = True) -> None:
        """Make the lab, start the servers and (with `start`) the relays; wait until all are ready.

        Raises LabError, with everything undone.
        """
        try:
            self.lab.open()
            if self.money is not None:
                self.money.start()
            if self._with_internet:
                self.start_internet()
            if self.money is not None:
                self.money.wait_ready()
            self._fleet = Fleet(
                self.lab,
                exits=self._exits,
                quic=self._quic,
                overrides=self._overrides,
                money=self.money,
                discovery=self._discovery,
            )
            if start:
                self._fleet.start()
            if self._with_internet:
                self.wait_internet()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the nodes in order, end everything else, remove all; harmless twice."""
        with contextlib.suppress(LabError):
            if self._fleet is not None:
                self._fleet.stop()
        self._fleet = None
        self.lab.close()

    def start_internet(self, *, forward: str | None = None) -> None:
        """Start the small internet's servers; `forward` is the resolver for names that are not theirs."""
        if self.internet is not None:
            self.internet.stop()
            self.lab.log_path(INTERNET).unlink(missing_ok=True)
        arguments = [str(self.internet_folder)]
        if forward is not None:
            arguments += ["--forward", forward]
        self.internet = self.lab.python(INTERNET, "overlay.demo.internet", *arguments, log=INTERNET)

    def wait_internet(self) -> None:
        """Wait until the servers answer. Raises LabError if they do not start."""

        def ready() -> bool:
            if self.internet is None or not self.internet.running:
                raise LabError(f"the small internet ended: {self.lab.log_text(INTERNET).strip()[-1000:]}")
            return "git ready" in self.lab.log_text(INTERNET)

        wait_until(ready, INTERNET_TIMEOUT_S, "the start of the small internet")

    @property
    def internet_folder(self) -> Path:
        """Where the servers keep `ca.pem`, `queries.log` and the repository."""
        return self.lab.path / INTERNET

    def curl(
        self, *arguments: str, proxy: str | None = PROXY, user: str | None = None, timeout_s: float = 60.0
    ) -> Completed:
        """Run curl in the client's namespace, through its proxy, names resolved at the exit.

        `user` is NAME:PASSWORD for the proxy. `proxy` None goes without, which must not get anywhere.
        """
        argv = [
            "curl",
            "-sS",
            "--max-time",
            f"{timeout_s:g}",
            "--cacert",
            str(self.internet_folder / "ca.pem"),
        ]
        if proxy is not None:
            argv += ["--proxy", f"socks5h://{f'{user}@' if user else ''}{proxy}"]
        else:
            argv += ["--noproxy", "*"]
        return self.lab.run(CLIENT, [*argv, *arguments], timeout_s=timeout_s + 10)

    def path_of(self, ids: list[str]) -> list[str]:
        """Names of relays by their identities, as a path is shown; an unknown one stays as it is."""
        nodes = [self.fleet.by_id(node_id) for node_id in ids]
        return [node.name if node else node_id for node, node_id in zip(nodes, ids, strict=True)]

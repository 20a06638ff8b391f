"""The fleet: hopfare nodes as real processes in a lab, with identities, configurations and a seed list.

Owns how nodes are set up, started, watched and stopped. What they are told is in files that a person could
have written; what they say comes from their control sockets. Nothing here talks to a node in any other way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from overlay.config.check import check_client, check_relay
from overlay.config.io.load import load_config
from overlay.demo.box import LabError, Process, wait_until
from overlay.demo.lab import CLIENT, INTERNET_RANGES, Host, Lab, python_environment, sys_executable
from overlay.demo.money import Money
from overlay.demo.names import DNS_V4
from overlay.demo.toml import Settings, Value, merge, render
from overlay.describe import describe_node
from overlay.descriptor import Address, SignedDescriptor
from overlay.errors import LocalControlError
from overlay.identity import Identity
from overlay.node.io.files import IDENTITY_FILE, load_onion_keys
from overlay.node.io.local import call_local
from overlay.node.io.stake import join_params
from overlay.node.suites import offered_suites
from overlay.seedlist import ListedMember, sign_seed_list
from payments.keys import parse_address

PORT = 4433
JOIN_TIMEOUT_S = 120.0
KNOWN_TIMEOUT_S = 90.0
STAKE_WEI = 10**18
READY_TIMEOUT_S = 60.0
NETWORK = "lab"
ENGINE_VARIABLE = "HOPFARE_LAB_ENGINE"
"""For trying a whole lab, or all system tests, on another engine: scripts/test --engine."""
# What the console script does, but surely with the source tree that we are part of.
_HOPFARE = "from overlay.cli.main import main; main()"
_LIST_LIFETIME_S = 30 * 86400
_PRICES = ("0.04 per GB", "0.05 per GB", "0.06 per GB")
_EXIT_PRICE = "0.1 per GB"
_COUNTRIES = ("SE", "NL", "DE", "FR", "CH", "FI", "PT", "CA", "JP", "BR")
# Where names of the small internet's kind end: nothing in a lab is to reach real machines through an exit.
_POLICY = "accept *:*\n"


class Node:
    """One hopfare process: its files, and the process while it runs."""

    def __init__(self, lab: Lab, name: str, host: str, role: str, settings: Settings) -> None:
        """Write its configuration and identity under the lab's folder; start nothing."""
        self.name = name
        self.host = host
        self.role = role
        self.folder = lab.path / name
        self.config_path = self.folder / "hopfare.toml"
        self.state_dir = self.folder / "state"
        self.process: Process | None = None
        self._lab = lab
        self._started_at = 0
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        self.settings = merge({"node": {"state_dir": str(self.state_dir)}}, settings)
        self.config_path.write_text(render(self.settings))
        identity_file = self.state_dir / IDENTITY_FILE
        if not identity_file.exists():
            Identity.generate().save(identity_file)
        self.identity = Identity.load(identity_file)

    @property
    def id(self) -> str:
        """The node's identity in its text form."""
        return self.identity.name

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.running

    def configure(self, changes: Settings) -> None:
        """Change its configuration file; a running process goes on with the old one."""
        self.settings = merge(self.settings, changes)
        self.config_path.write_text(render(self.settings))

    def start(self, *, socks_fd: int | None = None, arguments: Sequence[str] = ()) -> None:
        """Start the process, without waiting for it.

        `socks_fd` is a listening TCP socket that the client takes over by socket activation.
        """
        if self.running:
            return
        argv = [sys_executable(), "-c", _HOPFARE, self.role, "--config", str(self.config_path), *arguments]
        given = {} if socks_fd is None else {3: socks_fd}
        self._started_at = len(self.log_text())
        self.process = self._lab.spawn(
            self.host,
            argv,
            log=self.name,
            env=python_environment(),
            cwd=self.folder,
            fds=given,
            listen=len(given),
        )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Wait until it says that it is ready; its status. Raises LabError with its last words if it ends."""
        last: dict[str, Any] = {}

        def ready() -> bool:
            nonlocal last
            self._must_run()
            try:
                last = self.status()
            except LocalControlError:
                return False
            return bool(last.get("ready"))

        try:
            wait_until(ready, timeout_s, f"{self.name}'s readiness", every_s=0.05)
        except LabError as error:
            problems = "; ".join(map(str, last.get("problems", [])))
            raise LabError(f"{error}{f' ({problems})' if problems else ''}") from None
        return last

    def status(self) -> dict[str, Any]:
        """What `hopfare status --json` shows. Raises LocalControlError when it does not answer."""
        return self.call("status")

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask its control socket. Raises LocalControlError."""
        return call_local(self.state_dir, method, params)

    def stop(self) -> int | None:
        """End it as an operator would (SIGTERM); its exit code, None if it was not running."""
        return None if self.process is None else self.process.stop()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        if self.process is not None:
            self.process.kill()

    def restart(self) -> None:
        """Stop it if it runs, start it again, and wait until it is ready."""
        self.stop()
        self.start()
        self.wait_ready()

    def log_text(self) -> str:
        """Everything that it has written so far, over all its lives."""
        return self._lab.log_text(self.name)

    def describe(self) -> SignedDescriptor:
        """Its descriptor, as `hopfare init` exports it. Raises OverlayError if its configuration is wrong."""
        config = load_config(self.config_path, environ={})
        problems = check_relay(config, with_network=False)
        if problems:
            raise LabError(f"the configuration of {self.name}: {'; '.join(problems)}")
        now_s = time.time()
        keys = load_onion_keys(config, now_s, os.urandom)
        return describe_node(
            config,
            self.identity,
            onion_key=keys.current.public,
            previous_onion_key=b"",
            as_exit=self.role == "exit",
            has_ipv6=config.exit.ipv6 != "off",
            suites=offered_suites(),
            now_s=now_s,
        )

    def _must_run(self) -> None:
        if not self.running:
            code = None if self.process is None else self.process.poll()
            said = self.log_text()[self._started_at :].strip()[-1500:]
            raise LabError(f"{self.name} ended with {code}: {said or 'it said nothing'}")


def default_carriers(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return what carries the nodes that a lab says nothing about, in turn: what the variable
    ``HOPFARE_LAB_ENGINE`` asks for ("native", "threads", "python", or "mixed"), else whichever engine there
    is. Raises LabError.
    """
    asked = environ.get(ENGINE_VARIABLE, "auto")
    try:
        return {
            "auto": ("auto",),
            "native": ("native",),
            "threads": ("threads",),
            "python": ("qh3",),
            "mixed": ("native", "qh3"),
        }[asked]
    except KeyError:
        raise LabError(
            f"{ENGINE_VARIABLE} is {asked!r}: it may be auto, native, threads, python or mixed"
        ) from None


def carrier(quic: str) -> dict[str, Value]:
    """Return what [node] says for the native engine ("native", or with several "threads"), the Python engine
    on "qh3" or "aioquic", or whichever there is ("auto").
    """
    if quic in ("auto", "native"):
        return {"engine": quic}
    if quic == "threads":
        return {"engine": "native", "engine_threads": 3}
    return {"engine": "python", "quic": quic}


class Fleet:
    """All nodes of one lab."""

    def __init__(
        self,
        lab: Lab,
        *,
        exits: int = 2,
        quic: str | Mapping[str, str] = "auto",
        overrides: Mapping[str, Settings] | None = None,
        money: Money | None = None,
        discovery: Literal["list", "gossip"] = "list",
    ) -> None:
        """Set up the lab's relays; the last `exits` of them are exits.

        `quic` is what carries packets at all nodes, or at each by name (see ``carrier``); `overrides` are
        settings by node name, those under "" for all relays. With `money` each node has an account with
        coins, and relays ask a price.
        """
        if not 0 <= exits <= len(lab.relays):
            raise LabError(f"{exits} exits among {len(lab.relays)} relays")
        self.lab = lab
        self.clients: list[Node] = []
        self.money = money
        self.discovery = discovery
        self._quic = quic
        self._defaults = default_carriers(os.environ)
        self._signer = Identity.generate()
        self._seed_list = lab.path / "seeds"
        given = overrides or {}
        self.relays: list[Node] = []
        for index, host in enumerate(lab.relays):
            role = "exit" if index >= len(lab.relays) - exits else "relay"
            settings = merge(
                self._relay_settings(index, host, role), given.get("", {}), given.get(host.name, {})
            )
            node = Node(lab, host.name, host.name, role, settings)
            if money is not None:
                # Before its descriptor, which names the account.
                self._give_account(node)
            self.relays.append(node)
        if money is not None:
            money.fund([node.name for node in self.relays])
        self.publish()

    @property
    def exits(self) -> list[Node]:
        """The relays that are exits."""
        return [node for node in self.relays if node.role == "exit"]

    def by_id(self, node_id: str) -> Node | None:
        """The relay of that identity, None if it is none of ours."""
        return next((node for node in self.relays if node.id == node_id), None)

    def publish(self, nodes: Sequence[Node] | None = None) -> None:
        """Sign the seed list anew: of all relays, or of `nodes` only. Running nodes notice by themselves."""
        now_s = int(time.time())
        chosen = self.relays if nodes is None else nodes
        encoded = sign_seed_list(
            self._signer,
            NETWORK,
            [] if self.discovery == "gossip" else [node.describe() for node in chosen],
            sequence=now_s,
            published_s=now_s,
            expires_s=now_s + _LIST_LIFETIME_S,
            members=[self._member(node) for node in chosen] if self.discovery == "gossip" else [],
        )
        new = self._seed_list.with_suffix(".new")
        new.write_bytes(encoded)
        new.replace(self._seed_list)

    def start(self) -> None:
        """Start all relays at once and wait until each is ready. Raises LabError."""
        for node in self.relays:
            node.start()
        for node in self.relays:
            node.wait_ready()
        if self.discovery == "gossip":
            self.join()
            self.wait_known()

    def join(self, nodes: Sequence[Node] | None = None) -> None:
        """Have running relays (all by default) put up their stake in the registry, if there is one, as
        `hopfare stake join` does. Raises LabError.
        """
        if self.money is None:
            return
        chosen = self.relays if nodes is None else nodes
        with ThreadPoolExecutor(max(1, len(chosen))) as pool:
            list(pool.map(self._join, chosen))

    def _join(self, node: Node) -> None:
        assert self.money is not None
        config = load_config(node.config_path, environ={})
        host = self.lab.hosts[node.host]
        params = join_params(
            node.identity,
            config.payments,
            parse_address(self.money.addresses[node.name]),
            Address(str(host.ipv4), PORT),
            STAKE_WEI,
        )
        try:
            call_local(node.state_dir, "wallet-stake-join", params, timeout_s=JOIN_TIMEOUT_S)
        except LocalControlError as error:
            raise LabError(f"{node.name} cannot join the registry: {error}") from error

    def wait_known(self, nodes: Sequence[Node] | None = None, timeout_s: float = KNOWN_TIMEOUT_S) -> None:
        """Wait until each of these relays (all by default) knows all of them. Raises LabError."""
        chosen = self.relays if nodes is None else nodes

        def known() -> bool:
            return all(node.status()["directory"] >= len(chosen) for node in chosen)

        wait_until(known, timeout_s, "all relays to know each other", every_s=0.1)

    def _member(self, node: Node) -> ListedMember:
        host = self.lab.hosts[node.host]
        return ListedMember(node.identity.node_id, b"", (Address(str(host.ipv4), PORT),))

    def client(
        self,
        overrides: Settings | None = None,
        *,
        name: str = CLIENT,
        socks_fd: int | None = None,
        wait: bool = True,
    ) -> Node:
        """Start a client in the lab's client namespace; another `name` makes another, with its own state.

        Its proxy listens on 127.0.0.1:1080 of that namespace (or where `overrides` say), or on the socket
        that is given. With `wait` it has circuits when this returns. Raises LabError.
        """
        settings = merge(
            {
                "node": carrier(self._quic_of(name)),
                "network": self._network_settings(),
                "client": {"socks": ["127.0.0.1:1080"]},
            },
            overrides or {},
        )
        node = next((client for client in self.clients if client.name == name), None)
        if node is None:
            node = Node(self.lab, name, CLIENT, "client", settings)
            self.clients.append(node)
        else:
            node.stop()
            node.settings = merge({"node": {"state_dir": str(node.state_dir)}}, settings)
            node.configure({})
        if self.money is not None:
            is_new = node.name not in self.money.addresses
            self._give_account(node)
            if is_new:
                self.money.fund([node.name])
        problems = check_client(load_config(node.config_path, environ={}))
        if problems:
            raise LabError(f"the configuration of {name}: {'; '.join(problems)}")
        node.start(socks_fd=socks_fd)
        if wait:
            node.wait_ready()
        return node

    def stop(self) -> None:
        """Stop all nodes, clients first."""
        running = [node for node in (*self.clients, *self.relays) if node.running]
        for node in running:
            assert node.process is not None
            node.process.send_signal(15)
        for node in running:
            node.stop()

    def _give_account(self, node: Node) -> None:
        """Make a node's key and tell its configuration; what it says of [payments] already goes first."""
        assert self.money is not None
        account = self.money.settings() | self.money.make_account(node.name, node.state_dir)
        node.settings = merge({"payments": account}, node.settings)
        node.configure({})

    def _quic_of(self, name: str) -> str:
        asked = self._quic if isinstance(self._quic, str) else self._quic.get(name, "auto")
        if asked != "auto":
            return asked
        # A relay's number gives it its turn, and relays and clients the same one in every run.
        number = int("".join(filter(str.isdigit, name)) or "0")
        return self._defaults[number % len(self._defaults)]

    def _network_settings(self) -> dict[str, Value]:
        settings: dict[str, Value] = {"name": NETWORK, "discovery": self.discovery}
        if self.discovery == "gossip" and self.money is not None:
            return settings | {"registry_start": self.money.first_block}
        return settings | {"seed_list": str(self._seed_list), "seed_list_key": self._signer.name}

    def _relay_settings(self, index: int, host: Host, role: str) -> dict[str, dict[str, Value]]:
        settings: dict[str, dict[str, Value]] = {
            "node": carrier(self._quic_of(host.name)),
            "network": self._network_settings(),
            "relay": {
                "listen": [f"{host.ipv4}:{PORT}", f"[{host.ipv6}]:{PORT}"],
                "country": _COUNTRIES[index % len(_COUNTRIES)],
            },
        }
        if self.money is not None:
            price = _EXIT_PRICE if role == "exit" else _PRICES[index % len(_PRICES)]
            settings["relay"]["price"] = price
        if role == "exit":
            settings["exit"] = {
                "policy": _POLICY,
                "allow_ranges": list(INTERNET_RANGES),
                "resolvers": [DNS_V4],
                "ipv6": "on",
            }
        return settings

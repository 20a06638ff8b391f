"""What a relay adds to discovery: its own descriptor, and who in the node goes by the directory."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from overlay.describe import describe_node
from overlay.duty import Duty
from overlay.node.discovery import Discovery
from overlay.node.io.dial_back import own_families
from overlay.node.io.root_sources import make_source
from overlay.node.publishing import Publisher
from overlay.node.suites import offered_suites

if TYPE_CHECKING:
    import trio

    from overlay.config.model import Config
    from overlay.descriptor import Address, SignedDescriptor
    from overlay.directory import Directory
    from overlay.gossip.roots import RootList
    from overlay.links.io.endpoint import Endpoint
    from overlay.links.link import Link
    from overlay.node.relay import RelayNode


class RelayDiscovery:
    """One relay's discovery: the host of `Discovery`, and the maker of its descriptor."""

    def __init__(self, config: Config, node: RelayNode, nursery: trio.Nursery) -> None:
        """Nothing runs yet."""
        self._config = config
        self._node = node
        self._nursery = nursery
        self.discovery = Discovery(
            config,
            self,
            make_source(config),
            nursery,
            own=node.identity.node_id,
            families=own_families() & _listened(config),
        )
        self.publisher = Publisher(
            config, self.discovery, self._describe, nursery, identity=node.identity.node_id
        )

    async def load(self) -> Directory:
        """Return the directory to begin with. Raises as the root list's source does."""
        return await self.discovery.load()

    def start(self) -> None:
        """Run, in the node's nursery."""
        self.discovery.start()
        self.discovery.keep_running(self.publisher.run)

    def set_price(self, wei_per_packet: int) -> None:
        """Say another price in the descriptor, from now on."""
        relay = replace(self._config.relay, price_wei_per_packet=wei_per_packet)
        self._config = replace(self._config, relay=relay)
        self.publisher.refresh()

    # -- what Discovery asks of its host

    @property
    def endpoint(self) -> Endpoint:
        """The node's links."""
        return self._node.endpoint

    def find_link(self, node_id: bytes) -> Link | None:
        """The link to a relay, or None."""
        return self._node.find_link(node_id)

    def use_directory(self, directory: Directory, roots: RootList) -> None:
        """Hand a new directory to whoever in the node goes by it."""
        node = self._node
        before, node.directory = node.directory, directory
        if node.exit_side is not None and _hosts(directory) != _hosts(before):
            node.exit_side.set_directory(directory)
        if node.money is not None:
            node.money.on_directory()

    def may_close(self, link: Link) -> bool:
        """Whether no circuit uses a link."""
        return self._node.switch.circuits_of(link) == 0

    # -- the descriptor

    def _describe(
        self, addresses: tuple[Address, ...], *, sequence: int, lifetime_s: float
    ) -> SignedDescriptor:
        node, config = self._node, self._config
        keys = node.build.keys
        payee = config.relay.payee if node.money is None else node.money.payee
        proof = b"" if node.money is None else node.money.prove_payee(node.identity.node_id)
        period_s = int(config.relay.onion_key_rotation_s)
        now_s = time.time()
        made_s = keys.current.created_s
        # A key that was due while the clock was wrong says nothing of its schedule.
        scheduled = made_s + 2 * period_s >= now_s + lifetime_s and made_s <= now_s
        return describe_node(
            config,
            node.identity,
            onion_key=keys.current.public,
            previous_onion_key=keys.previous.public if keys.previous is not None else b"",
            as_exit=node.as_exit,
            has_ipv6=node.exit_side is not None and node.exit_side.network.has_ipv6,
            suites=offered_suites(),
            now_s=now_s,
            addresses=addresses,
            lifetime_s=lifetime_s,
            sequence=sequence,
            payee=payee,
            payee_proof=proof if payee else b"",
            is_draining=node.duty.roster.duty is not Duty.OPEN,
            onion_key_made_s=made_s if scheduled else 0,
            onion_key_period_s=period_s if scheduled else 0,
        )

    # -- status

    def problems(self) -> list[str]:
        """Sentences for `hopfare status`."""
        return [*self.discovery.problems(), *self.publisher.problems()]

    def status(self) -> dict[str, Any]:
        """Figures for `hopfare status`."""
        return {**self.discovery.status(), **self.publisher.status()}


def _listened(config: Config) -> frozenset[int]:
    return frozenset(6 if ":" in address.ip else 4 for address in config.relay.listen)


def _hosts(directory: Directory) -> frozenset[str]:
    """Return the addresses as text: to read 10,000 of them would hold packets up for a tenth of a second."""
    return frozenset(address.ip for entry in directory for address in entry.descriptor.addresses)

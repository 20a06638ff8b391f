"""What a customer's node adds to discovery: its directory goes to path choice, its links are its guards'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from overlay.directory import Directory
from overlay.node.discovery import Discovery
from overlay.node.io.dial_back import own_families
from overlay.node.io.root_sources import make_source

if TYPE_CHECKING:
    from overlay.config.model import Config
    from overlay.gossip.roots import RootList
    from overlay.links.io.endpoint import Endpoint
    from overlay.links.link import Link
    from overlay.node.client import ClientNode


class ClientDiscovery:
    """One customer's discovery: the host of `Discovery`."""

    node: ClientNode
    """Set before `start`."""

    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        """Nothing runs yet."""
        self._config = config
        self.discovery = Discovery(
            config, self, make_source(config), nursery, families=own_families() or frozenset({4})
        )

    async def load(self) -> Directory:
        """Return the directory to begin with. Raises as the root list's source does."""
        return await self.discovery.load()

    def start(self) -> None:
        """Run, in the node's nursery."""
        self.node.market.stakes = _stakes(self.discovery.gossip.store.roots)
        self.discovery.start()

    # -- what Discovery asks of its host

    @property
    def endpoint(self) -> Endpoint:
        """The node's links."""
        return self.node.endpoint

    def find_link(self, node_id: bytes) -> Link | None:
        """The link to a guard, or None."""
        return self.node.links.find(node_id)

    def use_directory(self, directory: Directory, roots: RootList) -> None:
        """Choose paths by a new directory from now on."""
        node = self.node
        node.directory = directory
        node.market.stakes = _stakes(roots)
        if node.money is not None:
            node.money.on_directory()
        node.market.renew_index()

    def may_close(self, link: Link) -> bool:
        """Whether a link is no guard's."""
        return not self.node.uses_link(link)

    def problems(self) -> list[str]:
        """Sentences for `hopfare status`."""
        return self.discovery.problems()

    def status(self) -> dict[str, Any]:
        """Figures for `hopfare status`."""
        return self.discovery.status()


def _stakes(roots: RootList) -> dict[bytes, int]:
    return {member.identity: member.stake_wei for member in roots if member.stake_wei}

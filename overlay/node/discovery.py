"""Discovery's driver: gossip over the node's links, the links it needs, the directory it makes.

Joins the pure machines of `overlay.gossip` with links, clock, disk and the root list's source. A relay and a
customer's node have one each; what only a relay does (publishing, dialling back) is
`overlay.node.publishing`'s.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import trio

from overlay.directory import Directory, IpAddress
from overlay.errors import FileError
from overlay.gossip.machine import Gossip
from overlay.gossip.neighbours import DialNeighbour, LetGo, Neighbours
from overlay.gossip.roots import Member, RootList
from overlay.gossip.types import Changed, Close, Handed, Kind, Output, Seen, Send
from overlay.identity import format_node_id
from overlay.links.bucket import Bucket
from overlay.links.io.endpoint import DialError
from overlay.logs import RateLimit, get_logger
from overlay.node.io.directory_file import DIRECTORY_FILE, load_directory_file, save_directory
from overlay.node.supervise import keep_running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from overlay.config.model import Config
    from overlay.gossip.messages import DialBack, DialedBack
    from overlay.links.io.endpoint import Endpoint
    from overlay.links.link import Link

BATCH_BYTES = 64 * 1024
PACE_BYTES_PER_S = 2 * 1024 * 1024
"""What discovery puts on a link's control stream at once, and goes on with: what a Build waits for. An honest
peer asks for the next 64 KiB when it has the last, so that a slow link holds no more than that.
"""
MAX_QUEUED_BYTES = 1024 * 1024
"""... and behind those in this process; more is not sent, and asked for again."""
PUMP_S = 0.01
DIAL_TIMEOUT_S = 3.0
LOOK_S = 5.0
FIRST_LOOKS = 10
"""At the start neighbours are looked after each second."""
APPLY_S = 0.5
"""Changes of the directory are handed to the node at most so often ..."""
APPLY_LARGE_S = 10.0
LARGE = 2000
"""... or so often if it has more entries than this."""
SAVE_S = 30.0
SAVE_LARGE_S = 300.0
FIRST_SAVE_S = 3.0
"""After a change; then not again for SAVE_S, with a LARGE directory for SAVE_LARGE_S."""
CUSTOMER_WAIT_S = 1.5
"""How long a customer with a stored directory waits for its guard before it asks others."""
CUSTOMER_SOURCES = 2
MOST_SOURCES = 8
"""So many are asked at the start while less than COVERED_SHARE of the root list is known."""
COVERED_SHARE = 0.8
SECOND_SOURCE_S = 1.0
ASK_AGAIN_S = 600.0
LONGEST_ASK_AGAIN_S = 6 * 3600.0
"""... and later, when descriptors of so many have expired and no others came: the guard may keep them back.
Doubled while asking others brings nothing.
"""
PARTIAL_S = 10.0
"""After so long a part of the directory has to do."""

log = get_logger("discovery")


class RootSource(Protocol):
    """Where the root list comes from: `overlay.node.io.root_sources`."""

    @property
    def problem(self) -> str:
        """Why the list may not be what it should be; empty if it is."""

    async def load(self) -> RootList:
        """Return what is known at once, at the start."""

    async def run(self, changed: Callable[[RootList], None]) -> None:
        """Follow the list until cancelled."""


class DiscoveryHost(Protocol):
    """The node above. Calls are synchronous and do not raise."""

    @property
    def endpoint(self) -> Endpoint:
        """This node's links."""

    def find_link(self, node_id: bytes) -> Link | None:
        """The link to a relay that is up, or None."""

    def use_directory(self, directory: Directory, roots: RootList) -> None:
        """The directory is another one."""

    def may_close(self, link: Link) -> bool:
        """Whether nothing else needs a link."""


class Discovery:
    """One node's part in discovery."""

    def __init__(
        self,
        config: Config,
        host: DiscoveryHost,
        source: RootSource,
        nursery: trio.Nursery,
        *,
        own: bytes = b"",
        families: frozenset[int] = frozenset({4, 6}),
    ) -> None:
        """`own` is a relay's identity, empty for a customer; `families`: IP versions that can be dialled."""
        now = trio.current_time()
        self.is_customer = not own
        self.gossip = Gossip(RootList(), random.SystemRandom(), now, own=own, is_customer=self.is_customer)
        self.neighbours = Neighbours(own, random.SystemRandom(), own_families=families)
        self.on_handed: Callable[[Link, DialBack | DialedBack], None] | None = None
        """Takes messages about reachability."""
        self.seen: dict[Link, str] = {}
        """At which IP address each neighbour sees this node."""
        self.host = host
        self.source = source
        self._nursery = nursery
        self._file = config.state_dir / DIRECTORY_FILE
        self._extra = [Member(one.identity, b"", 0, (one.address,)) for one in config.network.bootstrap]
        self._keys: dict[Link, int] = {}
        self._links: dict[int, Link] = {}
        self._queues: dict[Link, deque[bytes]] = {}
        self._queued: dict[Link, int] = {}
        self._paces: dict[Link, Bucket] = {}
        self._next_key = 1
        self._wake = trio.Event()
        self._pump_wake = trio.Event()
        self._changed = trio.Event()
        self._look = trio.Event()
        self._due = 0.0
        self._version = 0
        self._saved_version = 0
        self._disk_problem = ""
        self._limit = RateLimit()
        self._dialled: set[Link] = set()

    # -- start and end
    # ------------------------------------------------------------------------------------------------------

    async def load(self) -> Directory:
        """Take in the root list and the stored directory; return what they make. Before `start`."""
        roots = await self.source.load()
        self._do(self.gossip.set_roots(roots, trio.current_time()))
        stored = await trio.to_thread.run_sync(load_directory_file, self._file)
        self._do(self.gossip.load(stored, trio.current_time(), time.time(), is_checked=True))
        self._saved_version = self._version
        return Directory(self.gossip.store)

    def start(self) -> None:
        """Run what runs while the node does. `host.endpoint` is there."""
        self._nursery.start_soon(self._keep_time)
        for task in (self._keep_pumping, self._keep_applying, self._keep_saving):
            self.keep_running(task)
        self.keep_running(lambda: self.source.run(self._use_roots))
        self.keep_running(self._keep_sources if self.is_customer else self._keep_neighbours)

    def keep_running(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task of discovery beside the others."""
        self._nursery.start_soon(keep_running, task, log, "discovery failed")

    def save(self) -> None:
        """Store the directory now, if it has changed; a full disk is said once and tried again."""
        if self._saved_version == self._version:
            return
        version = self._version
        try:
            save_directory(self._file, self._to_save(), time.time())
        except FileError as error:
            self._note_unsaved(error)
        else:
            self._saved_version, self._disk_problem = version, ""

    # -- what the node tells
    # ------------------------------------------------------------------------------------------------------

    def on_link_up(self, link: Link) -> None:
        """A link is up, whoever dialled it."""
        key = self._next_key
        self._next_key += 1
        self._keys[link], self._links[key] = key, link
        is_chosen = self.is_customer or (link.peer is not None and link.peer in self.neighbours.chosen)
        ip = link.peer_address[0]
        now = trio.current_time()
        self._do(self.gossip.handle_link_up(key, link.peer, ip, is_chosen=is_chosen, now=now))

    def on_link_closed(self, link: Link) -> None:
        """A link is gone."""
        key = self._keys.pop(link, None)
        if key is None:
            return
        del self._links[key]
        self._queues.pop(link, None)
        self._queued.pop(link, None)
        self._paces.pop(link, None)
        self.seen.pop(link, None)
        self._dialled.discard(link)
        self._do(self.gossip.handle_link_closed(key, trio.current_time()))
        self._look.set()

    def on_control(self, link: Link, message: bytes) -> None:
        """A message of discovery."""
        key = self._keys.get(link)
        if key is not None:
            self._do(self.gossip.handle_message(key, message, trio.current_time(), time.time()))

    def publish(self, encoded: bytes) -> None:
        """This node's own descriptor is a new one."""
        self._do(self.gossip.publish(encoded, trio.current_time(), time.time()))

    def send(self, link: Link, message: bytes) -> None:
        """Send a message of discovery behind those that wait."""
        queue = self._queues.get(link)
        if not queue and self._may_send(link, message):
            link.send_control(message)
            return
        if queue is None:
            queue = self._queues[link] = deque()
        waiting = self._queued.get(link, 0)
        if waiting + len(message) > MAX_QUEUED_BYTES:
            return
        queue.append(message)
        self._queued[link] = waiting + len(message)
        self._pump_wake.set()

    def first_addresses(self) -> set[IpAddress]:
        """Return the addresses at which the root list and the configuration name relays."""
        return {
            ipaddress.ip_address(address.ip)
            for member in (*self.gossip.store.roots, *self._extra)
            for address in member.addresses
        }

    def partners(self) -> list[Link]:
        """Links to relays that are in the root list, those of this node's own choice first."""
        found = [
            (not self.gossip.peers[key].is_chosen, key, link)
            for key, link in self._links.items()
            if self.gossip.peers[key].kind is Kind.PARTNER and link.is_up
        ]
        return [link for _, _, link in sorted(found, key=lambda row: row[:2])]

    def problems(self) -> list[str]:
        """Sentences for `hopfare status`."""
        found = [problem for problem in (self.source.problem, self._disk_problem) if problem]
        roots = self.gossip.store.roots
        if not len(roots) and not found:
            found.append(f"{roots.source} names no relay: nobody can be found")
        return found

    def status(self) -> dict[str, Any]:
        """Figures for `hopfare status`."""
        gossip = self.gossip
        kinds = [peer.kind for peer in gossip.peers.values()]
        return {
            "members": len(gossip.store.roots),
            "descriptors": len(gossip.store),
            "source": gossip.store.roots.source,
            "neighbours": sum(kind is not Kind.CUSTOMER for kind in kinds),
            "synced": gossip.synced,
            "taken": gossip.counters.taken,
            "refused": gossip.counters.refused,
            "faults": gossip.counters.faults,
            "bytes_sent": gossip.counters.bytes_sent,
            "bytes_received": gossip.counters.bytes_received,
        }

    def _may_send(self, link: Link, message: bytes) -> bool:
        now = trio.current_time()
        pace = self._paces.get(link)
        if pace is None:
            pace = self._paces[link] = Bucket(PACE_BYTES_PER_S, BATCH_BYTES, now)
        return pace.take(len(message), now)

    # -- outputs
    # ------------------------------------------------------------------------------------------------------

    def _do(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Send(key, message):
                    link = self._links.get(key)
                    if link is not None:
                        self.send(link, message)
                case Changed():
                    self._version += 1
                    self._changed.set()
                case Close(key, code, reason):
                    self._close(key, code, reason)
                case Seen(key, ip):
                    link = self._links.get(key)
                    if link is not None:
                        self.seen[link] = ip
                case Handed(key, message):
                    link = self._links.get(key)
                    if link is not None and self.on_handed is not None:
                        self.on_handed(link, message)
        if self.gossip.next_timeout() < self._due:
            self._wake.set()

    def _close(self, key: int, code: int, reason: str) -> None:
        link = self._links.get(key)
        if link is None:
            return
        suppressed = self._limit.allow("flood", trio.current_time())
        if suppressed is not None:
            peer = format_node_id(link.peer) if link.peer is not None else "a customer"
            log.warning("peer floods discovery", peer=peer, reason=reason, suppressed=suppressed)
        link.close(code, reason)

    def _use_roots(self, roots: RootList) -> None:
        before = len(self.gossip.store.roots)
        self._do(self.gossip.set_roots(roots, trio.current_time()))
        self._changed.set()
        self._look.set()
        log.info("root list changed", source=roots.source, members=len(roots), before=before)

    # -- tasks
    # ------------------------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        while True:
            self._wake = trio.Event()
            self._due = self.gossip.next_timeout()
            with trio.move_on_at(self._due):
                await self._wake.wait()
            try:
                self._do(self.gossip.handle_timeout(trio.current_time(), time.time()))
            except Exception as error:  # an error of ours must not cost the node its circuits
                log.error("discovery failed", exc_info=error)
                await trio.sleep(1.0)

    async def _keep_pumping(self) -> None:
        """Send what waits, a batch at a time, so that circuits' messages come through in between."""
        while True:
            await self._pump_wake.wait()
            self._pump_wake = trio.Event()
            for link, queue in list(self._queues.items()):
                while queue and self._may_send(link, queue[0]):
                    message = queue.popleft()
                    self._queued[link] -= len(message)
                    link.send_control(message)
                if not queue:
                    self._queues.pop(link, None)
                    self._queued.pop(link, None)
            if self._queues:
                self._pump_wake.set()
                await trio.sleep(PUMP_S)

    async def _keep_applying(self) -> None:
        """Hand the directory to the node when it has changed, not too often.

        A customer that begins with nothing waits for the whole: guards are not to be chosen among the first
        few that some relay names.
        """
        if self.is_customer and not len(self.gossip.store):
            with trio.move_on_after(PARTIAL_S):
                while not (self.gossip.synced and len(self.gossip.store)):
                    await trio.sleep(0.02)
                with trio.move_on_after(SECOND_SOURCE_S):
                    while not self._covers():
                        await trio.sleep(0.02)
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            self.host.use_directory(Directory(self.gossip.store), self.gossip.store.roots)
            await trio.sleep(APPLY_LARGE_S if len(self.gossip.store) > LARGE else APPLY_S)

    async def _keep_saving(self) -> None:
        while True:
            await trio.sleep(FIRST_SAVE_S)
            if self._saved_version != self._version:
                version = self._version
                entries = self._to_save()
                try:
                    await trio.to_thread.run_sync(save_directory, self._file, entries, time.time())
                except FileError as error:
                    self._note_unsaved(error)
                else:
                    self._saved_version, self._disk_problem = version, ""
                await trio.sleep(SAVE_LARGE_S if len(entries) > LARGE else SAVE_S)

    def _to_save(self) -> list[bytes]:
        return [entry.encoded for entry in self.gossip.store]

    def _note_unsaved(self, error: FileError) -> None:
        if not self._disk_problem:
            log.error("the directory is not stored", reason=str(error))
        self._disk_problem = f"the directory is not stored: {error}"

    async def _keep_neighbours(self) -> None:
        """A relay's links for discovery."""
        looks = 0
        while True:
            self._look = trio.Event()
            linked = [link.peer for link in self._keys if link.peer is not None and link.is_up]
            now = trio.current_time()
            for decided in self.neighbours.decide(self.gossip.store, linked, now, self._extra):
                if isinstance(decided, DialNeighbour):
                    self._nursery.start_soon(self._dial, decided)
                elif isinstance(decided, LetGo):
                    self._let_go(decided.identity)
            looks += 1
            with trio.move_on_after(1.0 if looks < FIRST_LOOKS else LOOK_S):
                await self._look.wait()
                await trio.sleep(0.05)  # several changes come together

    async def _dial(self, wanted: DialNeighbour) -> None:
        link: Link | None = None
        try:
            link = await self._dial_any(wanted.identity, wanted.addresses)
        except Exception as error:  # an error of ours must not cost the node its circuits
            log.error("discovery failed", exc_info=error)
        finally:
            self.neighbours.handle_dialled(wanted.identity, link is not None, trio.current_time())
            self._look.set()

    async def _dial_any(self, identity: bytes, addresses: tuple[Any, ...]) -> Link | None:
        known = self.host.find_link(identity)
        if known is not None and known.is_up:
            return known
        for address in addresses:
            with trio.move_on_after(DIAL_TIMEOUT_S):
                try:
                    link = await self.host.endpoint.dial((address.ip, address.port), identity)
                except DialError as error:
                    log.debug("neighbour not reached", peer=format_node_id(identity), reason=error.reason)
                else:
                    self._dialled.add(link)
                    return link
        return None

    def _let_go(self, identity: bytes) -> None:
        for link in list(self._dialled):
            if link.peer == identity and self.host.may_close(link):
                link.close(0, "")

    async def _keep_sources(self) -> None:
        """A customer's directory: from its guard as a rule, from others while there is none."""
        if len(self.gossip.store):
            await trio.sleep(CUSTOMER_WAIT_S)
        tried: set[bytes] = set()
        asked = 0
        again_s, again_at = ASK_AGAIN_S, trio.current_time() + ASK_AGAIN_S
        while True:
            if self.gossip.synced and len(self.gossip.store) and (self._covers() or asked >= MOST_SOURCES):
                asked = MOST_SOURCES
                await trio.sleep(LOOK_S)
                now = trio.current_time()
                if self._covers():
                    again_s, again_at = ASK_AGAIN_S, now + ASK_AGAIN_S
                elif now >= again_at:
                    again_s = min(2 * again_s, LONGEST_ASK_AGAIN_S)
                    again_at = now + again_s
                    asked -= CUSTOMER_SOURCES
                continue
            members = [
                member
                for member in (*self.gossip.store.roots, *self._extra)
                if member.addresses and member.identity not in tried
            ]
            if not members:
                tried.clear()
                self._look = trio.Event()
                with trio.move_on_after(1.0):
                    await self._look.wait()
                continue
            random.SystemRandom().shuffle(members)
            async with trio.open_nursery() as nursery:
                for member in members[:CUSTOMER_SOURCES]:
                    asked += 1
                    tried.add(member.identity)
                    nursery.start_soon(self._ask_source, member)

    def _covers(self) -> bool:
        """Whether most members have a descriptor here. If not, whoever was asked may have kept some back."""
        store = self.gossip.store
        return len(store) >= COVERED_SHARE * len(store.roots)

    async def _ask_source(self, member: Member) -> None:
        """Have the whole directory from one relay, over a link that ends with it unless a circuit uses it."""
        link = await self._dial_any(member.identity, self._diallable(member))
        if link is None:
            return
        with trio.move_on_after(20.0):
            key = self._keys.get(link, 0)
            while link.is_up and not self.gossip.has_heard_out(key):
                await trio.sleep(0.02)
        if link.is_up and self.host.may_close(link):
            link.close(0, "")

    def _diallable(self, member: Member) -> tuple[Any, ...]:
        return tuple(
            address
            for address in member.addresses
            if (6 if ":" in address.ip else 4) in self.neighbours.own_families
        )

"""Gossip: how a node's directory becomes like its neighbours'.

Theory. What changes is announced at once by short hashes (Have), fetched by who lacks it (Want, Push) and
announced on. What got lost on the way, or was there before a link was, is found by reconciliation: two
neighbours compare one hash of everything (Digest); where it differs, the one that notices asks for the hashes
of the 256 parts (GetBuckets, Buckets), and pulls what it lacks of those that differ (Pull, Page). A pull
names what the asker has, so the answering side keeps no state and the asker alone decides when it has enough.

Each link's peer is one of three things:

    partner   a relay of the root list: changes go both ways
    customer  has no identity, or none of the root list: is served, is never believed
    source    what a customer's node sees: it pulls, and answers nothing about itself

Pure: takes messages, links and the time, returns outputs in order. A peer is an integer of the driver's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from overlay.descriptor import is_usable_address
from overlay.errors import DecodeError
from overlay.gossip.limits import MAX_HAVE, MAX_PAGE_BYTES, MAX_WANT, SHORT_BYTES, GossipLimits
from overlay.gossip.messages import (
    Buckets,
    DialBack,
    DialedBack,
    Digest,
    GetBuckets,
    GossipMessage,
    Have,
    Page,
    Part,
    Pull,
    Push,
    Want,
    decode_gossip,
    encode_gossip,
    split_shorts,
)
from overlay.gossip.news import News
from overlay.gossip.roots import RootList
from overlay.gossip.serving import Server
from overlay.gossip.store import Store, Verdict, network_of, short_hash
from overlay.gossip.types import (
    Changed,
    Close,
    GossipCounters,
    Handed,
    Kind,
    Output,
    Peer,
    Random,
    Seen,
    Send,
)
from overlay.links.bucket import Bucket

CLOSE_PROTOCOL = 1
CLOSE_FLOOD = 5


class _Stage(Enum):
    BUCKETS = auto()
    PAGES = auto()


@dataclass(eq=False, slots=True)
class _Session:
    """A reconciliation with one peer, seen from the side that pulls."""

    peer: int
    request: int
    stage: _Stage
    asked_at: float
    heard_at: float
    waiting: list[int] = field(default_factory=list)
    """Parts still to be pulled."""
    asked: frozenset[int] = frozenset()
    gained: int = 0
    gained_in_pull: int = 0
    pages: int = 0


class Gossip:
    """One node's side of discovery."""

    def __init__(
        self,
        roots: RootList,
        rng: Random,
        now: float,
        *,
        own: bytes = b"",
        is_customer: bool = False,
        limits: GossipLimits | None = None,
    ) -> None:
        """Begin with an empty directory. `own` is a relay's identity; a customer has none."""
        self.limits = limits or GossipLimits()
        self.store = Store(roots, self.limits, own)
        self.peers: dict[int, Peer] = {}
        self.counters = GossipCounters()
        self.verdicts: dict[Verdict, int] = {}
        self.synced = False
        """Whether a reconciliation has come to its end, or found nothing to do, since the start."""
        self._rng = rng
        self._is_customer = is_customer
        self._sessions: dict[int, _Session] = {}
        self._refused: dict[bytes, float] = {}
        self._news = News(self.limits)
        self._server = Server(self.store, self.limits, now)
        self._next_request = 1
        self._next_round = now + self._round_s()
        self._next_expiry = now + self.limits.round_s

    # -- links --

    def handle_link_up(
        self, peer: int, identity: bytes | None, ip: str, *, is_chosen: bool, now: float
    ) -> list[Output]:
        """A link is up to `identity` (None: a customer) at the numeric address `ip`.

        `is_chosen`: this node picked it, so that whoever is at the other end did not choose to be there.
        """
        limits = self.limits
        kind = self._kind(identity, ip, is_chosen)
        rate, burst = (
            (limits.customer_bytes_per_s, limits.customer_burst_bytes)
            if kind is Kind.CUSTOMER
            else (limits.serve_bytes_per_s, limits.serve_burst_bytes)
        )
        self.peers[peer] = Peer(
            kind,
            identity,
            ip,
            is_chosen,
            Bucket(rate, burst, now),
            Bucket(limits.messages_per_s, limits.message_burst, now),
            Bucket(limits.useless_bytes_per_s, limits.useless_burst_bytes, now),
        )
        return self._greet(peer)

    def handle_link_closed(self, peer: int, now: float) -> list[Output]:
        """A link is gone, and what was asked of it will not be answered."""
        self.peers.pop(peer, None)
        outputs: list[Output] = []
        if self._sessions.pop(peer, None) is not None:
            outputs += self._begin_waiting(now)
        return outputs + self._ask(self._news.handle_gone(peer, now, self.peers))

    def greet(self, peer: int) -> list[Output]:
        """Ask a peer for its Digest, with our own."""
        return [self._send(peer, self._digest(peer, asks=True))] if peer in self.peers else []

    def has_heard_out(self, peer: int) -> bool:
        """Whether nothing more is to be had from a peer for now: it has told what it holds, and there is no
        difference, or it was pulled from.
        """
        state = self.peers.get(peer)
        if state is None:
            return True
        return state.heard and peer not in self._sessions and state.last_root in (b"", self.store.root)

    def set_roots(self, roots: RootList, now: float) -> list[Output]:
        """Go by another root list. Who was refused because of the old one is asked again."""
        changed = self.store.set_roots(roots)
        self._refused.clear()
        outputs: list[Output] = [Changed()] if changed else []
        for key, peer in self.peers.items():
            kind = self._kind(peer.identity, peer.ip, peer.is_chosen, but=key)
            if kind is not peer.kind:
                peer.kind = kind
                peer.serve = Bucket(self.limits.serve_bytes_per_s, self.limits.serve_burst_bytes, now)
            peer.rests_until, peer.fruitless = now, 0
            if not peer.greeted:
                outputs += self._greet(key)
        return outputs + self._start_round(now)

    # -- what comes from this node --

    def publish(self, encoded: bytes, now: float, unix_s: float) -> list[Output]:
        """Take in this node's own descriptor and announce it."""
        verdict = self.store.offer(encoded, now, unix_s, is_own=True)
        if not verdict.is_taken:
            return []
        self.announce(encoded, now)
        return [Changed()]

    def load(
        self, descriptors: Iterable[bytes], now: float, unix_s: float, *, is_checked: bool = False
    ) -> list[Output]:
        """Take in descriptors from elsewhere than a peer: a file, a seed list. Nothing is announced.

        `is_checked`: their signatures have been checked before.
        """
        offer = self.store.offer
        taken = [offer(encoded, now, unix_s, is_checked=is_checked).is_taken for encoded in descriptors]
        return [Changed()] if any(taken) else []

    def announce(self, encoded: bytes, now: float, *, source: int = -1) -> None:
        """Tell all partners but the peer `source` of a descriptor that is held."""
        if not self._is_customer:
            self._news.announce(short_hash(encoded), source, now)

    # -- messages --

    def handle_message(self, peer: int, raw: bytes, now: float, unix_s: float) -> list[Output]:
        """A message of discovery from a peer. Whatever it is, only that peer's link can suffer by it."""
        state = self.peers.get(peer)
        if state is None:
            return []
        self.counters.bytes_received += len(raw)
        if not state.messages.take(1, now):
            return self._flood(peer, "too many messages of discovery")
        try:
            message = decode_gossip(raw)
        except DecodeError:
            return self._fault(peer, state, len(raw), now)
        match message:
            case Digest():
                return self._on_digest(peer, state, message, now)
            case DialBack() | DialedBack():
                return [Handed(peer, message)]
            case GetBuckets() | Pull() | Want():
                if self._is_customer or state.kind is Kind.SOURCE:
                    return []  # a customer's directory would tell who it is
                return [self._send(peer, answer) for answer in self._server.answer(state, message, now)]
            case Buckets():
                return self._on_buckets(peer, state, message, len(raw), now)
            case Page():
                return self._on_page(peer, state, message, len(raw), now, unix_s)
            case Have():
                return self._on_have(peer, state, message, len(raw), now)
            case Push():
                return self._on_push(peer, state, message, len(raw), now, unix_s)

    # -- time --

    def next_timeout(self) -> float:
        """When `handle_timeout` is wanted."""
        times = [self._next_round, self._next_expiry]
        news = self._news.next_timeout()
        if news is not None:
            times.append(news)
        times += [session.heard_at + self.limits.answer_timeout_s for session in self._sessions.values()]
        return min(times)

    def handle_timeout(self, now: float, unix_s: float) -> list[Output]:
        """Do what is due. May come early or twice."""
        outputs = self._tell(self._news.take_news(now))
        outputs += self._ask(self._news.take_overdue(now, self.peers))
        for session in list(self._sessions.values()):
            if now >= session.heard_at + self.limits.answer_timeout_s:
                outputs += self._end(session, now, failed=True)
        if now >= self._next_round:
            self._next_round = now + self._round_s()
            outputs += self._start_round(now)
        if now >= self._next_expiry:
            self._next_expiry = now + self.limits.round_s
            if self.store.expire(unix_s):
                outputs.append(Changed())
            self._refused = {short: until for short, until in self._refused.items() if until > now}
        return outputs

    def _round_s(self) -> float:
        base = self.limits.customer_round_s if self._is_customer else self.limits.round_s
        return base * self._rng.uniform(0.75, 1.25)

    def _start_round(self, now: float) -> list[Output]:
        usable = [
            key
            for key, peer in self.peers.items()
            if peer.kind is not Kind.CUSTOMER and now >= peer.distrusted_until
        ]
        if not usable:
            return []
        # Half of the rounds go to neighbours of our own choice, however many others have dialled us.
        chosen = [key for key in usable if self.peers[key].is_chosen]
        pool = chosen if chosen and self._rng.randint(0, 1) else usable
        return [*self.greet(pool[self._rng.randint(0, len(pool) - 1)]), *self._begin_waiting(now)]

    # -- reconciliation --

    def _on_digest(self, peer: int, state: Peer, message: Digest, now: float) -> list[Output]:
        # Whoever holds nothing has nothing to be pulled.
        state.last_root = message.root if message.count else b""
        state.heard = True
        outputs: list[Output] = []
        if message.asks and not self._is_customer:
            outputs.append(self._send(peer, self._digest(peer, asks=False)))
        if message.seen and is_usable_address(message.seen):
            outputs.append(Seen(peer, message.seen))
        if state.last_root == self.store.root:
            self.synced = self.synced or state.kind is not Kind.CUSTOMER
            state.fruitless = 0
            return outputs
        return outputs + self._begin(peer, state, now)

    def _begin(self, peer: int, state: Peer, now: float) -> list[Output]:
        """Begin to pull from a peer whose directory is not ours, if it is its turn."""
        if (
            state.kind is Kind.CUSTOMER
            or peer in self._sessions
            or now < max(state.rests_until, state.distrusted_until)
            or state.last_root in (b"", self.store.root)
        ):
            return []
        lively = [one for one in self._sessions.values() if now < one.heard_at + self.limits.stall_s]
        if len(lively) >= 1 or len(self._sessions) >= self.limits.max_sessions:
            return []
        self.counters.sessions += 1
        session = _Session(peer, self._request(), _Stage.BUCKETS, now, now)
        self._sessions[peer] = session
        return [self._send(peer, GetBuckets(session.request))]

    def _begin_waiting(self, now: float) -> list[Output]:
        """Begin with whoever's Digest said that there is something, one that we chose before the others."""
        candidates = [
            (not state.is_chosen, self._rng.randint(0, 1 << 30), peer)
            for peer, state in self.peers.items()
            if state.last_root not in (b"", self.store.root)
        ]
        for _, _, peer in sorted(candidates):
            outputs = self._begin(peer, self.peers[peer], now)
            if outputs:
                return outputs
        return []

    def _on_buckets(
        self, peer: int, state: Peer, message: Buckets, size_bytes: int, now: float
    ) -> list[Output]:
        session = self._sessions.get(peer)
        if session is None or session.stage is not _Stage.BUCKETS or session.request != message.request:
            return self._useless(peer, state, size_bytes, now)
        session.stage = _Stage.PAGES
        session.heard_at = now
        session.waiting = self.store.differing(message.digests)
        # A part at a time would be a round trip each; in which order says nothing about what is of interest.
        return self._pull(session, state, now)

    def _pull(self, session: _Session, state: Peer, now: float) -> list[Output]:
        if not session.waiting:
            return self._end(session, now)
        parts: list[Part] = []
        size = 0
        while session.waiting:
            known = self._known(session.waiting[-1])
            if parts and size + len(known) + 8 > MAX_PAGE_BYTES:
                break
            parts.append(Part(session.waiting.pop(), known))
            size += len(known) + 8
        session.asked = frozenset(part.bucket for part in parts)
        session.request = self._request()
        session.asked_at = now
        session.gained_in_pull = 0
        session.pages = 0
        return [self._send(session.peer, Pull(session.request, tuple(parts)))]

    def _known(self, bucket: int) -> bytes:
        """Short hashes of a part, and of what was refused, whichever part that was of."""
        shorts = self.store.shorts(bucket)
        room = MAX_PAGE_BYTES // SHORT_BYTES - len(shorts)
        refused = list(self._refused)[-max(0, min(room, 256)) :] if room > 0 and self._refused else []
        return b"".join([*shorts[: MAX_PAGE_BYTES // SHORT_BYTES], *refused])

    def _on_page(
        self, peer: int, state: Peer, message: Page, size_bytes: int, now: float, unix_s: float
    ) -> list[Output]:
        session = self._sessions.get(peer)
        if session is None or session.stage is not _Stage.PAGES or session.request != message.request:
            return self._useless(peer, state, size_bytes, now)
        session.pages += 1
        outputs: list[Output] = []
        gained = self._take(peer, state, message.descriptors, now, unix_s, outputs)
        if gained or message.is_last:
            session.heard_at = now  # pages of no use, one at a time, would keep others from their turn
        session.gained += gained
        session.gained_in_pull += gained
        if peer not in self._sessions:  # too many faults
            return outputs
        if gained == 0 and message.descriptors:
            outputs += self._useless(peer, state, size_bytes, now)
        if any(isinstance(output, Close) for output in outputs):
            return outputs
        if not message.is_last:
            if session.pages >= self.limits.max_pull_pages:
                outputs += self._end(session, now, failed=True)
            return outputs
        unfinished = [bucket for bucket in message.unfinished if bucket in session.asked]
        if unfinished and not session.gained_in_pull:
            # It has more, it says, but nothing that we take: no reason to go on asking.
            return outputs + self._end(session, now, failed=True)
        session.waiting += unfinished
        return outputs + self._pull(session, state, now)

    def _end(self, session: _Session, now: float, *, failed: bool = False) -> list[Output]:
        del self._sessions[session.peer]
        state = self.peers.get(session.peer)
        if state is not None:
            state.last_root = b""  # old news: the next Digest says what is left
            if session.gained and not failed:
                state.fruitless, state.rests_until = 0, now
            else:
                self.counters.fruitless_sessions += 1
                rest_s = self.limits.session_rest_s * 2.0 ** min(state.fruitless, 16)
                state.fruitless += 1
                state.rests_until = now + min(rest_s, self.limits.longest_rest_s)
        self.synced = self.synced or not failed
        return self._begin_waiting(now)

    # -- news --

    def _on_have(self, peer: int, state: Peer, message: Have, size_bytes: int, now: float) -> list[Output]:
        if state.kind is not Kind.PARTNER or now < state.distrusted_until:
            return self._useless(peer, state, size_bytes, now)
        ask: list[bytes] = []
        useful = False
        for short in split_shorts(message.shorts):
            if short in self.store or short in self._refused:
                useful = useful or short in self.store
                continue
            useful = True
            if self._news.want(short, peer, now):
                ask.append(short)
        outputs: list[Output] = [
            self._send(peer, Want(b"".join(ask[at : at + MAX_WANT]))) for at in range(0, len(ask), MAX_WANT)
        ]
        return outputs if useful else self._useless(peer, state, size_bytes, now)

    def _ask(self, again: list[tuple[int, bytes]]) -> list[Output]:
        return [self._send(peer, Want(short)) for peer, short in again]

    def _on_push(
        self, peer: int, state: Peer, message: Push, size_bytes: int, now: float, unix_s: float
    ) -> list[Output]:
        asked_for = [
            encoded for encoded in message.descriptors if self._news.take_arrived(short_hash(encoded), peer)
        ]
        outputs: list[Output] = []
        if asked_for:
            self._take(peer, state, asked_for, now, unix_s, outputs)
        if len(asked_for) < len(message.descriptors) or not asked_for:
            size_bytes -= sum(map(len, asked_for))
            outputs += self._useless(peer, state, max(size_bytes, 1), now)
        return outputs

    def _take(
        self,
        peer: int,
        state: Peer,
        descriptors: Iterable[bytes],
        now: float,
        unix_s: float,
        outputs: list[Output],
    ) -> int:
        """Offer descriptors to the store; return how many were taken. Appends what follows from it."""
        taken = 0
        for encoded in descriptors:
            verdict = self._offer(encoded, now, unix_s)
            if verdict.is_taken:
                taken += 1
                self.announce(encoded, now, source=peer)
            elif verdict.is_fault:
                outputs += self._fault(peer, state, len(encoded), now)
                if now < state.distrusted_until:
                    break
        if taken:
            outputs.append(Changed())
        return taken

    def _offer(self, encoded: bytes, now: float, unix_s: float) -> Verdict:
        verdict = self.store.offer(encoded, now, unix_s)
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
        if verdict.is_taken:
            self.counters.taken += 1
        elif verdict is not Verdict.HELD:
            self.counters.refused += 1
            if verdict is not Verdict.TOO_OFTEN:
                if len(self._refused) >= self.limits.max_refused:
                    self._refused.pop(next(iter(self._refused)))
                self._refused[short_hash(encoded)] = now + self.limits.refused_s
        return verdict

    def _tell(self, news: dict[bytes, int]) -> list[Output]:
        outputs: list[Output] = []
        for key, peer in self.peers.items() if news else ():
            if peer.kind is not Kind.PARTNER:
                continue
            shorts = [short for short, source in news.items() if source != key and short in self.store]
            for at in range(0, len(shorts), MAX_HAVE):
                outputs.append(self._send(key, Have(b"".join(shorts[at : at + MAX_HAVE]))))
        return outputs

    # -- peers --

    def _kind(self, identity: bytes | None, ip: str, is_chosen: bool, but: int = -1) -> Kind:
        if self._is_customer:
            return Kind.SOURCE
        if identity is None or identity not in self.store.roots:
            return Kind.CUSTOMER
        if is_chosen:
            return Kind.PARTNER
        network = network_of(ip)
        others = [
            peer
            for key, peer in self.peers.items()
            if key != but and peer.kind is Kind.PARTNER and not peer.is_chosen
        ]
        near = sum(network_of(peer.ip) == network for peer in others)
        if len(others) >= self.limits.max_partners or near >= self.limits.max_partners_per_prefix:
            return Kind.CUSTOMER
        return Kind.PARTNER

    def _greet(self, peer: int) -> list[Output]:
        state = self.peers[peer]
        if state.greeted or state.kind is Kind.CUSTOMER or not state.is_chosen:
            return []
        state.greeted = True
        return self.greet(peer)

    def _digest(self, peer: int, *, asks: bool) -> Digest:
        # A customer's own digest would tell its guard what it holds; zeros ask just as well.
        root = bytes(len(self.store.root)) if self._is_customer else self.store.root
        count = 0 if self._is_customer else len(self.store)
        return Digest(root, count, asks, "" if self._is_customer else self.peers[peer].ip)

    def _fault(self, peer: int, state: Peer, size_bytes: int, now: float) -> list[Output]:
        self.counters.faults += 1
        state.faults += 1
        outputs: list[Output] = []
        if state.faults >= self.limits.max_faults:
            state.faults = 0
            state.distrusted_until = now + self.limits.distrust_s
            session = self._sessions.get(peer)
            if session is not None:
                outputs += self._end(session, now, failed=True)
        return outputs + self._useless(peer, state, size_bytes, now)

    def _useless(self, peer: int, state: Peer, size_bytes: int, now: float) -> list[Output]:
        if state.useless.take(size_bytes, now):
            return []
        return self._flood(peer, "more of discovery than was asked for")

    def _flood(self, peer: int, reason: str) -> list[Output]:
        self.counters.flooding_links_closed += 1
        return [Close(peer, CLOSE_FLOOD, reason)]

    def _request(self) -> int:
        self._next_request = self._next_request % 0xFFFF_FFFF + 1
        return self._next_request

    def _send(self, peer: int, message: GossipMessage) -> Send:
        raw = encode_gossip(message)
        self.counters.bytes_sent += len(raw)
        return Send(peer, raw)

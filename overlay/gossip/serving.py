"""What a node answers of its directory, and how much of it to whom. Keeps no state of any request."""

from __future__ import annotations

from overlay.gossip.limits import MAX_PAGE_BYTES, GossipLimits
from overlay.gossip.messages import Buckets, GetBuckets, Page, Pull, Push, Want, split_shorts
from overlay.gossip.store import Store
from overlay.gossip.types import Peer
from overlay.links.bucket import Bucket

HEAD_BYTES = 64
"""What an answer without any descriptor counts for."""


class Server:
    """Answers from one store, within the peer's budget and that of all peers together."""

    def __init__(self, store: Store, limits: GossipLimits, now: float) -> None:
        """Begin with full budgets."""
        self._store = store
        self._limits = limits
        self._all = Bucket(limits.serve_all_bytes_per_s, limits.serve_all_burst_bytes, now)

    def answer(
        self, peer: Peer, message: GetBuckets | Pull | Want, now: float
    ) -> list[Buckets] | list[Page] | list[Push]:
        """Return the answer's messages; none beyond a budget."""
        if isinstance(message, GetBuckets):
            buckets = Buckets(message.request, self._store.bucket_digests())
            return [buckets] if self._take(peer, len(buckets.digests), now) else []
        if isinstance(message, Want):
            found = [self._store.get_short(short) for short in split_shorts(message.shorts)]
            held = [encoded for encoded in found if encoded is not None]
            if not self._take(peer, sum(map(len, held)), now):
                return []
            return [Push(page) for page in cut_pages(held)]
        return self._pull(peer, message, now)

    def _pull(self, peer: Peer, message: Pull, now: float) -> list[Page]:
        # The head's part is taken first: whoever has used up its budget makes no work.
        if not self._take(peer, HEAD_BYTES, now):
            return []
        chosen: list[bytes] = []
        unfinished: list[int] = []
        room = self._limits.pull_answer_bytes
        for part in message.parts:
            if unfinished:
                # The answer is full; a look at the rest of a directory would be work for nothing.
                unfinished.append(part.bucket)
                continue
            missing = self._store.missing(part.bucket, frozenset(split_shorts(part.known)))
            for encoded in missing:
                if room < len(encoded):
                    unfinished.append(part.bucket)
                    break
                room -= len(encoded)
                chosen.append(encoded)
        if not self._take(peer, sum(map(len, chosen)), now):
            return []
        *first, last = cut_pages(chosen) or [()]
        return [
            *(Page(message.request, page, False, b"") for page in first),
            Page(message.request, last, True, bytes(unfinished)),
        ]

    def _take(self, peer: Peer, size_bytes: int, now: float) -> bool:
        return peer.serve.take(size_bytes, now) and self._all.take(size_bytes, now)


def cut_pages(descriptors: list[bytes]) -> list[tuple[bytes, ...]]:
    """Cut descriptors into messages of MAX_PAGE_BYTES at most; nothing makes no page."""
    pages: list[tuple[bytes, ...]] = []
    page: list[bytes] = []
    size = 0
    for encoded in descriptors:
        if page and size + len(encoded) + 5 > MAX_PAGE_BYTES:
            pages.append(tuple(page))
            page, size = [], 0
        page.append(encoded)
        size += len(encoded) + 5
    if page:
        pages.append(tuple(page))
    return pages

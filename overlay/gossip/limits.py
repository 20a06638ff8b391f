"""Every bound and time of discovery in one place. docs/protocol/gossip.md gives the reasons at length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BUCKETS: Final = 256
SHORT_BYTES: Final = 8
"""Of a descriptor's hash, where it only stands for what both sides may have."""
ROOT_BYTES: Final = 16
MAX_PAGE_BYTES: Final = 14 * 1024
"""Descriptors in one message: with its head it stays under a control message's 16 KiB."""
MAX_KNOWN_BYTES: Final = 14 * 1024
"""Short hashes in one Pull."""
MAX_HAVE: Final = 1024
MAX_WANT: Final = 64
"""Descriptors asked for in one message: 64 of 2 KiB are what an answer may hold at most."""
MAX_ADDRESS_TEXT: Final = 45


@dataclass(frozen=True, slots=True)
class GossipLimits:
    """Bounds of one node's gossip. The defaults suit relays and customers alike."""

    max_entries: int = 50_000
    """Descriptors kept. At 2 KiB each 100 MB; the root list is a bound as well."""
    max_per_prefix: int = 256
    """Descriptors with an address in one IPv4 /16 or IPv6 /32; of more the greater stakes stay."""
    max_per_operator: int = 64
    """Descriptors of one payee."""
    max_lifetime_s: int = 8 * 86400
    """Longer-lived descriptors are not passed on: for so long an old one can be replayed to a newcomer."""
    change_burst: float = 6.0
    change_every_s: float = 30.0
    """A node may change its descriptor so often; what comes faster waits for the next reconciliation."""

    round_s: float = 30.0
    """Between two reconciliations with a random neighbour; three quarters to five quarters of it."""
    customer_round_s: float = 30.0
    """A relay that joins is to be used within a minute; a Digest and its answer are 150 bytes."""
    announce_delay_s: float = 0.05
    """Changes wait so long for others to be announced together."""
    want_timeout_s: float = 3.0
    max_wanted: int = 8192
    stall_s: float = 3.0
    """A reconciliation without an answer for so long lets another one begin."""
    answer_timeout_s: float = 15.0
    """... and for so long is given up."""
    max_sessions: int = 2
    session_rest_s: float = 5.0
    """After a reconciliation that brought nothing, doubled each time."""
    longest_rest_s: float = 600.0
    max_pull_pages: int = 64
    """Pages in answer to one Pull."""

    pull_answer_bytes: int = 64 * 1024
    """Descriptors sent for one Pull: what other messages of a link may have to wait for."""
    serve_bytes_per_s: float = 256 * 1024.0
    serve_burst_bytes: float = 64 * 1024 * 1024.0
    """For each peer; the burst is a whole directory of 50,000."""
    customer_bytes_per_s: float = 64 * 1024.0
    customer_burst_bytes: float = 64 * 1024 * 1024.0
    serve_all_bytes_per_s: float = 4 * 1024 * 1024.0
    serve_all_burst_bytes: float = 128 * 1024 * 1024.0
    """For all peers together."""
    messages_per_s: float = 200.0
    message_burst: float = 4000.0
    useless_bytes_per_s: float = 16 * 1024.0
    useless_burst_bytes: float = 1024 * 1024.0
    """What a peer may send that was not asked for or is of no use; beyond it its link is closed."""
    max_faults: int = 16
    """Messages that cannot be read, descriptors that do not verify: then nothing of that peer counts for
    `distrust_s`.
    """
    distrust_s: float = 600.0
    max_refused: int = 8192
    refused_s: float = 600.0
    """How long a hash is remembered that was refused, so that it is not fetched again."""
    max_partners: int = 64
    max_partners_per_prefix: int = 4
    """Relays that dialled us and whose changes we take, in all and for each /16 (/32): the others are served
    as customers are. Those that this node dialled are its own choice and are not counted.
    """

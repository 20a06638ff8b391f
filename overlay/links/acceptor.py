"""What to do with a packet that belongs to no link: answer without state, begin a link, or nothing.

Pure. An answer is never longer than a third of what it answers, and their rate is bounded, so that a forged
sender gains nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from overlay.errors import DecodeError
from overlay.links.admission import Admission, Verdict, address_prefix
from overlay.links.backends.base import Address
from overlay.links.bucket import Bucket
from overlay.links.constants import LOCAL_CID_BYTES, MIN_INITIAL_BYTES, QUIC_VERSION
from overlay.links.limits import LinkLimits
from overlay.links.packets import MIN_ORIGINAL_CID_BYTES, LongHeader, encode_version_negotiation
from overlay.links.retry import NONCE_BYTES, RetryTokens

ANSWERS_PER_S: Final = 200.0
"""Retry and Version Negotiation packets."""
FULL: Final = "this node has as many links as it takes"


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this packet to where the other came from."""

    packet: bytes


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a link with this Initial."""

    original_cid: bytes
    retry_cid: bytes | None
    prefix: bytes
    """What admission counts the link by."""
    refusal: str | None
    """The sentence to close the link with after its greeting."""


@dataclass(slots=True)
class AcceptorCounters:
    """What became of packets that belonged to no link."""

    accepted: int = 0
    dropped_handshakes: int = 0
    ignored_packets: int = 0
    refused_tokens: int = 0
    retries: int = 0
    version_negotiations: int = 0


class Acceptor:
    """The accepting side of one endpoint."""

    __slots__ = ("_answers", "_encode_retry", "_random", "_tokens", "admission", "counters")

    def __init__(
        self,
        encode_retry: Callable[[bytes, bytes, bytes, bytes], bytes],
        limits: LinkLimits,
        random_bytes: Callable[[int], bytes],
        token_key: bytes,
        now: float,
    ) -> None:
        """Take `Backend.encode_retry`, a source of random bytes, and a key of KEY_BYTES for tokens."""
        self.admission = Admission(limits, now)
        self.counters = AcceptorCounters()
        self._encode_retry = encode_retry
        self._random = random_bytes
        self._tokens = RetryTokens(token_key)
        self._answers = Bucket(ANSWERS_PER_S, ANSWERS_PER_S, now)

    def handle(
        self, header: LongHeader, size_bytes: int, address: Address, now: float
    ) -> Answer | Begin | None:
        """Judge a datagram of `size_bytes` whose first packet has this header and belongs to no link.

        After a `Begin` the caller tells `admission` how the handshake goes on.
        """
        counters = self.counters
        if size_bytes < MIN_INITIAL_BYTES or header.version == 0:
            counters.ignored_packets += 1
            return None
        if header.version != QUIC_VERSION:
            if not self._answers.take(1, now):
                return None
            counters.version_negotiations += 1
            return Answer(encode_version_negotiation(header, self._random(1)[0]))
        if not header.is_initial or len(header.destination_cid) < MIN_ORIGINAL_CID_BYTES:
            counters.ignored_packets += 1
            return None
        return self._initial(header, address, now)

    def _initial(self, header: LongHeader, address: Address, now: float) -> Answer | Begin | None:
        counters = self.counters
        original_cid, retry_cid = header.destination_cid, None
        if header.token:
            try:
                original_cid = self._tokens.decode_token(header.token, address, header.destination_cid, now)
            except DecodeError:
                counters.refused_tokens += 1
                return None
            retry_cid = header.destination_cid
        prefix = address_prefix(address[0])
        verdict = self.admission.decide(prefix, retry_cid is not None, now)
        if verdict is Verdict.DROP or (verdict is Verdict.RETRY and not self._answers.take(1, now)):
            counters.dropped_handshakes += 1
            return None
        if verdict is Verdict.RETRY:
            counters.retries += 1
            source_cid = self._random(LOCAL_CID_BYTES)
            token = self._tokens.create(address, original_cid, source_cid, self._random(NONCE_BYTES), now)
            return Answer(self._encode_retry(source_cid, header.source_cid, original_cid, token))
        counters.accepted += 1
        return Begin(original_cid, retry_cid, prefix, FULL if verdict is Verdict.REFUSE else None)

"""Looking up names at the exit: queries, answers, what is remembered, and the order in which addresses
are tried.

Pure: the driver (`io/resolver.py`) owns sockets and time. Answers come through a circuit from the exit or
from whoever answers it, so they are read strictly and everything kept is bounded. What one circuit
learned is never used on another: a shared memory would let one site see what another has visited.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import ip_address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename

from overlay.errors import DecodeError
from overlay.socks.circuits import Destination
from overlay.socks.outcome import Reply

A, AAAA, PTR = dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.PTR
#: Addresses kept of one answer, and tried in one connection.
MAX_ADDRESSES = 8
MAX_CACHED_NAMES = 512
#: Bounds on how long an answer is used, in seconds. The lower one spares a circuit the storm of queries
#: that a time to live of 0 would cause; the upper one is a circuit's usual life.
MIN_TTL_S, MAX_TTL_S = 5.0, 600.0
NEGATIVE_TTL_S = 10.0
#: EDNS payload: an answer must fit one single inner packet.
UDP_PAYLOAD_BYTES = 1232

#: Names that never leave this machine: RFC 6761 (localhost, invalid), RFC 6762 (local), RFC 7686 (onion).
_LOCAL_SUFFIXES = ("localhost", "invalid", "local", "onion")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a lookup found: addresses (or one name, for a reverse lookup), or why there are none."""

    found: tuple[str, ...]
    ttl_s: float
    reply: Reply = Reply.HOST_UNREACHABLE
    """The reply when `found` is empty."""
    is_truncated: bool = False


NO_SUCH_NAME = Answer((), NEGATIVE_TTL_S)


def is_local_name(host: str) -> bool:
    """Return whether a name has no meaning at the exit and must not be asked there."""
    return host.rpartition(".")[2] in _LOCAL_SUFFIXES


def encode_query(host: str, kind: int, query_id: int) -> bytes | None:
    """Return a query for a name's A, AAAA or an address's PTR record; None when DNS cannot carry the name."""
    try:
        name = dns.reversename.from_address(host) if kind == PTR else dns.name.from_text(host)
        query = dns.message.make_query(
            name, dns.rdatatype.RdataType(kind), use_edns=0, payload=UDP_PAYLOAD_BYTES, id=query_id
        )
        return query.to_wire()
    except (dns.exception.DNSException, ValueError):  # too long a label, not IDNA, not an address
        return None


def decode_answer(wire: bytes, query: bytes) -> Answer:
    """Read the answer to this query. Raises DecodeError when it is none (then wait for the right one)."""
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
        asked = dns.message.from_wire(query)
        if not asked.is_response(message):
            raise DecodeError("not the answer to our query")
        return _answer(message, asked.question[0].rdtype)
    except (dns.exception.DNSException, ValueError, IndexError, KeyError) as error:
        raise DecodeError("not a DNS answer") from error


def _answer(message: dns.message.Message, kind: int) -> Answer:
    if message.flags & dns.flags.TC:
        return Answer((), 0.0, is_truncated=True)
    code = message.rcode()
    if code == dns.rcode.REFUSED:
        return Answer((), NEGATIVE_TTL_S, Reply.NOT_ALLOWED)
    if code != dns.rcode.NOERROR:
        return Answer((), NEGATIVE_TTL_S if code == dns.rcode.NXDOMAIN else 0.0)
    if not isinstance(message, dns.message.QueryMessage):
        raise DecodeError("not an answer")
    chain = message.resolve_chaining()
    if chain.answer is None:
        return NO_SUCH_NAME
    found: list[str] = []
    for record in chain.answer:
        if kind == PTR:
            text = record.target.to_unicode(omit_final_dot=True)
        else:
            text = str(ip_address(record.address))
        found.append(text)
        if len(found) == MAX_ADDRESSES:
            break
    return Answer(tuple(found), min(max(float(chain.minimum_ttl), MIN_TTL_S), MAX_TTL_S))


class NameCache:
    """What one circuit has learned. The oldest name goes when there are too many."""

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int = MAX_CACHED_NAMES) -> None:
        """Keep at most `limit` answers."""
        self._entries: OrderedDict[tuple[str, int], tuple[float, Answer]] = OrderedDict()
        self._limit = limit

    def get(self, host: str, kind: int, now: float) -> Answer | None:
        """Return an answer that is still good, or None."""
        entry = self._entries.get((host, kind))
        if entry is None or entry[0] <= now:
            return None
        return entry[1]

    def good_for(self, host: str, kind: int, now: float) -> float:
        """Return for how many seconds more an answer is good; 0 or less for none."""
        entry = self._entries.get((host, kind))
        return entry[0] - now if entry is not None else 0.0

    def put(self, host: str, kind: int, answer: Answer, now: float) -> None:
        """Remember an answer for its time to live; one of 0 is not kept."""
        if answer.ttl_s <= 0:
            return
        self._entries[host, kind] = (now + answer.ttl_s, answer)
        self._entries.move_to_end((host, kind))
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)


def order_addresses(v6: tuple[str, ...], v4: tuple[str, ...]) -> list[str]:
    """Return the addresses in the order to try them: IPv6 first, then alternating (RFC 8305, section 4)."""
    ordered: list[str] = []
    for index in range(max(len(v6), len(v4))):
        ordered += v6[index : index + 1] + v4[index : index + 1]
    return ordered[:MAX_ADDRESSES]


def usable_addresses(destination: Destination, *, has_ipv6: bool) -> list[str]:
    """Return the address of a destination that is one, if the circuit can carry it."""
    if destination.ip_version == 4 or (destination.ip_version == 6 and has_ipv6):
        return [destination.host]
    return []

"""Descriptors: what a node says of itself, signed with its identity.

Owns the fields, their limits, the wire form and the signature check. Does not own how descriptors travel
(overlay.seedlist) or which of them a client uses (overlay.directory). Specified in
docs/protocol/descriptor.md.

The body is a msgpack array whose first element is the format's version; it travels in an `overlay.envelope`
signed in the context "descriptor". A `SignedDescriptor` keeps the exact bytes, to be passed on unchanged.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from overlay.envelope import decode_envelope, sign_envelope
from overlay.errors import DecodeError
from overlay.identity import NODE_ID_BYTES, Identity, NodeId, format_node_id, verify
from overlay.payee import PAYEE_PROOF_BYTES, is_proof
from overlay.ports import NO_PORTS, PORT_MAX, SUMMARY_MAX_LENGTH, PortSummary, decode_summary

FORMAT_VERSION = 2
MAX_DESCRIPTOR_BYTES = 2048
"""Whole wire form: some thousand descriptors fit a few megabytes, and one fits two packets."""
MAX_ADDRESSES = 8
MAX_SUITES = 8
MAX_MEMBERS = 12
"""Of a family. An operator with more relays than that has them share a payee, which joins them too."""
MAX_LINK_VERSIONS = 4
MAX_LIFETIME_S = 100 * 86400
"""Seconds from publication to expiry. Generous, for lists that people exchange by hand; gossip allows less
(`overlay.gossip.limits`).
"""
FUTURE_TOLERANCE_S = 3600
"""How far ahead of our clock a descriptor may be dated: machines with a clock an hour off still work."""
MAX_TIME_S = 2**40
MAX_PRICE_WEI_PER_PACKET = 10**18
MAX_CAPACITY_BYTES_PER_S = 2**50
MAX_MONTHLY_BYTES = 2**60
MAX_KEY_PERIOD_S = MAX_LIFETIME_S
ONION_KEY_BYTES = 32
PAYEE_BYTES = 20

_CONTEXT = b"descriptor"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_COUNTRY = re.compile(r"[A-Z]{2}")
_SUMMARY_OF_NO_EXIT = str(NO_PORTS)


class Role(enum.Flag):
    """What a node offers; on the wire the sum of the values."""

    RELAY = 1
    EXIT = 2


_Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_S)]
_Short = Annotated[str, msgspec.Meta(max_length=32)]


class Address(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where a node's QUIC endpoint answers: an IP address in its usual text form and a UDP port."""

    ip: Annotated[str, msgspec.Meta(min_length=2, max_length=45)]
    port: Annotated[int, msgspec.Meta(ge=1, le=PORT_MAX)]

    def __str__(self) -> str:
        """Return ``192.0.2.1:4433`` or ``[2001:db8::1]:4433``."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class Descriptor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a node says of itself. The order of the fields is the wire format; see
    docs/protocol/descriptor.md.
    """

    format_version: int = FORMAT_VERSION
    identity: Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    """Of two descriptors of one node the one with the higher number counts."""
    published_s: _Time
    expires_s: _Time
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(min_length=1, max_length=MAX_ADDRESSES)]
    onion_key: Annotated[bytes, msgspec.Meta(min_length=ONION_KEY_BYTES, max_length=ONION_KEY_BYTES)]
    """X25519 public key that circuits are built with."""
    previous_onion_key: Annotated[bytes, msgspec.Meta(max_length=ONION_KEY_BYTES)] = b""
    """The key before it, still accepted; empty if there is none."""
    role_bits: Annotated[int, msgspec.Meta(ge=1, le=3)] = Role.RELAY.value
    price_wei_per_packet: Annotated[int, msgspec.Meta(ge=0, le=MAX_PRICE_WEI_PER_PACKET)] = 0
    payee: Annotated[bytes, msgspec.Meta(max_length=PAYEE_BYTES)] = b""
    """Account that is paid: 20 bytes, or empty for a node that takes no money. See `payee_proof`."""
    exit_policy_summary: Annotated[str, msgspec.Meta(max_length=SUMMARY_MAX_LENGTH)] = _SUMMARY_OF_NO_EXIT
    has_ipv6: bool = False
    """Whether the exit carries IPv6 to the internet."""
    country: Annotated[str, msgspec.Meta(max_length=2)] = ""
    """ISO 3166-1 alpha-2 in upper case, or empty: the operator's own word, checked by nobody."""
    family: _Short = ""
    """A name shared by all nodes of one operator, or empty. No path uses two nodes of one family."""
    capacity_bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_CAPACITY_BYTES_PER_S)] = 0
    """What the operator offers, each way; 0 if it does not say."""
    software_version: _Short = ""
    suites: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=1, le=255)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_SUITES),
    ] = (1, 2)
    """Cipher suites of onion packets that the node speaks, best first."""
    payee_proof: Annotated[bytes, msgspec.Meta(max_length=PAYEE_PROOF_BYTES)] = b""
    """The payee's own signature that this identity earns for it (`overlay.payee`), or empty: then only a root
    list can vouch for the payee.
    """
    members: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)], ...],
        msgspec.Meta(max_length=MAX_MEMBERS),
    ] = ()
    """Identities of the operator's other nodes. It counts where both name each other."""
    onion_key_made_s: _Time = 0
    """When `onion_key` was made; 0 with a period of 0."""
    onion_key_period_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_KEY_PERIOD_S)] = 0
    """After so long another key takes its place, after twice as long nothing sealed for it is opened; 0 if
    the node does not say.
    """
    monthly_cap_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_MONTHLY_BYTES)] = 0
    """What the operator lets the node carry in a calendar month (UTC), both ways together; 0 for no cap."""
    is_draining: bool = False
    """Whether the node is about to go: nothing new is built through it."""
    link_versions: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=1, le=255)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_LINK_VERSIONS),
    ] = (1,)
    """Versions of the link protocol (the number in the ALPN) that the node speaks, best first."""

    @property
    def node_id(self) -> NodeId:
        """The identity, as a NodeId."""
        return NodeId(self.identity)

    @property
    def name(self) -> str:
        """The text form of the identity."""
        return format_node_id(self.identity)

    @property
    def roles(self) -> Role:
        """What the node offers."""
        return Role(self.role_bits)

    @property
    def is_exit(self) -> bool:
        """Whether the node is an exit."""
        return bool(self.role_bits & Role.EXIT.value)


@dataclass(frozen=True, slots=True)
class SignedDescriptor:
    """A descriptor whose signature holds, with the exact bytes to pass on."""

    descriptor: Descriptor
    encoded: bytes = field(repr=False)
    ports: PortSummary = field(repr=False)
    """The descriptor's exit policy summary, read."""


_decoder = msgspec.msgpack.Decoder(Descriptor)
_ELEMENTS = len(Descriptor.__struct_fields__)
_version_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])


def sign_descriptor(identity: Identity, descriptor: Descriptor) -> SignedDescriptor:
    """Return `descriptor` with its signature and wire form.

    Raises ValueError if a field is out of range or `descriptor` is another node's.
    """
    if descriptor.identity != identity.node_id:
        raise ValueError("a descriptor is signed by the identity it describes")
    encoded = sign_envelope(identity, _CONTEXT, msgspec.msgpack.encode(descriptor))
    try:
        return decode_descriptor(encoded)
    except DecodeError as error:
        raise ValueError(str(error)) from None


def decode_descriptor(data: bytes) -> SignedDescriptor:
    """Read a descriptor's wire form and check its signature; its age is for `find_staleness` to judge.

    Raises DecodeError for more than 2 KiB, another format version, a field out of range, or a wrong
    signature.
    """
    unchecked = decode_unchecked(data)
    check_signatures(unchecked)
    return unchecked


def decode_unchecked(data: bytes) -> SignedDescriptor:
    """Read a descriptor's wire form without checking any signature: for bytes of a file of our own, and for
    a look before the work of `check_signatures`.

    Raises DecodeError for more than 2 KiB, another format version or a field out of range.
    """
    envelope = decode_envelope(data, MAX_DESCRIPTOR_BYTES, "a descriptor")
    try:
        _check_version(envelope.body)
        descriptor = _decoder.decode(envelope.body)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"a descriptor is malformed: {error}") from None
    return SignedDescriptor(descriptor, bytes(data), _check_fields(descriptor))


def check_signatures(entry: SignedDescriptor) -> None:
    """Check the identity's signature and, if there is one, the payee's proof.

    Raises DecodeError if one does not hold.
    """
    descriptor = entry.descriptor
    envelope = decode_envelope(entry.encoded, MAX_DESCRIPTOR_BYTES, "a descriptor")
    if not verify(descriptor.identity, _CONTEXT, envelope.body, envelope.signature):
        raise DecodeError(f"the signature of the descriptor of {descriptor.name} does not hold")
    if descriptor.payee_proof and not is_proof(descriptor.payee_proof, descriptor.identity, descriptor.payee):
        raise DecodeError(f"the descriptor of {descriptor.name} is refused: its payee did not sign for it")


class Staleness(enum.Enum):
    """Why a descriptor is not to be used at a given time."""

    EXPIRED = "expired"
    FROM_THE_FUTURE = "dated in the future"


def find_staleness(descriptor: Descriptor, now_s: float) -> Staleness | None:
    """Tell why `descriptor` is not to be used at `now_s` (seconds since 1970), or return None."""
    if now_s >= descriptor.expires_s:
        return Staleness.EXPIRED
    if descriptor.published_s > now_s + FUTURE_TOLERANCE_S:
        return Staleness.FROM_THE_FUTURE
    return None


def _check_version(body: bytes) -> None:
    elements = _version_decoder.decode(body)
    version = msgspec.msgpack.decode(elements[0], type=int) if elements else None
    if version != FORMAT_VERSION:
        raise DecodeError(f"a descriptor of format {version} cannot be read, only of format {FORMAT_VERSION}")
    if len(elements) != _ELEMENTS:  # the library would put defaults in the place of missing ones
        raise DecodeError(f"a descriptor is malformed: {len(elements)} elements instead of {_ELEMENTS}")


def _check_fields(descriptor: Descriptor) -> PortSummary:
    lifetime_s = descriptor.expires_s - descriptor.published_s
    checks: tuple[tuple[bool, str], ...] = (
        (0 < lifetime_s <= MAX_LIFETIME_S, "it expires before it is published, or lives longer than allowed"),
        (
            len(descriptor.previous_onion_key) in (0, ONION_KEY_BYTES),
            "a previous onion key of a wrong length",
        ),
        (len(descriptor.payee) in (0, PAYEE_BYTES), "a payee of a wrong length"),
        (
            len(descriptor.payee_proof) in ((0, PAYEE_PROOF_BYTES) if descriptor.payee else (0,)),
            "a payee's proof of a wrong length, or without a payee",
        ),
        (
            descriptor.onion_key_period_s == 0
            or descriptor.onion_key_made_s + 2 * descriptor.onion_key_period_s >= descriptor.expires_s,
            "an onion key that is given up before the descriptor expires",
        ),
        (
            descriptor.onion_key_period_s > 0 or descriptor.onion_key_made_s == 0,
            "an onion key with a date and no period",
        ),
        (len(set(descriptor.members)) == len(descriptor.members), "a family member given twice"),
        (descriptor.identity not in descriptor.members, "a family that names the node itself"),
        (len(set(descriptor.link_versions)) == len(descriptor.link_versions), "a version given twice"),
        (_matches(_COUNTRY, descriptor.country), "a country that is not two capital letters"),
        (_matches(_NAME, descriptor.family), "a family name with characters that are not allowed"),
        (
            _matches(_NAME, descriptor.software_version),
            "a software version with characters that are not allowed",
        ),
        (len(set(descriptor.addresses)) == len(descriptor.addresses), "an address given twice"),
        (len(set(descriptor.suites)) == len(descriptor.suites), "a suite given twice"),
        (
            all(is_usable_address(address.ip) for address in descriptor.addresses),
            "an address nobody can dial",
        ),
    )
    for holds, problem in checks:
        if not holds:
            raise DecodeError(f"the descriptor of {descriptor.name} is refused: {problem}")
    ports = decode_summary(descriptor.exit_policy_summary)
    if not descriptor.is_exit and ports != NO_PORTS:
        raise DecodeError(
            f"the descriptor of {descriptor.name} is refused: an exit policy of a node that is no exit"
        )
    return ports


def is_usable_address(text: str) -> bool:
    """Tell whether `text` is an IP address in its usual form that one machine can have and another dial.

    Private and loopback addresses pass: a network of one's own uses them.
    """
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.IPv6Address(text) if ":" in text else ipaddress.IPv4Address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
        return False
    return str(address) == text and not (
        address.is_multicast or address.is_unspecified or text == "255.255.255.255"
    )


def _matches(pattern: re.Pattern[str], text: str) -> bool:
    return not text or pattern.fullmatch(text) is not None

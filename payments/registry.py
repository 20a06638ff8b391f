"""What a relay's entry in the registry means off the chain: its endorsement and its endpoint. Pure.

Ed25519 is the overlay's affair: it signs and checks `endorsement_message` under the context "registry", as
overlay identities do, so that the signed bytes are "hopfare registry\\0" and this message.
"""

from __future__ import annotations

import ipaddress

from payments.books import ADDRESS_BYTES

ENDORSEMENT_CONTEXT = b"registry"
ENDORSEMENT_BYTES = 64


def endorsement_message(chain_id: int, registry: bytes, payee: bytes) -> bytes:
    """Return what a relay's identity signs to say that it earns for `payee` (72 bytes)."""
    if len(registry) != ADDRESS_BYTES or len(payee) != ADDRESS_BYTES:
        raise ValueError("addresses have 20 bytes")
    return chain_id.to_bytes(32, "big") + registry + payee


def encode_ip(text: str) -> int:
    """Return an address as the registry keeps it: IPv6, or IPv4 mapped into it.

    Raises ValueError if `text` is neither.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return int(ipaddress.IPv6Address(f"::ffff:{address}"))
    return int(address)


def decode_ip(data: bytes) -> str:
    """Return the text of a listing's 16 address bytes, IPv4 where it is a mapped one."""
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)

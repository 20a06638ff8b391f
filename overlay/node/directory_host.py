"""What a relay may extend to: the directory's word on identities and addresses."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from overlay.descriptor import Role, find_staleness

if TYPE_CHECKING:
    from circuits.building.messages import Address
    from overlay.directory import Directory


def explain_no_extend(directory: Directory, node_id: bytes, address: Address, now_s: float) -> str | None:
    """Why a circuit may not go on to this relay at this address, as the text of a refusal, or None if it may.

    Only relays of the directory, and only where their own descriptors say that they answer: so nobody can
    have a relay knock at other people's doors.
    """
    entry = directory.get(node_id)
    if entry is None:
        return "it is not in this relay's directory"
    descriptor = entry.descriptor
    if find_staleness(descriptor, now_s) is not None:
        return "its descriptor in this relay's directory is not valid now"
    if not descriptor.roles & (Role.RELAY | Role.EXIT):
        return "it carries no circuits"
    host, port = ipaddress.ip_address(address[0]), address[1]
    if not any(
        ipaddress.ip_address(known.ip) == host and known.port == port for known in descriptor.addresses
    ):
        return "its descriptor names other addresses"
    return None

"""How a request ended: the reply codes of RFC 1928, section 6, and what they are in HTTP.

Owns the meaning of codes; does not own their bytes (`socks5`, `http`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from overlay.socks.circuits import NoCircuitKind


class Reply(IntEnum):
    """The REP field of a SOCKS5 reply."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request; `text` is a sentence for a person, where the protocol can carry one."""

    reply: Reply
    text: str = ""
    host: str = ""
    """Bound address, resolved address or (reverse lookup) name; "" for none."""
    port: int = 0


SUCCESS = Outcome(Reply.SUCCEEDED)

#: The status and first line of text in HTTP.
HTTP_STATUS: dict[Reply, tuple[int, str]] = {
    Reply.GENERAL_FAILURE: (503, "No circuit is ready"),
    Reply.NOT_ALLOWED: (403, "The exit's policy or a local setting does not allow this destination"),
    Reply.NETWORK_UNREACHABLE: (502, "The network cannot be reached through this exit"),
    Reply.HOST_UNREACHABLE: (502, "The host does not exist or cannot be reached"),
    Reply.CONNECTION_REFUSED: (502, "The host refused the connection"),
    Reply.TTL_EXPIRED: (504, "The host did not answer in time"),
    Reply.COMMAND_NOT_SUPPORTED: (501, "Not supported"),
    Reply.ADDRESS_TYPE_NOT_SUPPORTED: (400, "The address cannot be understood"),
}

_NO_CIRCUIT_REPLY = {
    NoCircuitKind.NOT_READY: Reply.GENERAL_FAILURE,
    NoCircuitKind.NOT_ALLOWED: Reply.NOT_ALLOWED,
    NoCircuitKind.NO_IPV6: Reply.NETWORK_UNREACHABLE,
    NoCircuitKind.OFFLINE: Reply.NETWORK_UNREACHABLE,
    NoCircuitKind.OVERLOADED: Reply.GENERAL_FAILURE,
}


def no_circuit_outcome(kind: NoCircuitKind, text: str) -> Outcome:
    """Return what a program is told when there is no circuit."""
    return Outcome(_NO_CIRCUIT_REPLY[kind], text)

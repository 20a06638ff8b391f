"""The names of the small internet: an authoritative DNS server's answers. Pure.

Zones `demo.test` (what a visitor uses), `evil.test` (names that point where an exit must not go) and the
reverse zones of the servers' addresses. Everything else is refused, or left to a forwarder by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

WWW_V4, WWW_V6 = "203.0.113.10", "2001:db8:1::10"
ECHO_V4, ECHO_V6 = "203.0.113.20", "2001:db8:1::20"
DNS_V4, DNS_V6 = "203.0.113.53", "2001:db8:1::53"
OTHER_V4, OTHER_V6 = "203.0.113.80", "2001:db8:1::80"
TTL_S = 60
MAX_UDP_BYTES = 1232  # what fits everywhere without fragments (DNS flag day 2020)
_SOA = "ns.demo.test. hostmaster.demo.test. 1 3600 600 86400 30"

_RECORDS: dict[str, dict[str, list[str]]] = {
    "demo.test.": {"SOA": [_SOA], "NS": ["ns.demo.test."], "A": [WWW_V4], "AAAA": [WWW_V6]},
    "ns.demo.test.": {"A": [DNS_V4], "AAAA": [DNS_V6]},
    "www.demo.test.": {"A": [WWW_V4], "AAAA": [WWW_V6]},
    "other.demo.test.": {"A": [OTHER_V4], "AAAA": [OTHER_V6]},
    "echo.demo.test.": {"A": [ECHO_V4], "AAAA": [ECHO_V6]},
    "v4only.demo.test.": {"A": [WWW_V4]},
    "v6only.demo.test.": {"AAAA": [WWW_V6]},
    "alias.demo.test.": {"CNAME": ["www.demo.test."]},
    "loop.demo.test.": {"CNAME": ["loop.demo.test."]},
    "many.demo.test.": {"A": [f"203.0.113.{10 + i}" for i in range(40)]},
    "big.demo.test.": {"TXT": [f'"{i:03d} {"x" * 200}"' for i in range(20)]},  # over UDP only truncated
    "mail.demo.test.": {"MX": ["10 www.demo.test."]},
    "evil.test.": {"SOA": [_SOA], "NS": ["ns.demo.test."]},
    "loopback.evil.test.": {"A": ["127.0.0.1"], "AAAA": ["::1"]},
    "private.evil.test.": {"A": ["10.1.0.1", "192.168.1.1"], "AAAA": ["fd00:1::1"]},
    "metadata.evil.test.": {"A": ["169.254.169.254"], "AAAA": ["fd00:ec2::254"]},
    "mapped.evil.test.": {"AAAA": ["::ffff:10.1.0.1", "::ffff:127.0.0.1"]},
    "inner.evil.test.": {"A": ["100.64.0.1", "100.64.0.2"], "AAAA": ["fd68:6f70:6661::1"]},
    "nat64.evil.test.": {"AAAA": ["64:ff9b::7f00:1"]},
    "mixed.evil.test.": {"A": [WWW_V4, "127.0.0.1"], "AAAA": [WWW_V6, "::1"]},
    "alias.evil.test.": {"CNAME": ["loopback.evil.test."]},
}
SLOW_NAME = dns.name.from_text("slow.demo.test.")  # never answered
_BROKEN_NAME = dns.name.from_text("broken.demo.test.")  # SERVFAIL
_REBIND_NAME = dns.name.from_text("rebind.evil.test.")  # first a public address, then a private one
_ZONES = [dns.name.from_text(zone) for zone in ("demo.test.", "evil.test.")]
_REVERSE_ZONES = [
    dns.name.from_text(zone) for zone in ("113.0.203.in-addr.arpa.", "8.b.d.0.1.0.0.2.ip6.arpa.")
]
_POINTERS = {
    WWW_V4: "www.demo.test.",
    WWW_V6: "www.demo.test.",
    ECHO_V4: "echo.demo.test.",
    ECHO_V6: "echo.demo.test.",
    DNS_V4: "ns.demo.test.",
    DNS_V6: "ns.demo.test.",
    OTHER_V4: "other.demo.test.",
    OTHER_V6: "other.demo.test.",
}
_MAX_CHAIN = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do with a query: send `wire`; forward it if `foreign`; nothing if neither."""

    name: str
    kind: str
    wire: bytes | None
    foreign: bool = False


class Zone:
    """The records, and the one bit of state that the rebinding name needs."""

    def __init__(self) -> None:
        """Load the records above."""
        self._rebinds = 0
        self._records = {
            dns.name.from_text(name): {
                dns.rdatatype.from_text(kind): dns.rrset.from_text(name, TTL_S, "IN", kind, *values)
                for kind, values in kinds.items()
            }
            for name, kinds in _RECORDS.items()
        }
        for address, target in _POINTERS.items():
            name = dns.reversename.from_address(address)
            self._records[name] = {
                dns.rdatatype.PTR: dns.rrset.from_text(name.to_text(), TTL_S, "IN", "PTR", target)
            }

    def answer(self, query: bytes, *, udp: bool) -> Answer | None:
        """The answer to one query; None for what is not a DNS query with one question."""
        try:
            message = dns.message.from_wire(query)
        except dns.exception.DNSException:
            return None
        if message.flags & dns.flags.QR or len(message.question) != 1:
            return None
        question = message.question[0]
        name, kind = question.name, question.rdtype
        described = name.to_text().lower(), dns.rdatatype.to_text(kind)
        if name == SLOW_NAME:
            return Answer(*described, wire=None)
        zone = next((z for z in (*_ZONES, *_REVERSE_ZONES) if name.is_subdomain(z)), None)
        if zone is None:
            return Answer(*described, wire=_wire(_refused(message), message, udp=udp), foreign=True)
        response = dns.message.make_response(message)
        response.flags |= dns.flags.AA
        if name == _BROKEN_NAME:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif name == _REBIND_NAME and kind == dns.rdatatype.A:
            self._rebinds += 1
            address = WWW_V4 if self._rebinds % 2 else "127.0.0.1"
            response.answer.append(dns.rrset.from_text(name.to_text(), 0, "IN", "A", address))
        else:
            self._fill(response, name, kind)
        if not response.answer and response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            response.authority.append(dns.rrset.from_text(zone.to_text(), 30, "IN", "SOA", _SOA))
        return Answer(*described, wire=_wire(response, message, udp=udp))

    def _fill(
        self, response: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> None:
        for _ in range(_MAX_CHAIN):
            records = self._records.get(name)
            if records is None:
                if not response.answer:
                    response.set_rcode(dns.rcode.NXDOMAIN)
                return
            if kind in records:
                response.answer.append(records[kind])
                return
            alias = records.get(dns.rdatatype.CNAME)
            if alias is None:
                return
            response.answer.append(alias)
            name = alias[0].target


def _refused(message: dns.message.Message) -> dns.message.Message:
    response = dns.message.make_response(message)
    response.set_rcode(dns.rcode.REFUSED)
    return response


def _wire(response: dns.message.Message, query: dns.message.Message, *, udp: bool) -> bytes:
    if not udp:
        return response.to_wire(max_size=65535)
    room = max(512, min(query.payload, MAX_UDP_BYTES)) if query.edns >= 0 else 512
    wire = response.to_wire(max_size=65535)  # by default what the query's EDNS allows, else an exception
    if len(wire) <= room:
        return wire
    short = dns.message.make_response(query)
    short.flags |= dns.flags.AA | dns.flags.TC
    return short.to_wire()

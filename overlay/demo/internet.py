"""The small internet: `python -m overlay.demo.internet FOLDER [--forward ADDRESS]` in the lab's namespace.

Serves on the namespace's addresses, IPv4 and IPv6 alike: the web (`web.py`) on ports 80, 443 and 8080, DNS
(`names.py`) on port 53, echo over TCP and UDP on port 7. Writes its certificate authority to
FOLDER/ca.pem and every DNS query as a JSON line to FOLDER/queries.log, and prints `ready`. With `--forward`
names outside of its zones are asked of that resolver, for a lab that is joined to the real internet.
"""

from __future__ import annotations

import argparse
import datetime
import json
import selectors
import signal
import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path

import dns.message
import dns.rdatatype
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from overlay.demo import names
from overlay.demo.web import WebServer, make_repository

ECHO_PORT = 7
DNS_PORT = 53
WEB_PORTS = (80, 8080)
TLS_PORT = 443
_FORWARD_TIMEOUT_S = 4.0
_DNS_ADDRESSES = (names.DNS_V4, names.DNS_V6)
_ECHO_ADDRESSES = (names.ECHO_V4, names.ECHO_V6, names.WWW_V4, names.WWW_V6)


def main() -> None:
    """Start all servers and wait for a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--forward", default=None)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    tls = make_certificates(folder)
    git_folder = (folder / "git").resolve()
    webs = [WebServer(port, git_folder) for port in WEB_PORTS]
    webs.append(WebServer(TLS_PORT, git_folder, tls))
    for web in webs[1:]:
        web.seen = webs[0].seen
    for web in webs:
        web.start()
    resolver = _Resolver(folder / "queries.log", options.forward)
    for address in _DNS_ADDRESSES:
        _thread(resolver.serve_udp, _bound(address, DNS_PORT, socket.SOCK_DGRAM))
        _thread(resolver.serve_tcp, _bound(address, DNS_PORT, socket.SOCK_STREAM))
    _thread(_echo_udp, [_bound(address, ECHO_PORT, socket.SOCK_DGRAM) for address in _ECHO_ADDRESSES])
    _thread(_echo_tcp, _bound("::", ECHO_PORT, socket.SOCK_STREAM))
    print("ready", flush=True)
    if not make_repository(git_folder):
        print("no git on this machine: /git is empty", flush=True)
    print("git ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def make_certificates(folder: Path) -> ssl.SSLContext:
    """A certificate authority of the moment, its certificate in `folder`/ca.pem, and a server's context."""
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hopfare demo")])

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + 30 * day)
        )

    ca = (
        builder(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    hosts = [x509.DNSName("demo.test"), x509.DNSName("*.demo.test")]
    certificate = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "www.demo.test")]), key.public_key())
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    server = folder / "server.pem"
    server.touch(mode=0o600)
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server.write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)
    return context


def _thread(target: object, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]


def _bound(address: str, port: int, kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen(512)
    return server


class _Resolver:
    """Answers from the zone; asks another resolver for what is not in it, if there is one."""

    def __init__(self, log: Path, forward: str | None) -> None:
        self._zone = names.Zone()
        self._lock = threading.Lock()
        self._log = log.open("a", buffering=1)
        self._forward = forward

    def answer(self, query: bytes, peer: str, *, udp: bool) -> bytes | None:
        with self._lock:
            answer = self._zone.answer(query, udp=udp)
            if answer is None:
                return None
            line = {"time": time.time(), "from": peer, "name": answer.name, "type": answer.kind, "udp": udp}
            self._log.write(json.dumps(line) + "\n")
        if answer.foreign and self._forward is not None:
            return self._ask(query, answer)
        return answer.wire

    def _ask(self, query: bytes, answer: names.Answer) -> bytes | None:
        if answer.kind == "AAAA":  # the way out has IPv4 only: an address of the other family would mislead
            return dns.message.make_response(dns.message.from_wire(query)).to_wire()
        family = socket.AF_INET6 if ":" in str(self._forward) else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as way, suppress(OSError):
            way.settimeout(_FORWARD_TIMEOUT_S)
            way.connect((self._forward, DNS_PORT))
            way.send(query)
            return way.recv(65535)
        return None

    def serve_udp(self, server: socket.socket) -> None:
        while True:
            query, peer = server.recvfrom(65535)

            def reply(query: bytes = query, peer: tuple[str, int] = peer) -> None:
                wire = self.answer(query, peer[0], udp=True)
                if wire is not None:
                    with suppress(OSError):
                        server.sendto(wire, peer)

            if self._forward is None:
                reply()
            else:
                _thread(reply)

    def serve_tcp(self, server: socket.socket) -> None:
        while True:
            connection, peer = server.accept()
            _thread(self._serve_connection, connection, peer[0])

    def _serve_connection(self, connection: socket.socket, peer: str) -> None:
        with connection, connection.makefile("rb") as stream, suppress(OSError):
            connection.settimeout(30)
            while len(head := stream.read(2)) == 2:
                query = stream.read(int.from_bytes(head, "big"))
                wire = self.answer(query, peer, udp=False)
                if wire is None:
                    return
                connection.sendall(len(wire).to_bytes(2, "big") + wire)


def _echo_udp(servers: list[socket.socket]) -> None:
    selector = selectors.DefaultSelector()
    for each in servers:
        selector.register(each, selectors.EVENT_READ, each)
    while True:
        for key, _ in selector.select():
            server: socket.socket = key.data
            with suppress(OSError):  # an ICMP error about an earlier reply
                data, peer = server.recvfrom(65535)
                server.sendto(data, peer)


def _echo_tcp(server: socket.socket) -> None:
    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    while True:
        connection, _ = server.accept()
        _thread(serve, connection)


if __name__ == "__main__":
    main()

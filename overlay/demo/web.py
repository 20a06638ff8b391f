"""The web server of the small internet, over HTTP and HTTPS: pages, big files, uploads, a git repository.

    /                    the landing page
    /ip                  the address the request came from: an exit's, never the visitor's
    /small               64 bytes
    /big/N               N pseudo-random bytes (the same for the same N); /big/N.sha256 their checksum
    /upload              PUT or POST anything: answers {"bytes": n, "sha256": "..."}
    /headers             the request's headers, as JSON
    /status/NNN          an empty answer with that status
    /redirect?to=URL     302 to URL
    /drip?bytes=N&every=S   N bytes, one each S seconds
    /seen                the addresses of the latest requests, as JSON
    /git/demo.git        a repository for `git clone` (dumb HTTP)

One thread per connection; reads and writes release the interpreter lock. Not for the open internet.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK_BYTES = 1 << 18
MAX_BIG_BYTES = 1 << 40
SMALL = b"x" * 64
_KEY = hashlib.sha256(b"hopfare demo file").digest()
_IDLE_TIMEOUT_S = 120
_MAX_SEEN = 200

LANDING = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The hopfare demo</title>
<style>body{font:18px/1.5 sans-serif;max-width:40em;margin:3em auto}code{background:#eee}</style>
</head><body><h1>You came here through three relays</h1>
<p>This server, <b>%(host)s</b>, saw your request come from <b id="address">%(address)s</b>:
the exit. It does not know who you are. Your guard knows you, but not this page.
The relay in the middle knows neither.</p>
<ul><li><a href="/ip">/ip</a>: the address that this server sees</li>
<li><a href="/big/100000000">/big/100000000</a>: 100 MB (<a href="/big/100000000.sha256">checksum</a>)</li>
<li><code>git clone http://www.demo.test/git/demo.git</code></li>
<li><a href="http://v6only.demo.test/">a server with IPv6 only</a></li>
<li><a href="/seen">who came here lately</a></li></ul></body></html>
"""


class ByteStream:
    """The first `size_bytes` of an endless pseudo-random stream that depends on the size only."""

    def __init__(self, size_bytes: int) -> None:
        """Start at the first byte."""
        nonce = size_bytes.to_bytes(16, "big")
        self._left = size_bytes
        self._cipher = Cipher(algorithms.AES(_KEY), modes.CTR(nonce)).encryptor()
        self._zeros = bytes(BLOCK_BYTES)
        self._block = bytearray(BLOCK_BYTES + 15)

    def next_block(self) -> memoryview:
        """The next at most BLOCK_BYTES bytes, empty at the end; valid until the next call."""
        size = min(self._left, BLOCK_BYTES)
        self._left -= size
        view = memoryview(self._zeros)[:size]
        written = self._cipher.update_into(view, self._block)
        return memoryview(self._block)[:written]


@functools.lru_cache(maxsize=64)
def checksum(size_bytes: int) -> str:
    """SHA-256 of the file /big/`size_bytes`, in hex."""
    digest, stream = hashlib.sha256(), ByteStream(size_bytes)
    while block := stream.next_block():
        digest.update(block)
    return digest.hexdigest()


class WebServer:
    """Serves on every address of the namespace, in threads that end with the process."""

    def __init__(self, port: int, git_folder: Path | None, tls: ssl.SSLContext | None = None) -> None:
        """Bind. Raises OSError."""
        self.seen: deque[dict[str, object]] = deque(maxlen=_MAX_SEEN)
        handler = type("Handler", (_Handler,), {"web": self})
        self.git_folder = git_folder
        self._server = _Server(("::", port), handler, tls)

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Serve from now on."""
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        super().__init__(address, handler, bind_and_activate=False)
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.server_bind()
        self.server_activate()

    def server_bind(self) -> None:
        # The base class asks the resolver for our own name, which takes seconds in a lab.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "demo", self.server_address[1]

    def finish_request(self, request: object, client_address: object) -> None:
        # In the connection's own thread: a visitor who never finishes a TLS handshake holds up nobody.
        if self._tls is not None:
            assert isinstance(request, socket.socket)
            request.settimeout(_IDLE_TIMEOUT_S)
            request = self._tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)  # type: ignore[arg-type] # as the base class calls it

    def handle_error(self, request: object, client_address: object) -> None:
        """A visitor who goes away in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    web: WebServer
    protocol_version = "HTTP/1.1"
    server_version = "demo"
    sys_version = ""
    timeout = _IDLE_TIMEOUT_S
    wbufsize = 65536
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing: `seen` is enough."""

    def _visitor(self) -> str:
        return str(self.client_address[0]).removeprefix("::ffff:")

    def _note(self) -> None:
        self.web.seen.append({"time": round(time.time(), 3), "from": self._visitor(), "path": self.path})

    def _reply(self, body: bytes, kind: str = "text/plain", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self._note()
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match parts.path.strip("/").split("/"):
            case [""]:
                page = LANDING % {"host": _escape(self.headers.get("Host", "")), "address": self._visitor()}
                self._reply(page.encode(), "text/html; charset=utf-8")
            case ["ip"]:
                self._reply(f"{self._visitor()}\n".encode())
            case ["small"]:
                self._reply(SMALL, "application/octet-stream")
            case ["big", size] if size.removesuffix(".sha256").isdigit():
                self._big(size)
            case ["headers"]:
                self._reply(json.dumps(dict(self.headers)).encode(), "application/json")
            case ["status", status] if status.isdigit() and 200 <= int(status) <= 599:
                self._reply(b"", status=int(status))
            case ["redirect"]:
                self._reply(
                    b"", status=302, Location=query.get("to", "/").replace("\r", "").replace("\n", "")
                )
            case ["drip"]:
                self._drip(int(query.get("bytes", "10")), float(query.get("every", "0.1")))
            case ["seen"]:
                self._reply(json.dumps(list(self.web.seen)).encode(), "application/json")
            case ["git", *_]:
                self._file(parts.path)
            case _:
                self._reply(b"no such page\n", status=404)

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def do_PUT(self) -> None:
        self._note()
        if self.path.strip("/") != "upload":
            self.close_connection = True
            self._reply(b"no such page\n", status=404)
            return
        digest, size = hashlib.sha256(), 0
        for block in self._body():
            digest.update(block)
            size += len(block)
        self._reply(json.dumps({"bytes": size, "sha256": digest.hexdigest()}).encode(), "application/json")

    do_POST = do_PUT  # noqa: N815 - the base class's name

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline(1024).split(b";")[0], 16):
                yield from self._exactly(size)
                self.rfile.readline(8)
            self.rfile.readline(8)
        else:
            yield from self._exactly(int(self.headers.get("Content-Length", "0")))

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            block = self.rfile.read1(min(size, BLOCK_BYTES))
            if not block:
                raise ConnectionError("the visitor went away in mid-upload")
            size -= len(block)
            yield block

    def _big(self, name: str) -> None:
        size = int(name.removesuffix(".sha256"))
        if size > MAX_BIG_BYTES:
            self._reply(b"too big\n", status=404)
            return
        if name.endswith(".sha256"):
            self._reply(f"{checksum(size)}\n".encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        stream = ByteStream(size)
        while block := stream.next_block():
            self.connection.sendall(block)

    def _drip(self, size: int, every_s: float) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for _ in range(size):
            self.wfile.write(b".")
            self.wfile.flush()
            time.sleep(every_s)

    def _file(self, path: str) -> None:
        folder = self.web.git_folder
        if folder is not None:
            wanted = Path(os.path.normpath(folder / path.removeprefix("/git/")))
            if wanted.is_relative_to(folder) and wanted.is_file():
                self._reply(wanted.read_bytes(), "application/octet-stream")
                return
        self._reply(b"no such file\n", status=404)


def make_repository(folder: Path) -> bool:
    """Make `demo.git` under `folder` for dumb HTTP, with a few commits; False if there is no git."""
    if shutil.which("git") is None:
        return False
    work, bare = folder / "work", folder / "demo.git"
    # What a server before this one made, or was stopped in the middle of.
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True)
    environment = dict(os.environ, GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull)
    environment |= {
        f"GIT_{who}_{what}": "demo" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }

    def git(*arguments: str, cwd: Path = work) -> None:
        subprocess.run(["git", *arguments], cwd=cwd, env=environment, check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    (work / "README").write_text("A repository to be cloned through three relays.\n")
    git("add", ".")
    git("commit", "-q", "-m", "First")
    (work / "noise").write_bytes(bytes(ByteStream(200_000).next_block()))
    git("add", ".")
    git("commit", "-q", "-m", "Second")
    git("clone", "-q", "--bare", str(work), str(bare))
    git("update-server-info", cwd=bare)
    shutil.rmtree(work)
    return True


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

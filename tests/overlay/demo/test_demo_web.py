"""The small internet's web server, on loopback."""

import hashlib
import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.demo.web import BLOCK_BYTES, ByteStream, WebServer, checksum, make_repository


@pytest.fixture
def port(tmp_path: Path) -> int:
    for _ in range(2):  # a server that is started again finds what the one before made
        make_repository(tmp_path / "git")
    (tmp_path / "secret").write_text("no")
    server = WebServer(0, tmp_path / "git")
    server.start()
    return server.port


def get(port: int, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def test_pages(port: int) -> None:
    assert get(port, "/ip") == (200, b"127.0.0.1\n")
    assert b"three relays" in get(port, "/")[1]
    assert get(port, "/small") == (200, b"x" * 64)
    assert get(port, "/status/503")[0] == 503
    assert get(port, "/nothing")[0] == 404
    assert get(port, "/small", "HEAD") == (200, b"")
    assert get(port, "/drip?bytes=3&every=0") == (200, b"...")
    seen = json.loads(get(port, "/seen")[1])
    assert {"/ip", "/small"} <= {entry["path"] for entry in seen}


def test_redirect(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/redirect?to=http://127.0.0.1/%0d%0aX:%20y")
    response = connection.getresponse()
    assert (response.status, response.getheader("X")) == (302, None)
    connection.close()


@pytest.mark.parametrize("size", [0, 1, 15, 16, BLOCK_BYTES, 3 * BLOCK_BYTES + 7])
def test_big_files_match_their_checksum(port: int, size: int) -> None:
    status, body = get(port, f"/big/{size}")
    assert (status, len(body)) == (200, size)
    assert hashlib.sha256(body).hexdigest() == checksum(size)
    assert get(port, f"/big/{size}.sha256")[1].decode().strip() == checksum(size)


def test_files_of_different_sizes_share_no_beginning() -> None:
    assert bytes(ByteStream(100).next_block()) != bytes(ByteStream(101).next_block())[:100]


def test_uploads_are_counted_and_hashed(port: int) -> None:
    body = bytes(ByteStream(100_000).next_block())
    expected = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    assert json.loads(get(port, "/upload", "PUT", body)[1]) == expected

    def chunks() -> Iterator[bytes]:
        yield from (body[i : i + 7000] for i in range(0, len(body), 7000))

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(
        "POST", "/upload", chunks(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert json.loads(connection.getresponse().read()) == expected
    connection.close()


def test_only_the_repository_is_served(port: int) -> None:
    assert get(port, "/git/../secret")[0] == 404
    assert get(port, "/git/demo.git/../../secret")[0] == 404


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_repository_can_be_cloned(port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port}/git/demo.git"
    command = ["git", "-c", "http.proxy=", "clone", "-q", url, str(tmp_path / "clone")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "clone" / "README").exists()

"""Endpoints on the loopback, of the native engine and of the Python engine's libraries."""

from __future__ import annotations

import contextlib

import trio
from engine_chain import THREADS
from links_net import ACCEPTOR, DIALLER, Recorder

from overlay.engine.io.native_links import open_native_links
from overlay.engine.native import NativeEngine
from overlay.links.io.endpoint import open_endpoint

HOST = ("127.0.0.1", 0)


class Watch(Recorder):
    """A recorder that can be waited on."""

    async def until(self, done, limit_s=60):
        with trio.fail_after(limit_s):
            while not done():
                await trio.sleep(0.002)


@contextlib.asynccontextmanager
async def open_one(kind, host, identity, watch, *, role="relay", limits=None, alpn="hopfare/1"):
    if kind in ("native", "threads"):
        threads = THREADS if kind == "threads" else 1
        engine = NativeEngine(watch, memory_limit_bytes=1 << 24, threads=threads)
        async with open_native_links(
            [host], identity, engine, role=role, limits=limits, alpn=alpn
        ) as endpoint:
            yield endpoint
    else:
        async with open_endpoint(
            host, identity, watch, backend=kind, role=role, limits=limits, alpn=alpn
        ) as endpoint:
            yield endpoint


@contextlib.asynccontextmanager
async def two(kinds, *, role="relay", limits=None, acceptor_limits=None, host=HOST, alpns=("hopfare/1",) * 2):
    """A dialling and an accepting endpoint with their watches."""
    ours, theirs = Watch(), Watch()
    identity = DIALLER if role == "relay" else None
    async with (
        open_one(kinds[1], host, ACCEPTOR, theirs, limits=acceptor_limits, alpn=alpns[1]) as acceptor,
        open_one(kinds[0], host, identity, ours, role=role, limits=limits, alpn=alpns[0]) as dialler,
    ):
        yield dialler, acceptor, ours, theirs

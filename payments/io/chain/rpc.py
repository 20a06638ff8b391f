"""JSON-RPC over HTTP: several endpoints, deadlines, retries, and no trust in what comes back.

Owns which endpoint is asked, when it is asked again, and that each serves our chain. An answer that is
late, too long, not JSON, of another request or not of the expected form counts against its endpoint, and
the next one is asked. Does not own what an answer means: each call names a `decode` that raises
DecodeError.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import trio

from payments.errors import ChainError, DecodeError, RpcRefusedError, RpcUnavailableError, WrongChainError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

MAX_ANSWER_BYTES = 4 * 1024 * 1024
_REST_S = 5.0
_MAX_REST_S = 300.0
_WRONG_CHAIN_REST_S = 600.0
_MAX_DEPTH = 64
_BRACKETS = re.compile(rb"[\[\]{}]")
_BUSY_CODES = (-32005, -32029, 429)
"""Error codes by which providers say "too many requests": another endpoint, or later."""


@dataclass(slots=True)
class Endpoint:
    """One provider and what we know of it."""

    url: str
    failures: int = 0
    rests_until: float = 0.0
    is_ours: bool = False
    """Whether it has shown that it serves our chain since it last failed."""
    last_error: str = ""

    @property
    def name(self) -> str:
        """The address without user, password, path or query, where providers put secrets: fit for logs."""
        rest = self.url.partition("://")[2].partition("/")[0].partition("?")[0]
        return rest.rpartition("@")[2]


class Rpc:
    """A chain's endpoints. Use as an async context manager. Cancelling a call leaves nothing behind."""

    def __init__(
        self,
        urls: Sequence[str],
        chain_id: int,
        *,
        deadline_s: float = 10.0,
        attempts: int = 4,
        client: httpx.AsyncClient | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Use the endpoints at `urls` (http or https), which must serve chain `chain_id`.

        One call makes at most `attempts` requests of at most `deadline_s` each.
        """
        if not urls or any(not u.startswith(("http://", "https://")) for u in urls):
            raise ValueError("at least one endpoint, each an http or https address")
        self.chain_id = chain_id
        self.endpoints = [Endpoint(u) for u in urls]
        self._deadline_s = deadline_s
        self._attempts = attempts
        self._client = client
        self._rng = rng if rng is not None else random.Random()
        self._next_id = 0

    async def __aenter__(self) -> Rpc:
        if self._client is None:
            import httpx

            # Not through a proxy of the environment: it may well be the one that this very process offers.
            self._client = httpx.AsyncClient(
                timeout=None,
                follow_redirects=False,
                limits=httpx.Limits(max_connections=8),
                trust_env=False,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            with trio.CancelScope(shield=True):
                await self._client.aclose()

    async def call(self, method: str, *params: object, decode: Callable[[object], T]) -> T:
        """Return the decoded answer of `method` from the first endpoint that gives a good one.

        Raises RpcRefusedError if an endpoint answers with an error of the method itself, WrongChainError if
        every endpoint serves another chain, RpcUnavailableError if none gave a good answer in time.
        """
        for attempt in range(self._attempts):
            endpoint = self._choose()
            if endpoint is None:
                break
            answer = await self._try(endpoint, method, params, decode)
            if answer is not None:
                return answer[0]
            if attempt + 1 < self._attempts and self._choose() is endpoint:
                await trio.sleep(0.1 * 2**attempt * (1 + self._rng.random()))
        raise self._verdict(method)

    async def call_each(
        self, count: int, method: str, *params: object, decode: Callable[[object], T]
    ) -> list[T]:
        """Return the answers of up to `count` different endpoints (at least one), to compare them.

        Raises as `call` does, if not one gave a good answer.
        """
        answers: list[T] = []
        now = trio.current_time()
        for endpoint in sorted(self.endpoints, key=lambda e: e.failures):
            if len(answers) == count:
                break
            if endpoint.rests_until > now:
                continue
            answer = await self._try(endpoint, method, params, decode)
            if answer is not None:
                answers.append(answer[0])
        return answers or [await self.call(method, *params, decode=decode)]

    def _choose(self) -> Endpoint | None:
        usable = [e for e in self.endpoints if "another chain" not in e.last_error]
        now = trio.current_time()
        usable += [e for e in self.endpoints if e not in usable and e.rests_until <= now]
        # One that should rest is still better than none.
        return min(usable, key=lambda e: (e.rests_until > now, e.failures), default=None)

    def _verdict(self, method: str) -> ChainError:
        told = "; ".join(f"{e.name}: {e.last_error or 'not asked'}" for e in self.endpoints)
        if all("another chain" in e.last_error for e in self.endpoints):
            return WrongChainError(f"No endpoint serves chain {self.chain_id} ({told}).")
        return RpcUnavailableError(f"No endpoint answered {method} ({told}).")

    async def _try(
        self, endpoint: Endpoint, method: str, params: Sequence[object], decode: Callable[[object], T]
    ) -> tuple[T] | None:
        """Ask one endpoint; return its answer in a tuple, or None if it failed (which is noted)."""
        try:
            if not endpoint.is_ours:
                found = await self._request(endpoint, "eth_chainId", [], decode_quantity)
                if found != self.chain_id:
                    endpoint.failures += 1
                    endpoint.last_error = f"serves another chain, {found}"
                    endpoint.rests_until = trio.current_time() + _WRONG_CHAIN_REST_S
                    return None
                endpoint.is_ours = True
            answer = await self._request(endpoint, method, params, decode)
        except (DecodeError, RpcUnavailableError) as error:
            endpoint.failures += 1
            endpoint.is_ours = False
            endpoint.last_error = str(error)
            rest = min(_MAX_REST_S, _REST_S * 2 ** min(endpoint.failures - 1, 10))
            endpoint.rests_until = trio.current_time() + rest
            return None
        endpoint.failures = 0
        endpoint.rests_until = 0.0
        endpoint.last_error = ""
        return (answer,)

    async def _request(
        self, endpoint: Endpoint, method: str, params: Sequence[object], decode: Callable[[object], T]
    ) -> T:
        import httpx

        if self._client is None:
            raise ValueError("an Rpc is used inside its `async with`")
        self._next_id += 1
        request = {"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": list(params)}
        try:
            with trio.fail_after(self._deadline_s):
                async with self._client.stream("POST", endpoint.url, json=request) as response:
                    data = bytearray()
                    async for chunk in response.aiter_bytes():
                        data += chunk
                        if len(data) > MAX_ANSWER_BYTES:
                            raise DecodeError("the answer is too long")
                    status = response.status_code
        except trio.TooSlowError:
            raise RpcUnavailableError(f"no answer within {self._deadline_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise RpcUnavailableError(f"{type(error).__name__}") from None
        return decode_answer(bytes(data), status, self._next_id, decode)


def decode_answer(data: bytes, status: int, request_id: int, decode: Callable[[object], T]) -> T:
    """Return the decoded result in an HTTP answer's body.

    Raises RpcRefusedError for an error of the method, RpcUnavailableError for one of the provider,
    DecodeError for anything that is not JSON-RPC or not of the expected form.
    """
    if is_too_deep(data):
        raise DecodeError("the answer is nested too deeply")
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        if status != 200:
            raise RpcUnavailableError(f"HTTP status {status}") from None
        raise DecodeError("the answer is not JSON") from None
    if not isinstance(answer, dict):
        raise DecodeError("the answer is not an object")
    error = answer.get("error")
    if error is not None:
        code = error.get("code") if isinstance(error, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        if status in (429, 502, 503) or code in _BUSY_CODES:
            raise RpcUnavailableError(f"busy ({code})")
        if not isinstance(code, int) or not isinstance(message, str):
            raise DecodeError("an error without code or message")
        raise RpcRefusedError(message[:500], code, error.get("data"))
    if status != 200:
        raise RpcUnavailableError(f"HTTP status {status}")
    if answer.get("id") != request_id or "result" not in answer:
        raise DecodeError("the answer is not to our request")
    return decode(answer["result"])


def is_too_deep(data: bytes) -> bool:
    """Tell whether JSON text nests deeper than any honest answer.

    Python's parser recurses; where a library has raised the recursion limit (hypothesis does, for one), deep
    nesting ends the process instead of raising.
    """
    depth = 0
    for match in _BRACKETS.finditer(data):
        depth += 1 if match[0] in b"[{" else -1
        if depth > _MAX_DEPTH:
            return True
    return False


def decode_quantity(value: object) -> int:
    """Return a JSON-RPC quantity such as "0x1f" (below 2^256). Raises DecodeError if it is not one."""
    if not isinstance(value, str) or not 3 <= len(value) <= 66 or value[:2] != "0x":
        raise DecodeError("not a quantity")
    try:
        return int(value[2:], 16) if value[2] not in "+-_ " else _fail()
    except ValueError:
        raise DecodeError("not a quantity") from None


def decode_data(value: object) -> bytes:
    """Return JSON-RPC bytes such as "0x00ff". Raises DecodeError if they are not hexadecimal."""
    if not isinstance(value, str) or value[:2] != "0x":
        raise DecodeError("not bytes")
    try:
        return bytes.fromhex(value[2:])
    except ValueError:
        raise DecodeError("not bytes") from None


def decode_object(value: object) -> dict[str, object]:
    """Return a JSON object. Raises DecodeError if it is not one."""
    if not isinstance(value, dict):
        raise DecodeError("not an object")
    return value


def decode_optional(value: object) -> dict[str, object] | None:
    """Return a JSON object or None for null. Raises DecodeError if it is neither."""
    return None if value is None else decode_object(value)


def _fail() -> int:
    raise ValueError

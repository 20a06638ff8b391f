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
Call = tuple[str, Sequence[object]]
"""A method and its parameters."""

MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_TOGETHER = 100
"""Calls in one request: what most providers take, and far below the limit of an answer's length."""
_GRACE_S = 2.0
"""How much longer than the first of several endpoints the others are waited for."""
_REST_S = 5.0
_MAX_REST_S = 300.0
_WRONG_CHAIN_REST_S = 600.0
_MAX_DEPTH = 64
_BRACKETS = re.compile(rb"[\[\]{}]")
_BUSY_STATUS = (429, 502, 503)
_TOO_LONG_STATUS = (400, 405, 413, 414, 415, 422, 501)
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
    most_together: int = MAX_TOGETHER
    """Calls that it takes in one request."""

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
        return (await self.call_many([(method, params)], decode=decode))[0]

    async def call_many(self, calls: Sequence[Call], *, decode: Callable[[object], T]) -> list[T]:
        """Return the decoded answers of many calls, in their order: up to a hundred in one request.

        Each hundred is answered by one endpoint as a whole; an endpoint that takes no JSON-RPC batches is
        asked for one at a time. Raises as `call` does.
        """
        answers: list[T] = []
        for first in range(0, len(calls), MAX_TOGETHER):
            answers += await self._call_part(calls[first : first + MAX_TOGETHER], decode)
        return answers

    async def call_each(
        self, count: int, method: str, *params: object, decode: Callable[[object], T]
    ) -> list[T]:
        """Return the answers of up to `count` different endpoints (at least one), to compare them.

        Raises as `call` does, if not one gave a good answer; RpcRefusedError also if one of several refuses.
        """
        found = await self._ask_each(count, [(method, params)], decode, may_miss=False)
        return [answers[0] for answers in found]

    async def call_many_each(
        self, count: int, calls: Sequence[Call], *, decode: Callable[[object], T]
    ) -> list[list[T]]:
        """Return the answers to many calls of up to `count` different endpoints (at least one), each in the
        calls' order. One that refuses, mostly because it has not got so far, counts as not there while
        another answers. Raises as `call` does.
        """
        return await self._ask_each(count, calls, decode, may_miss=True)

    async def _ask_each(
        self, count: int, calls: Sequence[Call], decode: Callable[[object], T], *, may_miss: bool
    ) -> list[list[T]]:
        now = trio.current_time()
        left = [e for e in sorted(self.endpoints, key=lambda e: e.failures) if e.rests_until <= now]
        found: list[list[T]] = []
        refused: list[RpcRefusedError] = []

        async def ask(scope: trio.CancelScope) -> None:
            while left:
                endpoint = left.pop(0)
                answers: list[T] = []
                try:
                    for first in range(0, len(calls), MAX_TOGETHER):
                        part = await self._try(endpoint, calls[first : first + MAX_TOGETHER], decode)
                        if part is None:
                            break
                        answers += part
                    else:
                        found.append(answers)
                        # Who is much slower than another must not hold up what money waits for.
                        scope.deadline = min(scope.deadline, trio.current_time() + _GRACE_S)
                        return
                except RpcRefusedError as error:
                    refused.append(error)
                    if not may_miss:
                        return

        async with trio.open_nursery() as nursery:
            for _ in range(min(count, len(left))):
                nursery.start_soon(ask, nursery.cancel_scope)
        if refused and not (found and may_miss):
            raise refused[0]
        return found or [await self.call_many(calls, decode=decode)]

    async def _call_part(self, calls: Sequence[Call], decode: Callable[[object], T]) -> list[T]:
        for attempt in range(self._attempts):
            endpoint = self._choose()
            if endpoint is None:
                break
            answers = await self._try(endpoint, calls, decode)
            if answers is not None:
                return answers
            if attempt + 1 < self._attempts and self._choose() is endpoint:
                await trio.sleep(0.1 * 2**attempt * (1 + self._rng.random()))
        raise self._verdict(calls[0][0])

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
        self, endpoint: Endpoint, calls: Sequence[Call], decode: Callable[[object], T]
    ) -> list[T] | None:
        """Ask one endpoint; return its answers, or None if it failed (which is noted)."""
        begun = trio.current_time()
        try:
            if not endpoint.is_ours:
                [found] = await self._request(endpoint, [("eth_chainId", ())], decode_quantity)
                if found != self.chain_id:
                    endpoint.failures += 1
                    endpoint.last_error = f"serves another chain, {found}"
                    endpoint.rests_until = trio.current_time() + _WRONG_CHAIN_REST_S
                    return None
                endpoint.is_ours = True
            answers = await self._ask(endpoint, calls, decode)
        except (DecodeError, RpcUnavailableError) as error:
            self._note_failure(endpoint, str(error))
            return None
        except trio.Cancelled:
            waited_s = trio.current_time() - begun
            if waited_s >= _GRACE_S:
                # Who asked had less patience than our deadline; the next one should not wait as long again.
                self._note_failure(endpoint, f"no answer within {waited_s:.0f} s")
            raise
        endpoint.failures = 0
        endpoint.rests_until = 0.0
        endpoint.last_error = ""
        return answers

    @staticmethod
    def _note_failure(endpoint: Endpoint, reason: str) -> None:
        endpoint.failures += 1
        endpoint.is_ours = False
        endpoint.last_error = reason
        rest = min(_MAX_REST_S, _REST_S * 2 ** min(endpoint.failures - 1, 10))
        endpoint.rests_until = trio.current_time() + rest

    async def _ask(self, endpoint: Endpoint, calls: Sequence[Call], decode: Callable[[object], T]) -> list[T]:
        """Make as few requests as the endpoint allows; what it allows is found out."""
        answers: list[T] = []
        while len(answers) < len(calls):
            part = calls[len(answers) : len(answers) + endpoint.most_together]
            try:
                answers += await self._request(endpoint, part, decode)
            except _NoBatchError:
                endpoint.most_together = max(1, min(endpoint.most_together, len(part)) // 10)
            except RpcRefusedError:
                if len(part) == 1:
                    raise
                # Some refuse each call of a batch that is too long for them; others mean the call itself.
                answers += await self._request(endpoint, part[:1], decode)
                endpoint.most_together = max(1, min(endpoint.most_together, len(part)) // 10)
        return answers

    async def _request(
        self, endpoint: Endpoint, calls: Sequence[Call], decode: Callable[[object], T]
    ) -> list[T]:
        import httpx

        if self._client is None:
            raise ValueError("an Rpc is used inside its `async with`")
        first_id = self._next_id + 1
        self._next_id += len(calls)
        requests = [
            {"jsonrpc": "2.0", "id": first_id + place, "method": method, "params": list(params)}
            for place, (method, params) in enumerate(calls)
        ]
        body: object = requests if len(requests) > 1 else requests[0]
        try:
            with trio.fail_after(self._deadline_s):
                async with self._client.stream("POST", endpoint.url, json=body) as response:
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
        if len(requests) == 1:
            return [decode_answer(bytes(data), status, first_id, decode)]
        return decode_answers(bytes(data), status, first_id, len(requests), decode)


class _NoBatchError(Exception):
    """An endpoint does not take so many calls in one request."""


def decode_answers(
    data: bytes, status: int, first_id: int, count: int, decode: Callable[[object], T]
) -> list[T]:
    """Return the decoded results of `count` calls that were sent in one request, by their numbers.

    Raises as `decode_answer` does (for the first call that has an error), and _NoBatchError if the answer is
    none to a batch: an endpoint may take none, or not so many.
    """
    if status in _TOO_LONG_STATUS:
        raise _NoBatchError
    answers = _parse(data, status)
    if isinstance(answers, dict):
        error = answers.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        if status in _BUSY_STATUS or code in _BUSY_CODES:
            raise RpcUnavailableError(f"busy ({code or status})")
        raise _NoBatchError
    if not isinstance(answers, list):
        raise DecodeError("the answer is neither an object nor a list")
    found: dict[int, object] = {}
    for answer in answers:
        number = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            raise DecodeError("an answer to none of our requests")
        found[number] = answer
    if len(answers) != count or set(found) != set(range(first_id, first_id + count)):
        raise DecodeError("the answers are not to our requests")
    return [_decode_one(found[first_id + place], status, first_id + place, decode) for place in range(count)]


def decode_answer(data: bytes, status: int, request_id: int, decode: Callable[[object], T]) -> T:
    """Return the decoded result in an HTTP answer's body.

    Raises RpcRefusedError for an error of the method, RpcUnavailableError for one of the provider,
    DecodeError for anything that is not JSON-RPC or not of the expected form.
    """
    return _decode_one(_parse(data, status), status, request_id, decode)


def _parse(data: bytes, status: int) -> object:
    if is_too_deep(data):
        raise DecodeError("the answer is nested too deeply")
    try:
        parsed: object = json.loads(data)
    except (ValueError, RecursionError):
        if status != 200:
            raise RpcUnavailableError(f"HTTP status {status}") from None
        raise DecodeError("the answer is not JSON") from None
    return parsed


def _decode_one(answer: object, status: int, request_id: int, decode: Callable[[object], T]) -> T:
    if not isinstance(answer, dict):
        raise DecodeError("the answer is not an object")
    error = answer.get("error")
    if error is not None:
        code = error.get("code") if isinstance(error, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        if status in _BUSY_STATUS or code in _BUSY_CODES:
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

"""Endpoints that lie, hang, drop, babble, serve another chain or are busy: the client survives them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import payments.io.chain.rpc as rpc_module
from payments import abi
from payments.books import Domain
from payments.errors import ChainError, DecodeError, RpcRefusedError, RpcUnavailableError, WrongChainError
from payments.io.chain.client import Chain, decode_block, decode_fee_history
from payments.io.chain.rpc import MAX_ANSWER_BYTES, Rpc, decode_answer, decode_data, decode_quantity
from payments.io.chain.sender import decode_receipt

Answer = Callable[[str, list[object]], object]


class Node:
    """A small HTTP server on the loopback address whose answers a test makes up."""

    def __init__(
        self, answer: Answer, chain_id: int = 7, raw: bytes | None = None, hang: bool = False
    ) -> None:
        self.answer = answer
        self.chain_id = chain_id
        self.raw = raw
        self.hang = hang
        self.delay_s = 0.0
        self.calls: list[str] = []
        self.batches: list[int] = []
        self.most_together = 1000
        self.url = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        data = b""
        async with stream:
            while True:
                while b"\r\n\r\n" not in data:
                    chunk = await stream.receive_some(65536)
                    if not chunk:
                        return
                    data += chunk
                head, _, data = data.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                while len(data) < length:
                    data += await stream.receive_some(65536)
                request, data = json.loads(data[:length]), data[length:]
                if isinstance(request, list):
                    self.batches.append(len(request))
                first = request[0] if isinstance(request, list) and request else request
                self.calls.append(first["method"])
                if self.hang:
                    await trio.sleep_forever()
                if self.raw is not None:
                    await stream.send_all(self.raw)
                    return
                await trio.sleep(self.delay_s)
                body = self.bodies(request) if isinstance(request, list) else self.body(request)
                header = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                await stream.send_all(header.encode() + body)

    def bodies(self, requests: list[dict[str, object]]) -> bytes:
        if len(requests) > self.most_together:
            error = {"code": -32600, "message": "batch too large"}
            return json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
        return b"[" + b",".join(self.body(request) for request in reversed(requests)) + b"]"

    def body(self, request: dict[str, object]) -> bytes:
        if request["method"] == "eth_chainId":
            result: object = hex(self.chain_id)
        else:
            result = self.answer(str(request["method"]), list(request["params"]))  # type: ignore[call-overload]
        if isinstance(result, bytes):
            return result
        if isinstance(result, Exception):
            error = {"code": -32000, "message": str(result)}
            return json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode()
        return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode()


@asynccontextmanager
async def nodes(*served: Node) -> AsyncIterator[list[str]]:
    async with trio.open_nursery() as nursery:
        for node in served:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            node.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"

            async def serve(stream: trio.SocketStream, node: Node = node) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await node.serve(stream)

            nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield [node.url for node in served]
        nursery.cancel_scope.cancel()


def good(method: str, params: list[object]) -> object:
    return "0x2a"


BAD_BODIES = [
    b"",
    b"not json",
    b"[]",
    b"{}",
    b'{"jsonrpc": "2.0", "id": 99999, "result": "0x2a"}',
    b'{"jsonrpc": "2.0", "id": 1, "error": "no"}',
    b"[" * 100_000,
    b'{"result": "0x2a"}',
]


@pytest.mark.parametrize("body", BAD_BODIES)
async def test_babble_is_passed_over_for_the_next_endpoint(body: bytes) -> None:
    with trio.fail_after(60):
        bad, fine = Node(lambda m, p: body), Node(good)
        async with nodes(bad, fine) as urls, Rpc(urls, 7) as rpc:
            assert await rpc.call("eth_x", decode=decode_quantity) == 42
            assert rpc.endpoints[0].failures == 1
            await rpc.call("eth_x", decode=decode_quantity)
            assert bad.calls.count("eth_x") == 1, "it rests"


@pytest.mark.parametrize("result", [None, 42, "42", "0x", "0xzz", "0x-1", "0x" + "f" * 65, {}, [], True])
async def test_an_answer_of_another_form_is_passed_over(result: object) -> None:
    with trio.fail_after(60):
        async with nodes(Node(lambda m, p: result), Node(good)) as urls, Rpc(urls, 7) as rpc:
            assert await rpc.call("eth_x", decode=decode_quantity) == 42


async def test_one_that_hangs_costs_a_deadline_once() -> None:
    with trio.fail_after(60):
        hanging = Node(good, hang=True)
        async with nodes(hanging, Node(good)) as urls, Rpc(urls, 7, deadline_s=2.0) as rpc:
            for _ in range(5):
                assert await rpc.call("eth_x", decode=decode_quantity) == 42
            assert len(hanging.calls) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"\x00\xff" * 50,
        b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_one_that_drops_or_is_busy_is_passed_over(raw: bytes) -> None:
    with trio.fail_after(60):
        async with nodes(Node(good, raw=raw), Node(good)) as urls, Rpc(urls, 7) as rpc:
            assert await rpc.call("eth_x", decode=decode_quantity) == 42


async def test_an_endless_answer_is_cut_off() -> None:
    huge = b'"' + b"x" * (MAX_ANSWER_BYTES + 10)
    with trio.fail_after(60):
        async with nodes(Node(lambda m, p: huge), Node(good)) as urls, Rpc(urls, 7) as rpc:
            assert await rpc.call("eth_x", decode=decode_quantity) == 42
            assert "too long" in rpc.endpoints[0].last_error


async def test_another_chain_is_never_believed() -> None:
    with trio.fail_after(60):
        wrong = Node(good, chain_id=1)
        async with nodes(wrong, Node(good)) as urls, Rpc(urls, 7) as rpc:
            assert await rpc.call("eth_x", decode=decode_quantity) == 42
            assert "eth_x" not in wrong.calls
        async with nodes(wrong) as urls, Rpc(urls, 7) as rpc:
            with pytest.raises(WrongChainError, match="serves another chain, 1"):
                await rpc.call("eth_x", decode=decode_quantity)


async def test_an_error_of_the_method_is_the_answer() -> None:
    with trio.fail_after(60):
        refusing = Node(lambda m, p: ValueError("nonce too low"))
        async with nodes(refusing) as urls, Rpc(urls, 7) as rpc:
            with pytest.raises(RpcRefusedError, match="nonce too low"):
                await rpc.call("eth_x", decode=decode_quantity)
            assert refusing.calls.count("eth_x") == 1


async def test_no_secret_of_an_address_is_shown() -> None:
    with trio.fail_after(60):
        async with Rpc(["http://user:secret@127.0.0.1:9/key/secret?k=secret"], 7, attempts=1) as rpc:
            with pytest.raises(RpcUnavailableError) as caught:
                await rpc.call("eth_x", decode=decode_quantity)
            assert "secret" not in str(caught.value)
            assert "127.0.0.1:9" in str(caught.value)


async def test_down_for_an_hour_and_back(autojump_clock: trio.testing.MockClock) -> None:
    up = [False]

    class Client:
        """httpx's part that Rpc uses, under the test's clock."""

        @asynccontextmanager
        async def stream(self, method: str, url: str, json: dict[str, object]) -> AsyncIterator[object]:
            if not up[0]:
                await trio.sleep_forever()
            yield Reply(json)

        async def aclose(self) -> None:
            pass

    class Reply:
        status_code = 200

        def __init__(self, request: dict[str, object]) -> None:
            result = "0x7" if request["method"] == "eth_chainId" else "0x2a"
            self.data = json.dumps({"id": request["id"], "result": result}).encode()

        async def aiter_bytes(self) -> AsyncIterator[bytes]:
            yield self.data

    async with Rpc(["http://a", "http://b"], 7, client=Client()) as rpc:  # type: ignore[arg-type]
        begun = trio.current_time()
        while trio.current_time() - begun < 3600:
            with pytest.raises(RpcUnavailableError, match="no answer within 10 s"):
                await rpc.call("eth_x", decode=decode_quantity)
        up[0] = True
        assert await rpc.call("eth_x", decode=decode_quantity) == 42


async def purse_of(*answers: Callable[[list[object]], bytes]) -> abi.OnChainPurse:
    def node(make: Callable[[list[object]], bytes]) -> Node:
        def answer(method: str, params: list[object]) -> object:
            if method == "eth_getBlockByNumber":
                return {"number": "0x64", "hash": "0x" + "11" * 32, "timestamp": "0x1"}
            return "0x" + make(params).hex()

        return Node(answer)

    async with nodes(*(node(a) for a in answers)) as urls, Rpc(urls, 7) as rpc:
        return await Chain(rpc, Domain(7, b"\x01" * 20)).purse(b"\x02" * 20, b"\x03" * 20, 3)


async def test_calls_at_the_same_time_are_told_apart() -> None:
    async with nodes(node := Node(lambda method, params: params[0])) as urls, Rpc(urls, 7) as rpc:
        node.delay_s = 0.02
        found: list[tuple[int, int]] = []

        async def ask(number: int) -> None:
            found.append((number, await rpc.call("echo", hex(number), decode=decode_quantity)))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(ask, number)
        assert sorted(found) == [(number, number) for number in range(20)]
        assert node.calls.count("echo") == 20, "none was asked twice"


@pytest.mark.parametrize(("most_together", "requests"), [(1000, 3), (10, 26), (1, 252)])
async def test_many_calls_go_together_as_far_as_the_endpoint_allows(
    most_together: int, requests: int
) -> None:
    async with nodes(node := Node(lambda method, params: params[0])) as urls, Rpc(urls, 7) as rpc:
        node.most_together = most_together
        with trio.fail_after(60):
            for _ in range(2):
                calls = [("echo", (hex(number),)) for number in range(250)]
                assert await rpc.call_many(calls, decode=decode_quantity) == list(range(250))
        assert len(node.calls) <= 1 + 2 * requests, "what is refused once is not tried again"
        assert max(node.batches) == 100


async def test_one_call_of_many_that_is_refused_is_the_answer() -> None:
    def answer(method: str, params: list[object]) -> object:
        return ValueError("header not found") if params[0] == "0x3" else params[0]

    async with nodes(Node(answer)) as urls, Rpc(urls, 7) as rpc:
        with trio.fail_after(60), pytest.raises(RpcRefusedError, match="header not found"):
            await rpc.call_many([("echo", (hex(n),)) for n in range(5)], decode=decode_quantity)


async def test_of_two_endpoints_a_hanging_one_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_module, "_GRACE_S", 0.1)
    async with (
        nodes(slow := Node(good, hang=True), Node(good)) as urls,
        Rpc(urls, 7, deadline_s=600.0) as rpc,
    ):
        with trio.fail_after(60):
            assert await rpc.call_many_each(2, [("x", ())] * 3, decode=decode_quantity) == [[42] * 3]
            await rpc.call_many_each(2, [("x", ())], decode=decode_quantity)
        assert slow.calls == ["eth_chainId"], "it rests"


async def test_who_gives_up_waiting_has_the_endpoint_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_module, "_GRACE_S", 0.1)
    async with (
        nodes(slow := Node(good, hang=True), Node(good)) as urls,
        Rpc(urls, 7, deadline_s=600.0) as rpc,
    ):
        with trio.move_on_after(0.2):
            await rpc.call("x", decode=decode_quantity)
        with trio.fail_after(60):
            assert await rpc.call("x", decode=decode_quantity) == 42
        assert slow.calls == ["eth_chainId"]


async def test_an_endpoint_that_has_not_got_so_far_is_not_needed() -> None:
    def answer(method: str, params: list[object]) -> object:
        if method == "eth_getBlockByNumber":
            return {"number": "0x64", "hash": "0x" + "11" * 32, "timestamp": "0x1"}
        return ValueError("header not found") if params[-1] == "0x64" else "0x" + words(1, 0, 0).hex()

    def has(method: str, params: list[object]) -> object:
        return "0x" + words(7, 0, 0).hex()

    async with nodes(Node(answer), Node(has)) as urls, Rpc(urls, 7) as rpc:
        chain = Chain(rpc, Domain(7, b"\x01" * 20))
        with trio.fail_after(60):
            assert (await chain.purse(b"\x02" * 20, b"\x03" * 20)).deposited_wei == 7
            with pytest.raises(ChainError, match="before 101"):
                await chain.purses([(b"\x02" * 20, b"\x03" * 20)], least_block=101)


def words(*numbers: int) -> bytes:
    return b"".join(n.to_bytes(32, "big") for n in numbers)


async def test_of_two_answers_the_less_favourable_counts() -> None:
    with trio.fail_after(60):
        found = await purse_of(lambda p: words(1000, 0, 0), lambda p: words(400, 10, 99))
        assert found == abi.OnChainPurse(400, 10, 99)

        def newest_differs(params: list[object]) -> bytes:
            return words(500, 50, 77) if params[-1] == "latest" else words(1000, 0, 0)

        found = await purse_of(newest_differs)
        assert found == abi.OnChainPurse(500, 50, 77), "a withdrawal or unlock counts before it is confirmed"


def test_eth_account_leaves_the_recursion_limit_alone() -> None:
    code = (
        "import sys, json; limit = sys.getrecursionlimit()\n"
        "from payments.io.ethereum import eth_account; eth_account()\n"
        "assert sys.getrecursionlimit() == limit\n"
        "try: json.loads('[' * 1000000)\n"
        "except RecursionError: print('raised')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "raised\n", done.stderr[-500:]


def _survives(decode: Callable[[object], object], value: object) -> None:
    with suppress(DecodeError):
        decode(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just("0x" + "11" * 32),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "number",
                    "hash",
                    "timestamp",
                    "baseFeePerGas",
                    "reward",
                    "transactionHash",
                    "blockNumber",
                    "blockHash",
                    "status",
                    "gasUsed",
                    "contractAddress",
                    "effectiveGasPrice",
                    "x",
                ]
            ),
            inner,
            max_size=8,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_answer_decodes_or_is_refused(value: object) -> None:
    for decode in (decode_block, decode_fee_history, decode_receipt, decode_quantity, decode_data):
        _survives(decode, value)


@given(st.binary(max_size=400))
def test_any_bytes_from_a_contract_decode_or_are_refused(data: bytes) -> None:
    for decode in (abi.decode_purse, abi.decode_word, abi.decode_page):
        _survives(decode, data)  # type: ignore[arg-type]
    assert isinstance(abi.decode_revert(data), str)
    assert isinstance(abi.decode_revert(b"\x08\xc3\x79\xa0" + data), str)


@given(st.binary(max_size=300), st.sampled_from([200, 404, 429, 500]))
def test_any_body_decodes_or_is_refused(data: bytes, status: int) -> None:
    with suppress(DecodeError, RpcUnavailableError, RpcRefusedError):
        decode_answer(data, status, 1, decode_quantity)

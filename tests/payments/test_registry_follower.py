"""Following a registry on a chain that misbehaves. The chain is `registry_chain.FakeChain`."""

import random
import time
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from registry_chain import CHAIN_ID, REGISTRY, FakeChain, encode_page, listing

from payments import abi
from payments.errors import ChainError, RpcUnavailableError
from payments.io.chain import registry
from payments.io.chain.client import Chain
from payments.io.chain.deploy import Deployment, deploy
from payments.io.chain.devchain import open_devchain
from payments.io.chain.registry import RegistryFollower
from payments.io.chain.rpc import Rpc
from payments.io.chain.sender import Sender
from payments.io.ledger import Ledger
from payments.registry_index import RegistryIndex, decode_index

ETHER = 10**18
PAGE = abi.selector("page(uint256,uint256)")


@asynccontextmanager
async def follow(chain, *, urls=("http://a", "http://b"), confirmations=2, index=None, start=0):
    index = index or RegistryIndex(CHAIN_ID, REGISTRY)
    async with Rpc(urls, CHAIN_ID, client=chain.client(), attempts=2, rng=random.Random(1)) as rpc:
        yield RegistryFollower(rpc, index, start_block=start, confirmations=confirmations)


def known(follower):
    return follower.index.listings


def expect(*listings):
    return {one.payee: one for one in listings}


async def test_reads_all_then_what_changes_and_goes_on_after_a_restart(autojump_clock):
    chain = FakeChain()
    chain.mine(*map(listing, range(1, 251)))
    chain.mine_empty(2)
    async with follow(chain) as follower:
        assert await follower.poll()
        assert known(follower) == expect(*map(listing, range(1, 251)))
        assert "eth_getLogs" not in chain.endpoints["a"].calls
        assert not await follower.poll(), "nothing is new"
        chain.mine(listing(300), left=(listing(5),))
        chain.mine(listing(7, stake=5 * 10**18))
        chain.mine()
        assert await follower.poll(), "what has two blocks on top"
        assert known(follower)[listing(300).payee] == listing(300)
        assert listing(5).payee not in known(follower)
        assert known(follower)[listing(7).payee].stake_wei == 10**18, "not confirmed yet"
        saved = follower.index.encode()
    chain.mine_empty(2)
    async with follow(chain, index=decode_index(saved, CHAIN_ID, REGISTRY)) as follower:
        chain.endpoints["a"].calls.clear()
        assert await follower.poll()
        assert known(follower)[listing(7).payee].stake_wei == 5 * 10**18
        pages = [call for call in chain.endpoints["a"].calls if call == "eth_call"]
        assert len(pages) < 8, "not the whole list again"


async def test_nothing_is_read_before_the_first_block(autojump_clock):
    chain = FakeChain()
    async with follow(chain, start=100) as follower:
        assert not await follower.poll()
        assert follower.index.tip is None


async def test_no_block_is_skipped_when_the_provider_wants_fewer_at_a_time(autojump_clock, monkeypatch):
    monkeypatch.setattr(registry, "LOG_SPAN", 64)
    chain = FakeChain()
    chain.mine(*map(listing, range(1, 200)))
    chain.mine_empty(2)
    async with follow(chain) as follower:
        await follower.poll()
        chain.max_span = 20
        for number in range(1, 200):
            chain.mine_empty(1)
            if number % 9 == 0:
                chain.mine(listing(number, stake=7 * 10**18))
        chain.mine_empty(2)
        assert await follower.poll()
        assert known(follower) == chain.state(len(chain.blocks) - 3)


async def test_a_reorganisation_deeper_than_the_confirmations_is_undone(autojump_clock):
    chain = FakeChain()
    chain.mine(listing(1))
    chain.mine_empty(3)
    async with follow(chain) as follower:
        await follower.poll()
        chain.mine(listing(2), left=(listing(1),))
        chain.mine_empty(3)
        await follower.poll()
        assert known(follower) == expect(listing(2))
        chain.reorganise(4)
        chain.mine(listing(3))
        chain.mine_empty(5)
        assert await follower.poll()
        assert known(follower) == expect(listing(1), listing(3))
        assert follower.reorganisations == 1
        chain.reorganise(len(chain.blocks) - 2)  # nothing is left that was known
        chain.mine(listing(9))
        chain.mine_empty(19)
        assert await follower.poll()
        assert known(follower) == expect(listing(9))


async def test_any_history_with_reorganisations_ends_as_the_chain_has_it(autojump_clock):
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    chain = FakeChain()
    async with follow(chain, confirmations=1) as follower:
        for _ in range(60):
            if dice.random() < 0.2:
                chain.reorganise(dice.randint(1, 4))
            listed = chain.state(len(chain.blocks))
            leaving = [one for one in listed.values() if dice.random() < 0.1]
            chain.mine(*(listing(dice.randint(1, 30), stake=dice.randint(1, 9)) for _ in range(2)))
            chain.mine(left=tuple(leaving))
            if dice.random() < 0.5:
                await follower.poll()
        chain.mine_empty(2)
        await follower.poll()
        assert known(follower) == chain.state(len(chain.blocks) - 2)


async def test_a_chain_that_changes_under_the_reading_is_read_again(autojump_clock):
    chain = FakeChain()
    chain.mine(listing(1))
    chain.mine_empty(3)

    def reorganise_now(method, params, result):
        if method == "eth_call" and chain.salt == 0:
            chain.reorganise(5)
            chain.mine(listing(2))
            chain.mine_empty(5)
        return result

    chain.endpoints["a"].edit = reorganise_now
    async with follow(chain, urls=("http://a",)) as follower:
        with pytest.raises(ChainError, match="reorganised while"):
            await follower.poll()
        assert known(follower) == {}
        await follower.poll()
        assert known(follower) == expect(listing(2))


async def test_endpoints_that_are_down_leave_what_was_known(autojump_clock):
    chain = FakeChain()
    chain.mine(listing(1))
    chain.mine_empty(3)
    async with follow(chain) as follower:
        await follower.poll()
        for endpoint in chain.endpoints.values():
            endpoint.down = True
        chain.mine(left=(listing(1),))
        chain.mine_empty(3)
        with pytest.raises(RpcUnavailableError):
            await follower.poll()
        assert known(follower) == expect(listing(1))
        chain.endpoints["b"].down = False
        await follower.poll()
        assert known(follower) == {}, "one that answers is enough"


@pytest.mark.parametrize("liar", ["a", "b"])
async def test_one_liar_of_two_neither_adds_nor_removes_a_relay(autojump_clock, liar):
    chain = FakeChain()
    chain.mine(listing(1), listing(2))
    chain.mine_empty(3)

    def lie(method, params, result):
        if method == "eth_call" and params[0]["data"].startswith(
            "0x" + abi.selector("page(uint256,uint256)").hex()
        ):
            return "0x" + encode_page([listing(2), listing(66, stake=10**24)]).hex()
        return result

    chain.endpoints[liar].edit = lie
    async with follow(chain) as follower:
        await follower.poll()
        assert known(follower) == expect(listing(2)), "at the first reading only what both say"
        assert follower.disputed == 2
        chain.endpoints[liar].edit = None
        chain.mine(listing(3))
        chain.mine_empty(3)
        await follower.poll()
        assert known(follower) == expect(listing(1), listing(2), listing(3)), "the count told"


async def test_events_kept_back_by_the_only_endpoint_show_by_the_count(autojump_clock):
    chain = FakeChain()
    chain.mine(listing(1))
    chain.mine_empty(3)
    chain.endpoints["a"].edit = lambda method, params, result: [] if method == "eth_getLogs" else result
    async with follow(chain, urls=("http://a",)) as follower:
        await follower.poll()
        chain.mine(listing(2))
        chain.mine_empty(60)
        await follower.poll()
        assert known(follower) == expect(listing(1), listing(2))


async def test_a_head_from_nowhere_is_forgotten_when_the_chain_does_not_have_it(autojump_clock):
    chain = FakeChain()
    chain.mine(listing(1))
    chain.mine_empty(3)
    far = {"number": hex(10**9), "hash": "0x" + "99" * 32, "timestamp": "0x1"}

    def lie(method, params, result):
        if method == "eth_getBlockByNumber" and (params[0] == "latest" or int(params[0], 16) > 1000):
            return far | ({} if params[0] == "latest" else {"number": params[0]})
        return result

    async with follow(chain, urls=("http://a",)) as follower:
        chain.endpoints["a"].edit = lie
        await follower.poll()
        assert follower.index.tip.number > 10**8
        chain.endpoints["a"].edit = None
        chain.mine(listing(2))
        chain.mine_empty(3)
        await follower.poll()
        assert known(follower) == expect(listing(1), listing(2))
        assert follower.index.tip.number < 100


async def test_an_endpoint_a_little_behind_is_waited_for(autojump_clock):
    chain = FakeChain()
    chain.mine(listing(1))
    chain.mine_empty(20)
    async with follow(chain, urls=("http://a",)) as follower:
        await follower.poll()
        tip = follower.index.tip
        chain.endpoints["a"].behind = 10
        assert not await follower.poll()
        assert follower.index.tip == tip
        assert follower.reorganisations == 0


async def test_a_provider_that_wants_fewer_blocks_at_a_time_gets_fewer(autojump_clock):
    chain = FakeChain()
    chain.mine(listing(1))
    chain.mine_empty(3)
    async with follow(chain, urls=("http://a",)) as follower:
        await follower.poll()
        chain.max_span = 100
        chain.mine(listing(2))
        chain.mine_empty(700)
        await follower.poll()
        assert known(follower) == expect(listing(1), listing(2))


@pytest.mark.parametrize("garbage", [None, "0x", "0x" + "ff" * 160, [], {}, "x", "0x" + "00" * 100_000, 5])
async def test_answers_of_a_wrong_form_change_nothing(autojump_clock, garbage):
    chain = FakeChain()
    chain.mine(listing(1))
    chain.mine_empty(3)
    async with follow(chain, urls=("http://a",)) as follower:
        await follower.poll()
        chain.mine(listing(2))
        chain.mine_empty(3)
        for method in ("eth_call", "eth_getLogs", "eth_getBlockByNumber"):
            chain.endpoints["a"].edit = lambda asked, params, result, method=method: (
                garbage if asked == method else result
            )
            with suppress(ChainError):
                await follower.poll()
            assert listing(1).payee in known(follower)
            assert len(known(follower)) <= 2


async def test_the_real_contract_on_a_development_chain(tmp_path):
    with trio.fail_after(60):
        async with (
            open_devchain(kind="pyrevm", block_time_s=None) as dev,
            Rpc([dev.url], dev.chain_id) as rpc,
        ):
            with Ledger(tmp_path / "ledger.db") as ledger:
                empty = Chain(rpc, Deployment(dev.chain_id, b"\1" * 20, b"\1" * 20, 0, 0, 0, 0).domain)
                bank = Sender(empty, dev.bank, ledger, time.time)
                deployment = await deploy(bank, empty, 3600, ETHER, 7200)
                index = RegistryIndex(dev.chain_id, deployment.registry)
                follower = RegistryFollower(rpc, index, start_block=deployment.block, confirmations=0)
                await follower.poll()
                assert index.listings == {}

                async def send(signature, *arguments, value_wei=0):
                    data = abi.encode_call(signature, *arguments)
                    await bank.wait(
                        await bank.send(deployment.registry, data, kind="test", value_wei=value_wei)
                    )

                entry = (b"i" * 32, b"r" * 32, b"s" * 32, (0xFFFF << 32) + 0x0A010001, 4433)
                await send(f"join({abi.ENTRY_TYPE})", entry, value_wei=2 * ETHER)
                assert await follower.poll()
                (found,) = index.listings.values()
                assert (found.payee, found.identity, found.stake_wei) == (
                    dev.bank.address,
                    b"i" * 32,
                    2 * ETHER,
                )
                assert found.endorsement == b"r" * 32 + b"s" * 32
                await send("leave()")
                assert await follower.poll()
                assert index.listings == {}

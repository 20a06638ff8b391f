"""Nodes and what neighbours do with money: nothing raises, and a fault costs its own link."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hostile_nodes import Peer, StubLink, client_node, deliver, make_peers, relay_node
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.config.model import PaymentsConfig
from overlay.engine.interface import FlowFault
from overlay.messages import Payment
from overlay.node.money import CLOSE_BASE, Money
from overlay.node.relay import RelayNode
from payments import formats
from payments.abi import OnChainPurse
from payments.books import Domain
from payments.digest import attach_digest, domain_separator
from payments.errors import RpcUnavailableError
from payments.io.ledger import Ledger, PurseKeyed
from payments.keys import PurseKey
from payments.tab import CloseReason

DOMAIN = Domain(31337, b"\xc0" * 20)
KEY = PurseKey(b"\x11" * 32)
CUSTOMER = PurseKey(b"\x22" * 32)


class FakeChain:
    domain = DOMAIN
    away = False

    async def purse(self, payer: bytes, payee: bytes, confirmations: int = 0) -> OnChainPurse:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise RpcUnavailableError("no endpoint answers")
        return OnChainPurse(10**9, 0, 0)


@asynccontextmanager
async def paid_relay(folder: Path, peers: list[Peer]) -> AsyncIterator[tuple[RelayNode, FakeChain]]:
    """A relay with an account, over a chain in which every purse holds a billion."""
    nothing: Any = None
    with Ledger(folder / f"ledger-{os.urandom(4).hex()}") as ledger:
        async with relay_node(peers) as node, trio.open_nursery() as nursery:
            chain = FakeChain()
            any_chain: Any = chain
            node.money = Money(
                replace(PaymentsConfig(), chain_id=31337),
                node,
                node.engine,
                node_id=node.identity.node_id,
                price_wei=1000,
                payee=KEY.address,
                key=KEY,
                chain=any_chain,
                ledger=ledger,
                redeemer=nothing,
                sender=nothing,
                wallet=nothing,
            )
            nursery.start_soon(node.money.vault.run)
            nursery.start_soon(node.money.purses.run)
            yield node, chain
            nursery.cancel_scope.cancel()


def arrive(node: RelayNode, peer: bytes | None = None) -> StubLink:
    link = StubLink(peer)
    link.last_receive_s = trio.current_time()
    node.engine.on_link_up(link)  # type: ignore[arg-type]
    return link


def said(link: StubLink) -> list[formats.Message]:
    return [formats.decode_message(m.data, KEY.address) for m in link.sent if isinstance(m, Payment)]


def attach(node: RelayNode, link: StubLink, key: PurseKey = CUSTOMER) -> None:
    [terms] = [m for m in said(link) if isinstance(m, formats.Terms)]
    digest = attach_digest(domain_separator(DOMAIN), KEY.address, node.identity.node_id, terms.challenge)
    deliver(node, link, Payment(formats.encode_attach(formats.Attach(key.address, key.sign(digest)))))


async def test_terms_are_shown_to_everybody_and_a_purse_is_attached(tmp_path: Path) -> None:
    async with paid_relay(tmp_path, make_peers()) as (node, _):
        link = arrive(node)
        attach(node, link)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(20):
            while not any(isinstance(m, formats.State) for m in said(link)):
                await trio.sleep(0.01)
        assert node.money is not None
        [row] = node.money.status()["tabs"]
        assert (row["side"], row["peer"], row["open"]) == ("earning", "customer", True)


async def test_an_attachment_for_another_relay_or_chain_ends_the_link(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with paid_relay(tmp_path, make_peers()) as (node, _):
        for domain, identity in ((DOMAIN, bytes(32)), (Domain(1, b"\xc0" * 20), node.identity.node_id)):
            link = arrive(node)
            [terms] = said(link)
            assert isinstance(terms, formats.Terms)
            digest = attach_digest(domain_separator(domain), KEY.address, identity, terms.challenge)
            wrong = formats.Attach(CUSTOMER.address, CUSTOMER.sign(digest))
            deliver(node, link, Payment(formats.encode_attach(wrong)))
            assert link.closed is not None
            assert link.closed[0] == CLOSE_BASE + CloseReason.FORGERY


async def test_a_chain_that_is_away_turns_new_purses_away_with_the_reason(tmp_path: Path) -> None:
    async with paid_relay(tmp_path, make_peers()) as (node, chain):
        chain.away = True
        link = arrive(node)
        attach(node, link)
        with trio.fail_after(30):
            while link.closed is None:
                await trio.sleep(0.05)
        assert link.closed == (
            CLOSE_BASE + CloseReason.REFUSED,
            "the purse cannot be looked up at the moment",
        )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=192),
            st.builds(
                lambda kind, size: bytes((kind,)) + bytes(size),
                st.sampled_from([0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0x24]),
                st.sampled_from([11, 32, 42, 49, 85, 113, 135, 186]),
            ),
        ),
        max_size=40,
    ),
    st.booleans(),
)
def test_no_payment_message_raises_and_faults_cost_their_own_link(
    tmp_path: Path, messages: list[bytes], attached: bool
) -> None:
    async def main() -> None:
        async with paid_relay(tmp_path, make_peers()) as (node, _):
            other = arrive(node)
            link = arrive(node, make_peers()[1].identity.node_id)
            if attached:
                attach(node, link)
                await trio.testing.wait_all_tasks_blocked()
            for data in messages:
                if link.end is None:
                    deliver(node, link, Payment(data))
            await trio.testing.wait_all_tasks_blocked()
            assert other.closed is None

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_who_takes_no_money_does_not_mind_terms(tmp_path: Path, autojump_clock: object) -> None:
    peers = make_peers()
    terms = Payment(formats.encode_terms(formats.Terms(DOMAIN, KEY.address, bytes(32), 0, 1)))
    async with relay_node(peers) as node:
        link = arrive(node)
        for _ in range(100):
            deliver(node, link, terms)
        assert link.closed is None
    async with client_node(peers, tmp_path) as (client, endpoint):
        with trio.fail_after(20):
            while not endpoint.links:
                await trio.sleep(0.01)
        deliver(client, endpoint.links[0], terms)
        assert endpoint.links[0].closed is None
        assert not any("payments are off" in problem for problem in client.status()["problems"]), "all free"
        dear = [replace(entry, descriptor=_with_price(entry.descriptor)) for entry in client.directory]
        client.directory = type(client.directory)(dear)
        assert "payments are off" in client.status()["problems"][0]


def _with_price(descriptor: Any) -> Any:
    return msgspec.structs.replace(descriptor, price_wei_per_packet=5)


@pytest.mark.parametrize("value", [0, 1])
async def test_a_second_process_with_the_same_purse_is_told(
    tmp_path: Path, autojump_clock: object, value: int
) -> None:
    async with paid_relay(tmp_path, make_peers()) as (node, _):
        first, second = arrive(node), arrive(node)
        attach(node, first)
        await trio.testing.wait_all_tasks_blocked()
        if value:
            await trio.sleep(10.0)
            second.last_receive_s = trio.current_time()
        attach(node, second)
        await trio.testing.wait_all_tasks_blocked()
        loser = first if value else second
        assert loser.closed is not None
        assert loser.closed[0] == CLOSE_BASE + CloseReason.PURSE_BUSY
        assert (second if value else first).closed is None


async def test_what_a_link_gave_and_took_is_kept_when_it_closes(tmp_path: Path) -> None:
    peers = make_peers()
    async with paid_relay(tmp_path, peers) as (node, _):
        money = node.money
        assert money is not None
        link = arrive(node, peers[0].identity.node_id)
        tabs = money.desk.links[link]  # type: ignore[index]
        assert tabs.paying is not None
        tabs.paying._terms = replace(tabs.paying._terms, deposit_wei=1)
        tabs.paying.learn_payee(CUSTOMER.address)
        money._do(money.desk.want(link, trio.current_time()))  # type: ignore[arg-type]
        with trio.fail_after(20):
            while tabs.paying.tab is None:
                await trio.sleep(0.01)
        terms = formats.Terms(DOMAIN, CUSTOMER.address, bytes(32), 0, 1)
        deliver(node, link, Payment(formats.encode_terms(terms)))
        deliver(node, link, Payment(formats.encode_state(formats.State(None, 0, bytes(32), 0))))
        money._do(tabs_price(money, link, 1000))
        worth = tabs.paying.worth_wei
        assert worth == 64_000
        money.link_closed(link, trio.current_time())  # type: ignore[arg-type]
        with trio.fail_after(20):
            state = await money.vault.load("payer", PurseKeyed(DOMAIN, KEY.address, CUSTOMER.address))
        assert state.worth_wei == worth


def tabs_price(money: Money, link: Any, packet_wei: int) -> list[Any]:
    return money.desk.circuit_up("circuit", None, 0, link, packet_wei, trio.current_time())


async def test_lent_credit_is_not_free_again_by_going_before_the_purse_is_known(tmp_path: Path) -> None:
    async with paid_relay(tmp_path, make_peers()) as (node, _):
        money = node.money
        assert money is not None
        money.purses.starts.request(CUSTOMER.address, 1)
        link = arrive(node)
        attach(node, link)
        money.link_closed(link, trio.current_time())  # type: ignore[arg-type]
        assert money.purses.starts.total_wei == 1


async def test_an_own_link_that_takes_over_keeps_lent_credit_lent(tmp_path: Path) -> None:
    async with paid_relay(tmp_path, make_peers()) as (node, _):
        money = node.money
        assert money is not None
        old, new = arrive(node), arrive(node)
        for link in (old, new):
            link.last_receive_s = -1000.0
            attach(node, link)
            with trio.fail_after(20):
                while not any(isinstance(m, formats.State) for m in said(link)):
                    await trio.sleep(0.01)
        money.purses.starts.request(CUSTOMER.address, 1)
        money.link_closed(old, trio.current_time())  # type: ignore[arg-type]
        assert money.purses.starts.total_wei == 1
        money.link_closed(new, trio.current_time())  # type: ignore[arg-type]
        assert money.purses.starts.total_wei == 0


async def test_a_customers_circuit_that_breaks_on_junk_is_told_to_its_money(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_node(make_peers(), tmp_path) as (client, _):
        told: list[object] = []
        lost: list[str] = []
        money: Any = SimpleNamespace(note_junk=lambda link, now: told.append(link))
        monkeypatch.setattr(client, "money", money)
        monkeypatch.setattr(client, "_lost", lambda circuit, sentence, **_: lost.append(sentence))
        flow: Any = object()
        circuit: Any = SimpleNamespace(link=StubLink(None))
        client._by_flow[flow] = circuit
        client.on_flow_lost(flow, FlowFault.STREAM_RESET)
        assert told == []
        client.on_flow_lost(flow, FlowFault.BAD_PACKETS)
        assert told == [circuit.link]
        assert len(lost) == 2
        del client._by_flow[flow]

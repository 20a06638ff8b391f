"""Discovery's driver over real QUIC links on the loopback device."""

import random
import socket
import time
from pathlib import Path

import pytest
import trio
from discovery_net import StaticSource, identities, member_of, open_node, open_nodes, until

from overlay.descriptor import Address
from overlay.errors import FileError
from overlay.gossip.messages import DialBack, Digest, Have, encode_gossip
from overlay.gossip.reachability import Outcome
from overlay.gossip.roots import Member, RootList
from overlay.gossip.types import Kind
from overlay.node import discovery as discovery_module
from overlay.node.io.dial_back import dial_back, local_addresses
from overlay.node.io.directory_file import load_directory_file, save_directory

WHOLE_S = 60.0


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_relays_find_each_other_test_each_other_and_tell_customers(tmp_path: Path) -> None:
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 4) as (nodes, source):
            await until(lambda: all(len(node.store) == 4 for node in nodes))
            await until(lambda: all(len(node.directory) == 4 for node in nodes))
            for node in nodes:
                assert node.publisher is not None
                status = node.publisher.status()
                assert set(status["reachability"].values()) == {"reachable"}
                assert node.publisher.problems() == []
            (tmp_path / "customer").mkdir(mode=0o700)
            async with open_node(tmp_path / "customer", StaticSource(source.roots)) as customer:
                await until(lambda: len(customer.directory) == 4)
                assert customer.applied == 1, "the whole at once"
                await until(lambda: not customer.links), "the first contact is not kept"
            async with open_node(tmp_path / "customer", StaticSource(source.roots), start=False) as customer:
                assert len(customer.store) == 4, "from its disk"


async def test_a_descriptor_is_replaced_when_what_it_says_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay.node.publishing.LEAST_BETWEEN_S", 0.1)
    monkeypatch.setattr("overlay.node.publishing.LOOK_S", 0.1)
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 2) as (nodes, _):
            await until(lambda: all(len(node.store) == 2 for node in nodes))
            first = nodes[0]
            assert first.identity is not None
            assert first.publisher is not None
            before = nodes[1].store.get(first.identity.node_id)
            describe = first.publisher._describe

            def draining(addresses, *, sequence, lifetime_s):
                import msgspec

                from overlay.descriptor import sign_descriptor

                signed = describe(addresses, sequence=sequence, lifetime_s=lifetime_s)
                return sign_descriptor(
                    first.identity, msgspec.structs.replace(signed.descriptor, is_draining=True)
                )

            first.publisher._describe = draining
            first.publisher.refresh()

            def arrived() -> bool:
                entry = nodes[1].store.get(first.identity.node_id)
                return entry is not None and entry.descriptor.is_draining

            await until(arrived)
            assert before is not None
            assert nodes[1].store.get(first.identity.node_id).descriptor.sequence > before.descriptor.sequence


async def test_a_relay_that_nobody_reaches_does_not_publish_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It advertises a port that nothing answers at; others see it under the same IP address."""
    monkeypatch.setattr("overlay.node.io.dial_back.TIMEOUT_S", 1.0)
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 2, extra=[member(7)]) as (nodes, source):
            await until(lambda: all(len(node.store) == 2 for node in nodes))
            (tmp_path / "bad").mkdir(mode=0o700)
            wrong = Address("127.0.0.1", free_port())
            async with open_node(
                tmp_path / "bad",
                StaticSource(source.roots),
                identity=identities(8)[7],
                publishes=True,
                advertise=(wrong,),
            ) as bad:
                assert bad.publisher is not None
                await until(lambda: bool(bad.publisher.problems()), 40)
                (problem,) = bad.publisher.problems()
                assert f"let UDP port {wrong.port} in" in problem
                assert bad.publisher.status()["published"] is False
                assert len(bad.store) == 2, "it takes part all the same"
                assert nodes[0].store.get(bad.identity.node_id) is None


async def test_an_address_that_is_another_nodes_is_told(tmp_path: Path) -> None:
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 2, extra=[member(7)]) as (nodes, source):
            await until(lambda: all(len(node.store) == 2 for node in nodes))
            (tmp_path / "bad").mkdir(mode=0o700)
            theirs = Address(*nodes[0].endpoint.addresses[0])
            async with open_node(
                tmp_path / "bad",
                StaticSource(source.roots),
                identity=identities(8)[7],
                publishes=True,
                advertise=(theirs,),
            ) as bad:
                await until(lambda: bool(bad.publisher.problems()), 40)
                assert "another node answers" in bad.publisher.problems()[0]


async def test_a_relay_without_a_configured_address_publishes_where_it_is_seen(tmp_path: Path) -> None:
    with trio.fail_after(WHOLE_S):
        port = free_port()
        async with open_nodes(tmp_path, 2, extra=[member(7)]) as (nodes, source):
            await until(lambda: all(len(node.store) == 2 for node in nodes))
            (tmp_path / "new").mkdir(mode=0o700)
            async with open_node(
                tmp_path / "new",
                StaticSource(source.roots),
                identity=identities(8)[7],
                publishes=True,
                host="0.0.0.0",
                port=port,
            ) as new:
                await until(lambda: nodes[0].store.get(new.identity.node_id) is not None, 40)
                (address,) = nodes[0].store.get(new.identity.node_id).descriptor.addresses
                assert address == Address("127.0.0.1", port)


async def test_the_first_relay_of_a_network_publishes_untested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay.node.publishing.NEIGHBOUR_TIMEOUT_S", 0.5)
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 1) as (nodes, _):
            await until(lambda: len(nodes[0].store) == 1)


async def test_dialling_back_tells_apart_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay.node.io.dial_back.TIMEOUT_S", 2.0)
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 1, publishes=False) as (nodes, _):
            here = Address(*nodes[0].endpoint.addresses[0])
            assert await dial_back(here, nodes[0].identity.node_id, "qh3") is Outcome.REACHED
            assert await dial_back(here, identities(3)[2].node_id, "qh3") is Outcome.OTHER_IDENTITY
            nowhere = Address("127.0.0.1", free_port())
            assert await dial_back(nowhere, nodes[0].identity.node_id, "qh3") is Outcome.NO_ANSWER
            assert nodes[0].links == {}, "a stranger's dials leave nothing behind"
    assert "127.0.0.1" in local_addresses()


async def test_customers_get_no_dialling_back(tmp_path: Path) -> None:
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 2) as (nodes, source):
            await until(lambda: all(len(node.store) == 2 for node in nodes))
            (tmp_path / "customer").mkdir(mode=0o700)
            async with open_node(tmp_path / "customer", StaticSource(source.roots), start=False) as customer:
                address = nodes[0].endpoint.addresses[0]
                link = await customer.endpoint.dial(address, nodes[0].identity.node_id)
                asked = DialBack(1, (Address(*nodes[1].endpoint.addresses[0]),))
                customer.discovery.send(link, encode_gossip(asked))
                customer.discovery.send(link, encode_gossip(Digest(bytes(16), 0, True, "")))
                await until(lambda: len(customer.store) == 2)
                assert nodes[0].publisher._dialling == 0


async def test_a_peer_that_floods_loses_its_link_and_the_node_goes_on(tmp_path: Path) -> None:
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 3) as (nodes, _):
            await until(lambda: all(len(node.store) == 3 for node in nodes))
            link = next(iter(nodes[0].links.values()))
            closed = trio.Event()
            original = nodes[0].on_link_closed

            def on_closed(ended, code, reason):
                original(ended, code, reason)
                if ended is link:
                    closed.set()

            nodes[0].on_link_closed = on_closed
            junk = b"".join(number.to_bytes(8, "big") for number in range(1000))
            with trio.move_on_after(20):
                while not closed.is_set():
                    for _ in range(50):
                        link.send_control(encode_gossip(Have(junk)))
                    nodes[0].endpoint.flush()
                    await trio.sleep(0.01)
            assert closed.is_set()
            await until(lambda: all(len(node.discovery.partners()) >= 1 for node in nodes))


async def test_links_are_made_again_from_the_directory(tmp_path: Path) -> None:
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 3) as (nodes, _):
            await until(lambda: all(len(node.discovery.partners()) >= 2 for node in nodes))
            for link in list(nodes[0].endpoint.links):
                link.close(0, "cut")
            nodes[0].endpoint.flush()
            await until(lambda: not nodes[0].discovery.partners())
            await until(lambda: len(nodes[0].discovery.partners()) >= 2)


async def test_who_leaves_the_root_list_is_forgotten(tmp_path: Path) -> None:
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 3) as (nodes, source):
            await until(lambda: all(len(node.directory) == 3 for node in nodes))
            source.change(RootList([member_of(node) for node in nodes[:2]], "a test"))
            await until(lambda: len(nodes[0].directory) == 2)
            kinds = [peer.kind for peer in nodes[0].discovery.gossip.peers.values()]
            assert Kind.CUSTOMER in kinds or len(kinds) < 3


async def test_a_full_disk_costs_the_stored_directory_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise FileError("cannot write directory: No space left on device")

    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 2) as (nodes, _):
            await until(lambda: all(len(node.store) == 2 for node in nodes))
            monkeypatch.setattr(discovery_module, "save_directory", full)
            nodes[0].discovery._version += 1
            nodes[0].discovery.save()
            assert "No space left" in nodes[0].discovery.problems()[0]
            monkeypatch.undo()
            nodes[0].discovery.save()
            assert nodes[0].discovery.problems() == []
    assert len(load_directory_file(tmp_path / "n0" / "directory")) == 2


def test_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    assert load_directory_file(path) == ()
    save_directory(path, [b"one", b"two"], time.time())
    assert load_directory_file(path) == (b"one", b"two")
    whole = path.read_bytes()
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(50):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(damaged))] ^= dice.randint(1, 255)
        path.write_bytes(damaged)
        assert load_directory_file(path) == ()
    path.write_bytes(whole[:-1])
    assert load_directory_file(path) == ()
    path.chmod(0o644)
    assert load_directory_file(path) == (), "others could have written it"


async def test_nodes_with_clocks_an_hour_apart_know_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All clocks of this process are the same; what is shifted is what one relay says of the time."""
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 2, publishes=False) as (nodes, _):
            for node, shift_s in zip(nodes, (3500, -3500), strict=True):
                made_s = int(time.time()) + shift_s
                from overlay.descriptor import Descriptor, sign_descriptor

                signed = sign_descriptor(
                    node.identity,
                    Descriptor(
                        identity=node.identity.node_id,
                        sequence=made_s,
                        published_s=made_s,
                        expires_s=made_s + 86400,
                        addresses=(Address(*node.endpoint.addresses[0]),),
                        onion_key=bytes(32),
                    ),
                )
                node.discovery.publish(signed.encoded)
            await until(lambda: all(len(node.store) == 2 for node in nodes))


def member(number: int) -> Member:
    """A member whose address nobody is told."""
    return Member(identities(number + 1)[number].node_id, b"", 0, ())


async def test_a_customer_asks_others_when_the_first_keeps_most_of_the_list_back(tmp_path: Path) -> None:
    """Of six members three hide the other three from who asks them."""
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 6) as (nodes, source):
            await until(lambda: all(len(node.store) == 6 for node in nodes))
            hidden = {node.identity.node_id for node in nodes[3:]}
            for node in nodes[:3]:
                roots = RootList([one for one in source.roots if one.identity not in hidden], "a lie")
                node.discovery.gossip.store.set_roots(roots)
            for number in range(3):
                folder = tmp_path / f"customer{number}"
                folder.mkdir(mode=0o700)
                async with open_node(folder, StaticSource(source.roots)) as customer:
                    await until(lambda customer=customer: len(customer.directory) == 6)


async def test_a_customer_asks_others_again_when_its_directory_has_shrunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a guard brings nothing new, and what was known expires."""
    monkeypatch.setattr(discovery_module, "ASK_AGAIN_S", 0.2)
    monkeypatch.setattr(discovery_module, "LOOK_S", 0.05)
    with trio.fail_after(WHOLE_S):
        async with open_nodes(tmp_path, 6) as (nodes, source):
            await until(lambda: all(len(node.store) == 6 for node in nodes))
            folder = tmp_path / "customer"
            folder.mkdir(mode=0o700)
            async with open_node(folder, StaticSource(source.roots)) as customer:
                await until(lambda: len(customer.directory) == 6)
                store = customer.discovery.gossip.store
                store.set_roots(RootList(list(source.roots)[:1], "what has not expired"))
                store.set_roots(source.roots)
                assert len(store) == 1
                await until(lambda: len(store) == 6)

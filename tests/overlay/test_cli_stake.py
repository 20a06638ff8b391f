"""`hopfare stake` against a development chain on loopback, and what a node makes of the registry."""

import json
from dataclasses import replace

import pytest
import trio
import trio.testing
from chain_world import ETHER, ChainWorld

from overlay.cli.main import main
from overlay.config.io.load import load_config
from overlay.descriptor import Address
from overlay.errors import ConfigError
from overlay.gossip.roots import Member, RootList
from overlay.identity import Identity
from overlay.node.io.root_sources import HOLD_S, REGISTRY_FILE, RegistrySource, SeedListSource, make_source
from overlay.node.io.stake import join_params
from payments.io import keystore
from payments.io.chain.devchain import advance_time
from payments.keys import parse_address

IDENTITY = Identity(b"r" * 32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with ChainWorld(tmp_path_factory.mktemp("chain"), kind="pyrevm") as world:
        yield world


@pytest.fixture
def home(tmp_path, monkeypatch, world):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPFARE_PASSPHRASE", "correct horse")
    monkeypatch.setattr(keystore, "SCRYPT_N", 2**4)
    monkeypatch.setattr(keystore.write_key_file, "__defaults__", (2**4,))
    monkeypatch.setenv("HOPFARE_CONFIG", str(tmp_path / "hopfare.toml"))
    (tmp_path / "state").mkdir(mode=0o700)
    IDENTITY.save(tmp_path / "state" / "identity")
    settings = {
        "chain_id": world.dev.chain_id,
        "rpc": [world.dev.url],
        "purses": "0x" + world.deployment.purses.hex(),
        "registry": "0x" + world.deployment.registry.hex(),
        "coin": "TEST",
        "confirmations": 0,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (tmp_path / "hopfare.toml").write_text(
        f'[node]\nstate_dir = "{tmp_path}/state"\n[relay]\nadvertise = "192.0.2.7:4433"\n[payments]\n'
        + "\n".join(lines)
        + "\n"
    )
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*arguments, status=0):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert (ended.value.code or 0) == status, output.err
        return json.loads(output.out) if "--json" in arguments else output.out + output.err

    return run


def read_roots(config):
    async def read():
        return await RegistrySource(config).load()

    return trio.run(read)


def test_a_relay_joins_changes_leaves_and_gets_its_stake_back(run, world, home):
    address = run("wallet", "new", "--json")["address"]
    world.fund(parse_address(address))
    assert "least stake is 1 TEST" in run("stake")
    assert "at least 1 TEST" in run("stake", "join", "0.5", status=2)
    joined = run("stake", "join", "2", "--json")
    assert joined["listed"]
    assert (joined["address"], joined["port"], int(joined["stake_wei"])) == ("192.0.2.7", 4433, 2 * ETHER)
    config = load_config(home / "hopfare.toml")
    (member,) = read_roots(config)
    assert (member.identity, member.payee, member.stake_wei, member.addresses) == (
        IDENTITY.node_id,
        parse_address(address),
        2 * ETHER,
        (Address("192.0.2.7", 4433),),
    )
    moved = run("stake", "join", "1", "--address", "[2001:db8::5]:99", "--json")
    assert (moved["address"], moved["port"], int(moved["stake_wei"])) == ("2001:db8::5", 99, 2 * ETHER)
    assert int(run("stake", "add", "0.5", "--json")["stake_wei"]) == 5 * ETHER // 2
    assert "free from" in run("stake", "leave")
    assert "unbonding" in run("stake", "take", status=1)
    world.do(advance_time, world.chain.rpc, 7300)
    assert int(run("stake", "take", "--json")["stake_wei"]) == 0
    (home / "state" / REGISTRY_FILE).unlink()
    assert len(read_roots(config)) == 0


def test_what_was_read_is_used_when_no_endpoint_answers(run, world, home):
    address = run("wallet", "new", "--json")["address"]
    world.fund(parse_address(address))
    run("stake", "join", "1")
    config = load_config(home / "hopfare.toml")
    assert len(read_roots(config)) == 1
    dead = replace(config, payments=replace(config.payments, rpc=("http://127.0.0.1:9",)))

    async def load_and_look():
        source = RegistrySource(dead)
        roots = await source.load()
        async with source._follow() as follower:
            await source._poll(follower)
        return roots, source.problem

    roots, problem = trio.run(load_and_look)
    assert IDENTITY.node_id in roots
    assert "what was known before is used" in problem
    path = home / "state" / REGISTRY_FILE
    path.write_bytes(path.read_bytes()[:-5])
    assert len(read_roots(config)) == 1, "a damaged copy is made anew"


def test_an_entry_without_its_identitys_word_is_nobodys(run, world, home):
    address = run("wallet", "new", "--json")["address"]
    world.fund(parse_address(address))
    config = load_config(home / "hopfare.toml")
    other = Identity(b"o" * 32)
    params = join_params(other, config.payments, b"\1" * 20, Address("192.0.2.9", 1), ETHER)
    with pytest.raises(ConfigError, match="not the identity's for this account"):
        trio.run(_join, config, params)


async def _join(config, params):
    from overlay.node.io.wallet import open_wallet

    async with open_wallet(config) as wallet:
        await wallet.handle("wallet-stake-join", params)


def test_the_configuration_says_which_root_list_counts(home):
    config = load_config(home / "hopfare.toml")
    assert isinstance(make_source(config), RegistrySource)
    listed = replace(config, network=replace(config.network, discovery="list"))
    assert isinstance(make_source(listed), SeedListSource)
    without = replace(config, payments=replace(config.payments, registry=b""))
    assert isinstance(make_source(without), SeedListSource)


def test_a_list_that_lost_most_of_its_members_waits(home):
    def roots_of(count):
        return RootList([Member(bytes([number]) * 32, b"", 0, ()) for number in range(count)])

    async def look():
        source = RegistrySource(load_config(home / "hopfare.toml"))
        source._given = 20
        assert not source._is_held(roots_of(10))
        assert source._is_held(roots_of(9))
        assert "instead of 20" in source.problem
        await trio.sleep(HOLD_S + 1)
        assert not source._is_held(roots_of(9)), "they have left indeed"
        source._given = 5
        assert not source._is_held(roots_of(1))

    trio.run(look, clock=trio.testing.MockClock(autojump_threshold=0))

import contextlib
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.config.check import check_client, check_network, check_payments, check_relay, list_warnings
from overlay.config.default import render_config, render_manual
from overlay.config.lines import find_places
from overlay.config.model import SECTIONS, Config, list_settings
from overlay.config.parse import Override, Surroundings, parse_config
from overlay.descriptor import Address
from overlay.errors import ConfigError
from overlay.identity import Identity

AROUND = Surroundings(home=Path("/home/ann"), is_root=False, folder=Path("/etc/hopfare"))
NODE = Identity(b"n" * 32)


def parse(toml="", environ=None, overrides=(), around=AROUND):
    return parse_config(
        toml, surroundings=around, file=Path("h.toml"), environ=environ or {}, overrides=overrides
    )


def problems(toml="", environ=None, overrides=()):
    with pytest.raises(ConfigError) as caught:
        parse(toml, environ, overrides)
    return str(caught.value).splitlines()


def test_without_a_word_everything_has_its_default():
    config = parse()
    assert config.client.hops == 3
    assert config.client.socks == (Address("127.0.0.1", 1080),)
    assert config.client.rotation_s == 600
    assert config.node.memory_limit_bytes == 128 * 2**20
    assert config.exit.policy.endswith("accept *:*\n")
    assert config.state_dir == Path("/home/ann/.local/state/hopfare")
    assert config.seed_list is None


def test_the_default_file_says_just_the_defaults():
    text = render_config()
    assert parse(text) == parse()
    switched_on = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()
    )
    assert parse(switched_on) == parse()
    assert {section: set(table) for section, table in tomllib.loads(switched_on).items()} == {
        section: set(list_settings(section)) for section in SECTIONS
    }


def test_the_default_file_can_have_settings_on():
    text = render_config({("network", "name"): '"lab"', ("client", "hops"): "2"})
    assert parse(text).network.name == "lab"
    assert parse(text).client.hops == 2


def test_the_manual_has_every_setting():
    page = (Path(__file__).parents[2] / "docs/operations/configuration.md").read_text()
    assert render_manual() in page, "run: make manual"


def test_a_full_file():
    config = parse(f"""
[node]
state_dir = "~/hop"
log_level = "debug"
memory_limit = "64 MiB"
[relay]
listen = "192.0.2.7:4433"
payee = "0x{"ab" * 20}"
country = "is"
capacity = "100 Mbit/s"
[exit]
policy = '''
accept *:443
reject *:*
'''
allow_ranges = ["10.0.0.0/8", "fd00::/8"]
resolvers = ["9.9.9.9", "[2620:fe::fe]:5353"]
[client]
hops = 2
socks = ["127.0.0.1:1080", "[::1]:1080"]
exits = ["{NODE.name}"]
rotation = "1m 30s"
[network]
seed_list = "seeds"
seed_list_key = "{NODE.name}"
""")
    assert config.state_dir == Path("/home/ann/hop")
    assert config.seed_list == Path("/etc/hopfare/seeds")
    assert config.relay.listen == (Address("192.0.2.7", 4433),)
    assert config.relay.payee == b"\xab" * 20
    assert config.relay.country == "IS"
    assert config.relay.capacity_bytes_per_s == 12_500_000
    assert [str(network) for network in config.exit.allow_ranges] == ["10.0.0.0/8", "fd00::/8"]
    assert config.exit.resolvers == (Address("9.9.9.9", 53), Address("2620:fe::fe", 5353))
    assert config.client.exits == (NODE.node_id,)
    assert config.client.rotation_s == 90
    assert config.network.seed_list_key == NODE.node_id
    assert check_client(config) == []
    assert check_relay(config) == []


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("\n\n[client]\nhops = 9", "h.toml, line 4: client.hops = 9: must be a whole number from 1 to 4"),
        ("[client]\nhops = '3'", 'h.toml, line 2: client.hops = "3": must be a whole number from 1 to 4'),
        ("[client]\nhops = true", "h.toml, line 2: client.hops = true: must be a whole number from 1 to 4"),
        ("[client]\nhop = 3", "h.toml, line 2: there is no hop in [client]; do you mean hops?"),
        ("[client]\nmax_links = 3", "h.toml, line 2: there is no max_links in [client]; it belongs into [re"),
        ("[cleint]\nhops = 3", "h.toml, line 1: there is no section [cleint]; do you mean [client]?"),
        ("hops = 3", "h.toml, line 1: hops belongs into a section: [client]"),
        ("client = 3", "h.toml, line 1: client is a section; write [client] and its keys below"),
        ("[[client]]", "h.toml, line 1: client is a section; write [client] and its keys below"),
        (
            "[client]\nrotation = 10",
            'h.toml, line 2: client.rotation = 10: must be a time with its unit, such as "10s", "5m" or "1h '
            '30m" (do you mean "10s"?)',
        ),
        ("[client]\nrotation = '9 parsecs'", "must be a time with its unit"),
        ("[client]\nrotation = '1s'", 'must be from "10s" to "1d"'),
        ("[node]\nmemory_limit = 1000000", 'do you mean "1000000 bytes"?'),
        ("[node]\nmemory_limit = '1 KiB'", 'must be from "16 MiB" to "1 TiB"'),
        ("[node]\nmemory_limit = '64 MiBi'", "must be a size with its unit"),
        ("[node]\nquic = 'quiche'", 'must be "qh3" or "aioquic"'),
        ("[node]\nlog_level = 'loud'", 'must be "debug", "info", "warning" or "error"'),
        ("[client]\nsocks = 1080", 'for this machine only: "127.0.0.1:1080"'),
        ("[client]\nsocks = 'localhost:1080'", "must be an IP address and a port"),
        ("[client]\nsocks = '::1:1080'", "must be an IP address and a port"),
        ("[client]\nsocks = '127.0.0.1:70000'", "must be an IP address and a port"),
        ("[client]\nsocks = ['127.0.0.1:1', '127.0.0.1:1']", '"127.0.0.1:1" is given twice'),
        ("[client]\nexit_country = 'Iceland'", "must be a country's two letters"),
        ("[client]\nexits = ['abc']", '"abc" must be a node\'s name'),
        ("[client]\nisolation = ['users']", 'must be "user", "destination" or "port"'),
        ("[relay]\ncapacity = '100 Mbit'", "must be a rate with its unit"),
        ("[relay]\ncapacity = '100 pints/s'", "must be a rate with its unit"),
        ("[relay]\npayee = '0x12'", "must be an account"),
        ("[relay]\nprice = -1", "must be a price such as"),
        ("[relay]\nprice = 0.05", 'do you mean "0.05 per GB"?'),
        ("[relay]\nprice = '0.05 per MB'", 'must be a price such as "0.05 per GB"'),
        ("[relay]\nprice = '0.5 wei per packet'", "must be a price such as"),
        ("[relay]\nprice = '2 per packet'", "must be at most 1000000000000000000 wei per packet"),
        ("[payments]\nchain_id = '100'", 'h.toml, line 2: payments.chain_id = "100": must be a whole number'),
        ("[payments]\nrpc = 'localhost:8545'", "must be the URL of a JSON-RPC endpoint"),
        ("[payments]\nrpc = ['http://a/', 'ftp://b/']", '"ftp://b/" must be the URL'),
        ("[payments]\npurses = '0x12'", "must be an account"),
        ("[payments]\npurse_deposit = 0.5", 'do you mean "0.5"?'),
        ("[payments]\npurse_deposit = '1/0 wei'", "must be an amount in the chain's coin"),
        ("[payments]\npurse_deposit = '0.5 wei'", "must be whole wei"),
        ("[payments]\npurse_deposit = '1e30 wei'", "must be an amount in the chain's coin"),
        ("[payments]\npurse_deposit = '-1'", "must be an amount in the chain's coin"),
        ("[payments]\npurse_deposit = '1 mwei gwei'", "must be an amount in the chain's coin"),
        ("[payments]\nmax_window = '1 pound'", "must be an amount in the chain's coin"),
        ("[payments]\nbudget_per_day = '0.0000000000000000001'", "must be an amount in the chain's coin"),
        ("[payments]\nclaim_batch = 65", "must be a whole number from 1 to 64"),
        ("[relay]\nfamily = 'a b'", "must be at most 32 letters"),
        ("[exit]\nallow_ranges = ['10.0.0.1/8']", 'must be the network itself: "10.0.0.0/8"'),
        ("[exit]\nallow_ranges = ['ten']", "must be a network such as"),
        ("[exit]\nresolvers = ['dns.example']", "must be a DNS server's IP address"),
        ("[exit]\ninterface = 'a/b'", "must be a network interface's name"),
        ("[client]\nsocks = 127.0.0.1:1080", 'put it in quotes: socks = "127.0.0.1:1080"'),
        ("[client]\nhops: 3", "joined by =, not by :"),
        ("[client]\nhops = 3\nhops = 4", "h.toml, line 3: not valid TOML: cannot overwrite a value"),
        ("[client\nhops = 3", "h.toml, line 1: not valid TOML"),
        ("[client]\nsocks = '''", "h.toml, line 2: not valid TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line_and_what_would_be_right(toml, complaint):
    found = problems(toml)
    assert len(found) == 1
    assert complaint in found[0]
    assert found[0].startswith("h.toml, line ")


def test_all_problems_are_told_at_once():
    assert len(problems("[client]\nhops = 9\nhop = 1\n[relay]\nmax_links = 0\n[rely]")) == 4


def test_a_policys_problem_has_the_files_line():
    (found,) = problems("[exit]\npolicy = '''\naccept *:80\naccept *:http\nreject *:*\n'''")
    assert found.startswith("h.toml, line 4: exit.policy: ")
    (found,) = problems('[exit]\n\npolicy = """accept *:80\n# no\nacept *:90\nreject *:*"""')
    assert found.startswith("h.toml, line 5: exit.policy: ")
    (found,) = problems("[exit]\npolicy = 'accept *:80'")
    assert found.startswith("h.toml, line 2: exit.policy: ")


def test_the_environment_overrides_the_file_and_the_command_line_both():
    toml = "[client]\nhops = 1\nexit_country = 'IS'"
    environ = {
        "HOPFARE_CLIENT__HOPS": "2",
        "HOPFARE_RELAY__LISTEN": "192.0.2.1:1, 192.0.2.2:2",
        "HOPFARE_CONFIG": "x",
    }
    assert parse(toml, environ).client.hops == 2
    assert len(parse(toml, environ).relay.listen) == 2
    assert parse(toml, environ).client.exit_country == "IS"
    over = parse(toml, environ, [Override("--hops", "client", "hops", "4")])
    assert over.client.hops == 4


@pytest.mark.parametrize(
    ("name", "text", "attribute", "value"),
    [
        ("HOPFARE_RELAY__FAMILY", "2024", "family", "2024"),
        ("HOPFARE_RELAY__COUNTRY", "IS", "country", "IS"),
        ("HOPFARE_RELAY__COUNTRY", '"IS"', "country", "IS"),
        ("HOPFARE_RELAY__COUNTRY", "", "country", ""),
        ("HOPFARE_RELAY__MAX_LINKS", "7", "max_links", 7),
        ("HOPFARE_RELAY__ONION_KEY_ROTATION", "31d", "onion_key_rotation_s", 31 * 86400),
    ],
)
def test_variables_need_no_quotes(name, text, attribute, value):
    assert getattr(parse("", {name: text}).relay, attribute) == value


def test_wrong_variables_and_options_are_told_by_their_names():
    assert problems("", {"HOPFARE_CLIENT__HOPS": "nine"}) == [
        'environment variable HOPFARE_CLIENT__HOPS: client.hops = "nine": must be a whole number from 1 to 4'
    ]
    assert "do you mean hops?" in problems("", {"HOPFARE_CLIENT__HOP": "1"})[0]
    assert "do you mean [client]?" in problems("", {"HOPFARE_CLINT__HOPS": "1"})[0]
    assert problems("", {}, [Override("--hops 7", "client", "hops", "7")]) == [
        "--hops 7: client.hops = 7: must be a whole number from 1 to 4"
    ]
    assert "no section" in problems("", {}, [Override("--set x.y", "x", "y", "7")])[0]


def test_root_has_the_systems_folders():
    around = Surroundings(home=Path("/root"), is_root=True, folder=Path("/etc/hopfare"))
    assert parse("", around=around).state_dir == Path("/var/lib/hopfare")
    around = Surroundings(Path("/home/b"), False, Path("/"), state_home=Path("/state"))
    assert parse("", around=around).state_dir == Path("/state/hopfare")


def test_settings_that_do_not_agree():
    assert len(check_network(parse())) == 1
    assert "seed_list_key is not set" in check_network(parse("[network]\nseed_list = 'x'"))[0]
    listed = parse("[network]\ndiscovery = 'list'")
    assert any("relay.advertise is not set" in problem for problem in check_relay(listed))
    assert not any("relay.advertise" in problem for problem in check_relay(parse()))
    config = parse("[relay]\nadvertise = '192.0.2.1:5'\nonion_key_rotation = '1d'\nmax_circuits = 2")
    assert len(check_relay(config, with_network=False)) == 2
    assert len(check_relay(parse("[relay]\nlisten = []\nadvertise = '0.0.0.0:1'"), with_network=False)) == 2
    config = parse(f"""
[client]
socks = []
guards = ["{NODE.name}"]
exclude = ["{NODE.name}"]
exit_country = "IS"
exclude_countries = ["IS"]
circuits_ready = 9
max_circuits = 8
""")
    assert len(check_client(config)) == 1 + 4
    assert len(list_warnings(parse("[client]\nsocks = '0.0.0.0:1080'\nhops = 1"))) == 2
    assert list_warnings(parse()) == []


def test_places_of_keys():
    text = '''\
# comment [no]
top = 1

[a . "b c"]   # header
x = [ # list
  "]", 'y = 1',
  """
z = 2
""", {k = "#"}
]
y.z = """\\
  q = 1 \\""" """"
last = '' # end
[a.d]
e = """
f = 1"""
'''
    tomllib.loads(text)
    assert {path: place.line for path, place in find_places(text).items()} == {
        ("top",): 2, ("a", "b c"): 4, ("a", "b c", "x"): 5, ("a", "b c", "y", "z"): 11,
        ("a", "b c", "last"): 13, ("a", "d"): 14, ("a", "d", "e"): 15,
    }  # fmt: skip
    assert find_places(text)["a", "d", "e"].content_line == 16


@given(st.text(alphabet="[]ab.=\"'#\\\n {},1", max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(text), Config)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    places = find_places(text)
    assert {path[0] for path in places} >= set(tables)


@given(st.sampled_from(sorted(SECTIONS)), st.data())
def test_any_value_is_read_or_refused(section, data):
    key = data.draw(st.sampled_from(sorted(list_settings(section))))
    _attribute, setting = list_settings(section)[key]
    value = data.draw(
        st.recursive(
            st.booleans()
            | st.integers()
            | st.floats()
            | st.text()
            | st.sampled_from(["1s", "::1", "1.2.3.4:5"]),
            lambda inner: st.lists(inner, max_size=4),
        )
    )
    try:
        setting.parse(value)
    except ValueError as error:
        assert str(error)


def test_amounts_of_money_are_exact():
    config = parse(
        """
[relay]
price = "0.05 per GB"
[payments]
chain_id = 100
rpc = ["https://one.example/key", "http://127.0.0.1:8545"]
purses = "0x%s"
max_window = "2000000 gwei"
purse_deposit = "0.123456789012345678"
budget_per_day = "1 wei"
passphrase_file = "secret"
"""
        % ("cd" * 20),
        environ={"HOPFARE_PAYMENTS__BUDGET_PER_GB": "0.1"},
    )
    assert config.relay.price_wei_per_packet == 69_200_000_000 == 5 * 10**16 * 1384 // 10**9
    payments = config.payments
    assert payments.is_on and not parse().payments.is_on
    assert payments.max_window_wei == 2 * 10**15
    assert payments.purse_deposit_wei == 123456789012345678
    assert payments.budget_per_day_wei == 1
    assert payments.budget_per_hour_wei is None
    assert payments.budget_per_gb_wei == 10**17
    assert config.key_file == Path("/home/ann/.local/state/hopfare/key.json")
    assert config.passphrase_file == Path("/etc/hopfare/secret")
    assert check_payments(config) == []
    large = parse("[payments]\nmax_window = '600000000000000.0 wei'")
    assert large.payments.max_window_wei == 6 * 10**14
    assert parse("[relay]\nprice = '7 wei / packet'").relay.price_wei_per_packet == 7
    assert parse("[relay]\nprice = '1 wei per GB'").relay.price_wei_per_packet == 1, "rounded up"


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("chain_id = 5", "payments.rpc is not set"),
        ("chain_id = 5", "payments.purses is not set"),
        ("rpc = 'http://x/'", "payments.rpc is set, but payments.chain_id is not"),
        ("chain_id = 5\nmax_in_purses = '1 wei'", "payments.max_in_purses is less than"),
        ("chain_id = 5\npurse_deposit = '1 wei'", "payments.purse_deposit is less than payments.max_window"),
        ("chain_id = 5\nmax_startup_credit = '1 wei'", "payments.max_startup_credit is less"),
        ("chain_id = 5\nbudget_per_hour = '1'\nbudget_per_day = '0.5'", "payments.budget_per_day is less"),
    ],
)
def test_settings_of_payments_that_do_not_agree(toml, complaint):
    config = parse(f"[payments]\n{toml}")
    assert any(problem.startswith(complaint) for problem in check_payments(config))
    assert set(check_payments(config)) <= set(check_client(config)) & set(check_relay(config))

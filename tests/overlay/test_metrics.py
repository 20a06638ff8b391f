import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from overlay.descriptor import Address
from overlay.errors import ConfigError
from overlay.metrics import SERIES, collect_metrics
from overlay.node.io.metrics import serve_metrics
from payments.errors import LedgerError

PEER = "hcahhkok2r3sn2jmqcmxlwpzbhkpaxoxt5wcnxhzpdh4v6ouwb4q"
STATUS = {
    "role": "exit",
    "ready": True,
    "problems": ["something"],
    "uptime_s": 12.5,
    "directory": 6,
    "circuits": 3,
    "links": [
        {"peer": PEER, "address": "192.0.2.7:4433", "circuits": 2},
        {"peer": "customer", "address": "198.51.100.9:1234", "circuits": 1},
        {"peer": "customer", "address": "198.51.100.10:1234", "circuits": 0},
    ],
    "builds": {"seen": 9, "built": 5},
    "packets": {"in": 1000, "out": 40},
    "queued_bytes": 77,
    "exit": {"addresses_leased": 2, "refused": 4, "spoofed": 1, "malformed": 0, "warnings": []},
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def fetch(address):
    def get():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            return answer.read().decode()

    return await trio.to_thread.run_sync(get)


async def test_a_scrape_shows_the_totals_and_names_nobody():
    address = Address("127.0.0.1", free_port())
    status = dict(STATUS)
    async with serve_metrics(address, lambda: status):
        text = await fetch(address)
        found = read(text)
        assert found["hopfare_links", "customer"] == 2
        assert found["hopfare_links", "relay"] == 1
        assert found["hopfare_builds_total", "built"] == 5
        assert found["hopfare_packets_total", "in"] == 1000
        assert found["hopfare_exit_refused_packets_total",] == 4
        assert found["hopfare_problems",] == 1
        assert found["process_resident_memory_bytes",] > 1e6
        for secret in (PEER, PEER[:8], "192.0.2.7", "198.51.100", "4433"):
            assert secret not in text
        status = {"role": "client", "ready": False, "circuits": 0, "circuits_ready": 0}
        found = read(await fetch(address))
        assert found["hopfare_ready",] == 0
        assert not any(name[0].startswith("hopfare_exit") for name in found)
    with pytest.raises(urllib.error.URLError):
        await fetch(address)


async def test_money_is_in_the_scrape():
    address = Address("127.0.0.1", free_port())
    wei = {"earned_wei": 3e18, "claimed_wei": 2e18, "spent_wei": 1e18, "gas_wei": 5e12}
    async with serve_metrics(address, lambda: STATUS, lambda: wei):
        found = read(await fetch(address))
    for name, value in wei.items():
        assert found[f"hopfare_{name}_total",] == value

    def unreadable():
        raise LedgerError("The ledger cannot be read.")

    async with serve_metrics(address, lambda: STATUS, unreadable):
        found = read(await fetch(address))
    assert ("hopfare_ready",) in found
    assert ("hopfare_earned_wei_total",) not in found


def test_every_graph_of_the_dashboard_has_its_metric():
    folder = Path(__file__).resolve().parents[2] / "docs" / "operations"
    used = set(re.findall(r"hopfare_[a-z0-9_]+", (folder / "grafana-dashboard.json").read_text()))
    known = {series.name + ("_total" if series.kind == "counter" else "") for series in SERIES}
    assert used <= known | {"hopfare_info", "hopfare_links", "hopfare_problems"}


async def test_an_address_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="choose another"):
            async with serve_metrics(Address(*taken.getsockname()), dict):
                raise AssertionError("it must not get here")


async def test_without_an_address_nothing_listens():
    async with serve_metrics(None, lambda: pytest.fail("nobody asks")):
        await trio.lowlevel.checkpoint()


def test_every_series_has_a_name_of_its_own_and_a_unit():
    names = [series.name for series in SERIES]
    assert len(set(names)) == len(names)
    for series in SERIES:
        assert (
            series.path[-1].endswith("_bytes") is series.name.endswith("_bytes")
            or "usage" in series.path
            or ("proxy" in series.path)
        )


def test_what_a_status_lacks_or_has_in_another_shape_is_left_out():
    assert {family.name for family in collect_metrics({})} == {"hopfare_info", "hopfare_problems"}
    families = {family.name for family in collect_metrics({"builds": 3, "circuits": {"a": 1}})}
    assert "hopfare_builds" not in families
    assert "hopfare_circuits" not in families


def test_the_manual_names_every_metric():
    manual = (Path(__file__).parents[2] / "docs" / "operations" / "metrics.md").read_text()
    for series in SERIES:
        assert f"| {series.name}{'_total' if series.kind == 'counter' else ''} | {series.kind} |" in manual

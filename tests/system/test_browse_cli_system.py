"""What a person types beside a running client: status, circuits, --renew, stop; and what they print."""

import json

import pytest
from labkit import SystemLab, wait_until
from watching import addresses, circuit_in_use, hopfare

pytestmark = pytest.mark.system


def test_status(lab: SystemLab) -> None:
    node = lab.client()
    done = hopfare(lab, "status")
    assert done.returncode == 0, done.stderr
    lines = done.text.splitlines()
    assert lines[0] == "client works"
    assert "Traceback" not in done.text

    status = json.loads(hopfare(lab, "status", "--json").check().text)
    assert status["ready"] is True
    assert status["problems"] == []
    assert status["role"] == "client"
    assert status["hops"] == 3
    assert status["directory"] == len(lab.relays)
    assert status["pid"] in (node.process.pid, node.process.inner_pid)
    assert status["guards"]  # two, if the first one was once too slow to answer
    for guard in status["guards"]:
        (relay,) = [relay for relay in lab.relays if relay.id == guard["name"]]
        assert guard["address"] in addresses(lab, relay.host)
    for relay in lab.relays:
        assert hopfare(lab, "status", node=relay).text.splitlines()[0] == f"{relay.role} works"


def test_circuits(lab: SystemLab) -> None:
    lab.client()
    used = circuit_in_use(lab, "carol:x")
    wait_until(
        lambda: any(row["id"] == used["id"] and row["rtt_ms"] for row in lab.circuits()), 60, "a round trip"
    )
    rows = json.loads(hopfare(lab, "circuits", "--json").check().text)["circuits"]
    (row,) = [row for row in rows if row["id"] == used["id"]]
    assert row["isolated"] is True
    assert row["state"] == "ready"
    assert len(row["path"]) == len(row["countries"]) == len(row["addresses"]) == len(row["why"]) == 3
    assert row["packets_down"] >= used["packets_down"]

    table = hopfare(lab, "circuits").check().text.splitlines()
    assert table[0].split()[:3] == ["id", "state", "path"]
    (line,) = [line for line in table[1:] if line.split()[0] == str(used["id"])]
    assert all(name[:12] in line for name in row["path"])
    assert "isolated" in line


def test_renew(lab: SystemLab) -> None:
    lab.stop_client()  # programs of earlier tests may hold a circuit for two minutes
    lab.client()
    before = {row["id"] for row in lab.circuits()}
    old = circuit_in_use(lab)
    assert hopfare(lab, "circuits", "--renew").check().text == "New connections use new circuits."
    new = circuit_in_use(lab)
    assert new["id"] not in before
    assert new["inner_ipv4"] != old["inner_ipv4"]
    wait_until(lambda: not {row["id"] for row in lab.circuits()} & before, 60, "the end of the old ones")
    again = circuit_in_use(lab)
    assert again["id"] == new["id"]
    assert json.loads(hopfare(lab, "circuits", "--renew", "--json").check().text) == {}


def test_stop_and_what_is_said_when_nothing_runs(lab: SystemLab) -> None:
    node = lab.client()
    assert hopfare(lab, "stop").check().text == "stopped"
    assert node.process.wait(60) == 0
    assert not [name for name in node.state_dir.iterdir() if name.suffix == ".sock"]
    for command in (("status",), ("circuits",), ("stop",), ("exec", "--", "true")):
        done = hopfare(lab, *command, node=node)
        assert done.returncode == (125 if command[0] == "exec" else 3), done
        said = done.stderr.decode()
        assert said.startswith("hopfare: no hopfare is running"), said
        assert "Traceback" not in said
    lab.stop_client()


def test_status_says_why_it_does_not_work(lab: SystemLab) -> None:
    nowhere = {"client": {"exit_country": "IS"}}
    lab.stop_client()
    node = lab.world.fleet.client(nowhere, wait=False)
    try:
        wait_until(lambda: hopfare(lab, "status", node=node).returncode == 4, 60, "the client's socket")
        done = hopfare(lab, "status", node=node)
        assert done.text.splitlines()[0] == "client does not work"
        assert "IS" in done.text
        page = lab.client_curl("http://www.demo.test/ip", timeout_s=60)
        assert page.returncode == 97
    finally:
        lab.stop_client()

"""What the client itself may reach in whole-device mode, and settings that make no sense."""

import json

from overlay.config.check import check_client
from overlay.config.io.load import load_config
from overlay.node.io.whole_device import _look_up, list_peers

URLS = ("https://rpc.example/key", "http://192.0.2.5:8545", "http://127.0.0.1:8545", "https://[2001:db8::5]/")


def test_endpoints_by_address_and_by_name() -> None:
    peers = list_peers(URLS, {"rpc.example": ["203.0.113.9", "2001:db8::9"]})
    assert peers == [
        ("203.0.113.9", 443),
        ("2001:db8::9", 443),
        ("192.0.2.5", 8545),
        ("2001:db8::5", 443),
    ]
    assert list_peers(URLS[:1], {}) == []


async def test_names_are_known_from_before_when_nobody_answers(tmp_path) -> None:
    stored = tmp_path / "endpoints.json"
    stored.write_text(json.dumps({"rpc.invalid": ["203.0.113.9", "no address"], "bad": 7}))
    assert await _look_up(["https://rpc.invalid/"], stored) == {"rpc.invalid": ["203.0.113.9"]}
    stored.write_text("{")
    assert await _look_up(["https://rpc.invalid/", "http://localhost:1", "http://192.0.2.1"], stored) == {}


def test_exceptions_want_the_mode_and_never_all(tmp_path) -> None:
    file = tmp_path / "hopfare.toml"
    file.write_text('[client]\ndirect = ["192.168.1.7", "0.0.0.0/0"]\n')
    problems = "\n".join(check_client(load_config(file, environ={})))
    assert "client.direct is for client.whole_device = true" in problems
    assert "0.0.0.0/0 would let everything out" in problems

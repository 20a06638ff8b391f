"""Checks of what the exit needs, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from exit.errors import PrivilegeError
from exit.io import privileges
from exit.io.privileges import held_capabilities, missing_privileges, require_privileges

NOTHING = "Name:\tx\nCapEff:\t0000000000000000\n"
BOTH = "CapEff:\t0000000000001400\n"


def test_capabilities_are_read() -> None:
    assert held_capabilities(BOTH) == 1 << 12 | 1 << 10
    assert held_capabilities("") == 0


def test_everything_missing_is_named_with_how_to_grant_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "find_program", lambda name: None)
    monkeypatch.setattr(privileges, "_first_free_port", lambda: 1024)
    found = [str(one) for one in missing_privileges(status=NOTHING, tun_device=tmp_path / "tun")]
    for words, text in zip(
        (
            ("CAP_NET_ADMIN", "AmbientCapabilities=CAP_NET_ADMIN"),
            ("CAP_NET_BIND_SERVICE", "port 53"),
            ("tun is missing", "modprobe tun"),
            ("`ip`", "apt-get install iproute2"),
            ("`nft`", "apt-get install nftables"),
        ),
        found,
        strict=True,
    ):
        assert all(word in text for word in words), text
    monkeypatch.setattr(privileges, "missing_privileges", lambda: [privileges.Missing("a", "b")])
    with pytest.raises(PrivilegeError, match="the exit cannot start; a: b"):
        require_privileges()


def test_enough_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "tun"
    device.touch()
    monkeypatch.setattr(privileges, "find_program", lambda name: name)
    assert missing_privileges(status=BOTH, tun_device=device) == []
    monkeypatch.setattr(privileges, "_first_free_port", lambda: 53)
    assert missing_privileges(status="CapEff:\t0000000000001000\n", tun_device=device) == []
    monkeypatch.setattr(privileges.os, "access", lambda *_: False)
    [missing] = missing_privileges(status=BOTH, tun_device=device)
    assert "cannot be opened" in str(missing)

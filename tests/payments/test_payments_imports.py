"""A relay without payments pays nothing for them: heavy libraries load on first use. Small pure helpers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from payments.registry import decode_ip, encode_ip, endorsement_message

HEAVY = ("eth_account", "eth_abi", "httpx", "coincurve", "pyrevm", "py_ecc")


@pytest.mark.parametrize(
    "modules",
    [
        "payments.payer_tab, payments.payee_tab, payments.budget, payments.exposure, payments.pricing",
        "payments.io.ledger, payments.io.keystore, payments.io.redeemer, payments.io.chain.deploy",
        "payments.io.chain.devchain, payments.registry, payments.abi",
    ],
)
def test_importing_loads_nothing_heavy(modules: str) -> None:
    code = f"import sys, {modules}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_addresses_of_relays() -> None:
    for text in ("192.0.2.7", "2001:db8::1"):
        assert decode_ip(encode_ip(text).to_bytes(16, "big")) == text
    with pytest.raises(ValueError, match="appear"):
        encode_ip("relay.example")


def test_the_endorsed_message() -> None:
    message = endorsement_message(31337, b"\x01" * 20, b"\x02" * 20)
    assert message == (31337).to_bytes(32, "big") + b"\x01" * 20 + b"\x02" * 20
    with pytest.raises(ValueError, match="20 bytes"):
        endorsement_message(1, b"", b"")

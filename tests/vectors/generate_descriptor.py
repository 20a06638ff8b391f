"""Makes tests/vectors/descriptor.json, from the repository's root:
`python tests/vectors/generate_descriptor.py`.
"""

import json
from pathlib import Path

import msgspec

from overlay.descriptor import Address, Descriptor, sign_descriptor
from overlay.envelope import sign_envelope
from overlay.identity import Identity
from overlay.payee import prove_payee
from payments.keys import PurseKey

FILE = Path(__file__).with_name("descriptor.json")
NOW_S = 1_800_000_000
PAYEE = PurseKey(bytes(31) + b"\x07")
PROVENANCE = (
    "Made by tests/vectors/generate_descriptor.py with this repository's own code: a record of what it does, "
    "not an independent authority. Identity N has the seed of 32 bytes of value N; the payee has the "
    "secp256k1 secret 7. All signatures are deterministic. Bytes are hex, in `fields` base64."
)


def make(number: int, **changes: object) -> tuple[Identity, Descriptor]:
    identity = Identity(bytes([number]) * 32)
    fields: dict[str, object] = {
        "identity": identity.node_id,
        "sequence": NOW_S,
        "published_s": NOW_S,
        "expires_s": NOW_S + 86_400,
        "addresses": (Address("192.0.2.1", 4433),),
        "onion_key": bytes(range(32)),
    }
    return identity, Descriptor(**{**fields, **changes})  # type: ignore[arg-type]


def good() -> list[tuple[str, Identity, Descriptor]]:
    paid = Identity(b"\x02" * 32).node_id
    return [
        ("a plain relay", *make(1)),
        (
            "an exit with every field",
            *make(
                2,
                addresses=(Address("192.0.2.1", 4433), Address("2001:db8::1", 4433)),
                previous_onion_key=bytes(range(32, 64)),
                role_bits=3,
                price_wei_per_packet=10**12,
                payee=PAYEE.address,
                payee_proof=prove_payee(PAYEE, paid),
                exit_policy_summary="accept 80,443,6000-6010",
                has_ipv6=True,
                country="IS",
                family="north-wind",
                members=(b"\x03" * 32, b"\x04" * 32),
                capacity_bytes_per_s=12_500_000,
                monthly_cap_bytes=10**13,
                software_version="0.1.0",
                suites=(2, 1),
                link_versions=(1,),
                onion_key_made_s=NOW_S - 3600,
                onion_key_period_s=86_400,
            ),
        ),
        ("a relay that drains", *make(3, is_draining=True)),
    ]


def refused() -> list[tuple[str, bytes]]:
    identity, descriptor = make(1)
    signed = sign_descriptor(identity, descriptor).encoded
    encode = msgspec.msgpack.encode

    def signed_as(body: bytes, context: bytes = b"descriptor", by: Identity = identity) -> bytes:
        return sign_envelope(by, context, body)

    unproven = make(2, payee=PAYEE.address, payee_proof=prove_payee(PAYEE, identity.node_id))
    plain = list(msgspec.msgpack.decode(encode(descriptor)))
    return [
        ("more than the 2048 allowed", bytes(2049)),
        ("is not a body with its signature", signed + b"\0"),
        ("does not hold", signed[:-1] + bytes([signed[-1] ^ 1])),
        ("does not hold", signed_as(encode(descriptor), by=Identity(b"\x09" * 32))),
        ("does not hold", signed_as(encode(descriptor), context=b"seed list")),
        ("of format 1 cannot be read", signed_as(encode([1, *plain[1:]]))),
        ("malformed", signed_as(encode([*plain, 0]))),
        ("malformed", signed_as(encode(plain[:-1]))),
        ("did not sign for it", signed_as(encode(unproven[1]), by=unproven[0])),
        ("expires before", signed_as(encode(make(1, expires_s=NOW_S)[1]))),
        ("an address nobody can dial", signed_as(encode(make(1, addresses=(Address("0.0.0.0", 1),))[1]))),
    ]


def main() -> None:
    content = {
        "provenance": PROVENANCE,
        "descriptors": [
            {
                "what": what,
                "seed": identity.seed.hex(),
                "fields": msgspec.to_builtins(msgspec.structs.asdict(descriptor)),
                "encoded": sign_descriptor(identity, descriptor).encoded.hex(),
            }
            for what, identity, descriptor in good()
        ],
        "refused": [{"why": why, "encoded": data.hex()} for why, data in refused()],
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

import ipaddress

from overlay.descriptor import Address, Descriptor, sign_descriptor
from overlay.directory import Directory
from overlay.identity import Identity
from overlay.seedlist import decode_seed_list, sign_seed_list

NOW_S = 1_800_000_000


def node(number, **changes):
    identity = Identity(bytes([number]) * 32)
    fields = {
        "identity": identity.node_id,
        "sequence": 1,
        "published_s": NOW_S,
        "expires_s": NOW_S + 3600,
        "addresses": (Address(f"10.{number}.0.1", 4433),),
        "onion_key": b"k" * 32,
    }
    return sign_descriptor(identity, Descriptor(**{**fields, **changes}))


RELAY = node(1)
WEB = node(2, role_bits=3, exit_policy_summary="accept 80,443", country="IS")
ALL_V6 = node(3, role_bits=3, exit_policy_summary="reject 25", has_ipv6=True, country="SE")
EXIT_ONLY = node(4, role_bits=2, exit_policy_summary="accept 22")
DIRECTORY = Directory([RELAY, WEB, ALL_V6, EXIT_ONLY])


def names(found):
    return {descriptor.addresses[0].ip for descriptor in found}


def test_exits_are_found_by_port_family_and_country():
    assert names(DIRECTORY.exits(NOW_S)) == {"10.2.0.1", "10.3.0.1", "10.4.0.1"}
    assert names(DIRECTORY.exits(NOW_S, port=443)) == {"10.2.0.1", "10.3.0.1"}
    assert names(DIRECTORY.exits(NOW_S, port=443, ipv6=True)) == {"10.3.0.1"}
    assert names(DIRECTORY.exits(NOW_S, port=443, country="is")) == {"10.2.0.1"}
    assert names(DIRECTORY.relays(NOW_S)) == {"10.1.0.1", "10.2.0.1", "10.3.0.1"}


def test_why_there_is_none():
    explain = DIRECTORY.explain_no_exit
    assert explain(NOW_S, port=443) is None
    assert explain(NOW_S, port=25) == "No exit in the directory allows port 25."
    assert explain(NOW_S, country="XX") == "No exit in the directory is in XX."
    assert explain(NOW_S, country="IS", port=22) == "No exit in IS in the directory allows port 22."
    assert explain(NOW_S, country="IS", ipv6=True) == "No exit in IS in the directory carries IPv6."
    both = Directory([WEB, node(3, role_bits=3, exit_policy_summary="reject 443", has_ipv6=True)])
    assert both.explain_no_exit(NOW_S, port=443, ipv6=True) == (
        "No exit in the directory allows port 443 and carries IPv6."
    )
    assert Directory([RELAY]).explain_no_exit(NOW_S) == "No node in the directory is an exit."
    assert "no relay is known" in Directory().explain_no_exit(NOW_S)
    assert "expired" in explain(NOW_S + 9999)
    assert "clock" in explain(NOW_S - 9999)


def test_stale_nodes_are_neither_relays_nor_exits_but_keep_their_addresses():
    directory = Directory([RELAY, node(2, role_bits=3, expires_s=NOW_S + 10)])
    assert names(directory.relays(NOW_S + 11)) == {"10.1.0.1"}
    assert directory.exits(NOW_S + 11) == []
    assert directory.explain_staleness(NOW_S) is None
    assert directory.explain_staleness(NOW_S + 11) == (
        "1 of 2 descriptors have expired: get a newer seed list."
    )
    assert ipaddress.ip_address("10.2.0.1") in directory.known_addresses()


def test_the_newest_descriptor_of_a_node_counts_in_any_order():
    newer = node(1, sequence=2, addresses=(Address("10.9.0.1", 1),))
    for entries in ([RELAY, newer], [newer, RELAY]):
        directory = Directory(entries)
        assert len(directory) == 1
        assert directory.get(newer.descriptor.identity) == newer
    assert directory.get(b"unknown") is None


def test_a_seed_list_makes_a_directory_while_it_is_fresh():
    signer = Identity(b"s" * 32)
    encoded = sign_seed_list(signer, "net", DIRECTORY, sequence=1, published_s=NOW_S, expires_s=NOW_S + 100)
    seed_list = decode_seed_list(encoded, signer.node_id)
    assert {entry.encoded for entry in Directory.from_seed_list(seed_list, NOW_S)} == {
        entry.encoded for entry in DIRECTORY
    }
    assert len(Directory.from_seed_list(seed_list, NOW_S + 100)) == 0

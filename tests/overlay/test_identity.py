import pickle
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import DecodeError, FileError
from overlay.identity import Identity, format_node_id, parse_node_id, verify

SEED = bytes(range(32))


def test_names_and_signatures_of_a_seed_stay_the_same():
    # RFC 8032, 7.1, test 1: secret and public key
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    identity = Identity(secret)
    assert identity.node_id.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert len(identity.name) == 52
    assert identity.name == identity.name.lower()
    assert parse_node_id(identity.name) == identity.node_id
    assert parse_node_id(identity.name.upper()) == identity.node_id


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_a_signature_holds_only_for_its_signer_context_and_message(seed, message):
    identity = Identity(seed)
    signature = identity.sign(b"link", message)
    assert len(signature) == 64
    assert verify(identity.node_id, b"link", message, signature)
    assert not verify(identity.node_id, b"lin", b"k" + message, signature)
    assert not verify(identity.node_id, b"descriptor", message, signature)
    assert not verify(identity.node_id, b"link", message + b"x", signature)
    assert not verify(Identity(SEED[::-1]).node_id, b"link", message, signature)
    assert not verify(identity.node_id, b"link", message, signature[:-1])


@given(st.binary(max_size=70), st.binary(max_size=40), st.binary(max_size=40))
def test_verify_never_raises(signature, node_id, message):
    assert verify(node_id, b"x", message, signature) is False


def test_a_context_cannot_run_into_the_message():
    with pytest.raises(ValueError, match="zero byte"):
        Identity(SEED).sign(b"a\0b", b"")


@given(st.text(max_size=60))
def test_parsing_a_name_raises_only_decode_errors(text):
    try:
        node_id = parse_node_id(text)
    except DecodeError:
        return
    assert format_node_id(node_id) == text.lower()


def test_a_name_has_one_spelling():
    name = format_node_id(bytes(32))
    assert name.endswith("a")
    with pytest.raises(DecodeError):
        parse_node_id(name[:-1] + "b")


def test_a_file_keeps_the_identity_private_and_is_never_overwritten(tmp_path):
    path = tmp_path / "identity"
    identity = Identity.generate()
    identity.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path) == identity
    with pytest.raises(FileError, match="already exists"):
        Identity.generate().save(path)
    assert Identity.load(path) == identity
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_open_to_others_is_refused_with_the_cure(tmp_path, mode):
    path = tmp_path / "identity"
    Identity.generate().save(path)
    path.chmod(mode)
    with pytest.raises(FileError, match=r"chmod 600"):
        Identity.load(path)


def test_missing_and_odd_files_are_told(tmp_path):
    with pytest.raises(FileError, match="there is no identity file"):
        Identity.load(tmp_path / "none")
    with pytest.raises(FileError, match="not a regular file"):
        Identity.load(tmp_path)
    with pytest.raises(FileError, match="cannot write"):
        Identity.generate().save(tmp_path / "no" / "identity")


@given(st.binary(max_size=200))
def test_a_damaged_file_is_told_without_its_content(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("identity") / "identity"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(FileError, match="damaged"):
        Identity.load(path)


def test_one_changed_character_is_noticed(tmp_path):
    path = tmp_path / "identity"
    Identity(SEED).save(path)
    text = path.read_text()
    secret = text.split()[-1]
    path.write_text(text.replace(secret, "b" + secret[1:]))
    with pytest.raises(FileError, match="damaged") as caught:
        Identity.load(path)
    assert secret[2:] not in repr(caught.value)


def test_the_secret_does_not_show():
    identity = Identity(SEED)
    assert repr(identity) == f"Identity({identity.name})"
    with pytest.raises(TypeError):
        pickle.dumps(identity)

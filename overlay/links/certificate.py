"""Self-signed certificates whose key is a node's identity, and reading that key out of a peer's certificate.

The certificate says nothing but the key: fixed name, fixed dates, so that a node's certificate is always the
same. Nobody checks its signature or dates. What counts is that TLS proves possession of the key, and that the
dialler compares the key with the identity it wants.
"""

import datetime
import warnings
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from overlay.errors import DecodeError

_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hopfare")])
_BEGIN: Final = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_END: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""RFC 5280 section 4.1.2.5: this date means that the certificate does not expire."""
MAX_CERTIFICATE_BYTES: Final = 4096


def make_certificate(seed: bytes) -> tuple[bytes, bytes]:
    """Make the certificate of the Ed25519 key with this 32-byte seed; return it and its private key, both
    PEM.

    Raises ValueError for a seed of another length. The second value is secret.
    """
    return _make(seed, serialization.Encoding.PEM)


def make_certificate_der(seed: bytes) -> tuple[bytes, bytes]:
    """Make the same as DER, the key as PKCS #8."""
    return _make(seed, serialization.Encoding.DER)


def _make(seed: bytes, encoding: serialization.Encoding) -> tuple[bytes, bytes]:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .sign(key, None)
    )
    return (
        certificate.public_bytes(encoding),
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def decode_certificate_key(der: bytes) -> bytes:
    """Return the 32-byte Ed25519 public key of a peer's DER certificate. Raises DecodeError without one."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise DecodeError("the certificate is too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a peer's oddities are not the operator's business
            key = x509.load_der_x509_certificate(der).public_key()
    except Exception as error:  # the parser's errors for hostile input are not all of one class
        raise DecodeError("the certificate cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise DecodeError("the certificate's key is not Ed25519")
    return key.public_bytes_raw()

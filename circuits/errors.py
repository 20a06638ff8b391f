"""Errors of the package `circuits`: one root, and the one that functions named `decode_*` raise."""


class CircuitsError(Exception):
    """Root of everything this package raises on purpose."""


class DecodeError(CircuitsError):
    """Bytes from a peer or from disk that do not have the form the protocol document gives them."""

"""The exceptions of the overlay package, under one root.

An exception here is either our own misuse or an environment that failed us (a file, a privilege, a
configuration). A peer's fault is never one of them past the function that reads the peer's bytes: `decode_*`
functions raise `DecodeError` and nothing else, and their callers turn it into an output.

Every message is a sentence for a person: what failed, on what, and what would put it right.
"""

from __future__ import annotations


class OverlayError(Exception):
    """Root of the package's exceptions."""


class DecodeError(OverlayError):
    """Bytes of a peer (or of a file made by one) are not what the protocol allows."""


class FileError(OverlayError):
    """A file of ours is missing, unreadable, too open to others, damaged or already there."""


class ConfigError(OverlayError):
    """The configuration asks for something impossible; the message names file, line and key."""


class LocalControlError(OverlayError):
    """The local control socket of a running hopfare process cannot be used."""


class NotRunningError(LocalControlError):
    """No hopfare process answers for this state directory."""


class AlreadyRunningError(LocalControlError):
    """Another hopfare process holds this state directory."""

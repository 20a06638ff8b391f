"""The ciphers of circuit builds by the native engine's crate: `circuits.building.crypto` has the reference.

One call for each message. Messages are the same, byte for byte, but for what is random in them
(tests/dataplane/test_native_build.py). Ephemeral keys of clients are made ahead, those of a build at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from overlay.engine.native import load_crate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from circuits.building.crypto import Hop, OpenedBuild, SealedBuild
    from circuits.building.onion_keys import OnionKeys


class NativeBuildCrypto:
    """`circuits.building.crypto.BuildCrypto`; its randomness is the crate's."""

    def __init__(self) -> None:
        """Load the crate. Raises NativeEngineError when there is none."""
        self._crate: Any = load_crate()

    def prepare(self, hops: int) -> None:
        """Make ephemeral keys for a build of `hops` relays, unless they are there; at most eight are kept."""
        self._crate.prepare_build(hops)

    def seal(self, hops: Sequence[Hop]) -> SealedBuild:
        """Seal a BUILD. Raises ValueError for an onion key of small order or a wrong length."""
        return cast("SealedBuild", self._crate.seal_build(hops))

    def load_keys(self, node_id: bytes, keys: OnionKeys) -> Any:
        """Return a relay's keys as the crate holds them."""
        return self._crate.BuildKeys(node_id, [key.private.private_bytes_raw() for key in keys.readable()])

    def open(self, keys: Any, build: bytes) -> OpenedBuild | None:
        """Open a BUILD of 5952 bytes, or None."""
        return cast("OpenedBuild | None", self._crate.open_build(keys, build))

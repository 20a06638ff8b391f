"""Key chains: the keys and counters of one hop, direction and lane (docs/protocol/onion.md, "Keys" and
"Epochs").

A chain is made from the circuit's root and keeps only its own 32 bytes, from which past keys cannot be had;
whoever made all chains of a root should forget the root. Ciphers are made when the first packet needs them:
most circuits are spares. Python cannot overwrite `bytes`: to erase a key here is to drop the last reference;
OpenSSL clears its copies then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from circuits.params import (
    COUNTER_LIMIT,
    EPOCH_AGE_S,
    EPOCH_BITS,
    EPOCHS_AHEAD,
    KEY_BYTES,
    PREVIOUS_KEYS_S,
    WINDOW,
)
from circuits.window import ReplayWindow

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

    from circuits.suites import Aead, Suite

FORWARD = "fwd"
BACKWARD = "bwd"
FORWARD_STREAM = "fwd stream"
BACKWARD_STREAM = "bwd stream"

_EPOCH_LIMIT = COUNTER_LIMIT >> EPOCH_BITS
_COUNTER_START_BYTES = 6


def expand(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-SHA256 (RFC 5869) of a 32-byte secret: `length` bytes."""
    return HKDFExpand(SHA256(), length, f"onion/1 {label}".encode()).derive(secret)


def derive_chain(root: bytes, label: str) -> tuple[bytes, int]:
    """The first chain key and the counter before the first of one direction and lane. `root` has 32 bytes."""
    if len(root) != KEY_BYTES:
        raise ValueError(f"a root has {KEY_BYTES} bytes, not {len(root)}")
    start = int.from_bytes(expand(root, f"{label} ctr0", _COUNTER_START_BYTES), "little")
    return expand(root, f"{label} chain", KEY_BYTES), start


def _ratchet(chain: bytes, steps: int) -> bytes:
    for _ in range(steps):
        chain = expand(chain, "ratchet", KEY_BYTES)
    return chain


class EpochKeys:
    """The ciphers of one epoch, each made at its first use, and what was received in it."""

    __slots__ = ("_aead", "_chain", "_stream", "_suite", "epoch", "window")

    def __init__(self, suite: Suite, chain: bytes, epoch: int) -> None:
        """`chain` is the chain key of `epoch`."""
        self.epoch = epoch
        self._suite = suite
        self._chain = chain
        self._aead: Aead | None = None
        self._stream: CipherContext | None = None
        self.window = ReplayWindow(epoch << EPOCH_BITS)
        """The counters of this epoch that were accepted."""

    def __repr__(self) -> str:
        """Show the epoch, no key."""
        return f"EpochKeys(epoch={self.epoch})"

    @property
    def aead(self) -> Aead:
        """The body cipher."""
        if self._aead is None:
            self._aead = self._suite.new_aead(expand(self._chain, "keys", 2 * KEY_BYTES)[:KEY_BYTES])
        return self._aead

    @property
    def stream(self) -> CipherContext:
        """The header's cipher; backward, also that of the layers over a whole packet."""
        if self._stream is None:
            self._stream = self._suite.new_stream(expand(self._chain, "keys", 2 * KEY_BYTES)[KEY_BYTES:])
        return self._stream

    def following(self, steps: int) -> EpochKeys:
        """The keys `steps` epochs on."""
        return EpochKeys(self._suite, _ratchet(self._chain, steps), self.epoch + steps)


class SendChain:
    """A sender's keys and counter. Call `prepare`, use `keys` for the counters after `counter`, then move
    `counter`."""

    __slots__ = ("_started_s", "counter", "keys")

    def __init__(self, root: bytes, label: str, suite: Suite) -> None:
        """`root` has 32 bytes; `label` is one of this module's."""
        chain, self.counter = derive_chain(root, label)
        self.keys = EpochKeys(suite, chain, self.counter >> EPOCH_BITS)
        self._started_s: float | None = None
        """When the epoch's first packet was sent; None before it."""

    def prepare(self, now: float) -> int:
        """Make `keys` those of the next packet; return how many packets may use them, 0 when counters are
        used up."""
        following = self.counter + 1
        epoch = following >> EPOCH_BITS
        if epoch == self.keys.epoch and self._started_s is not None and now - self._started_s < EPOCH_AGE_S:
            return ((epoch + 1) << EPOCH_BITS) - following
        self.expire(now)
        following = self.counter + 1
        epoch = following >> EPOCH_BITS
        if epoch >= _EPOCH_LIMIT:
            return 0
        if epoch != self.keys.epoch:
            self.keys = self.keys.following(1)
            self._started_s = None
        if self._started_s is None:
            self._started_s = now
        return ((epoch + 1) << EPOCH_BITS) - following

    def expire(self, now: float) -> None:
        """Leave an epoch that is EPOCH_AGE_S old and was used, for the next one's first counter. May be
        called any time."""
        if self._started_s is None or now - self._started_s < EPOCH_AGE_S:
            return
        epoch = self.keys.epoch + 1
        self.counter = (epoch << EPOCH_BITS) - 1
        if epoch < _EPOCH_LIMIT:
            self.keys = self.keys.following(1)
        self._started_s = None


class ReceiveChain:
    """A receiver's keys, the current epoch's and the one's before it.

    `find` says with which keys to try a packet and changes nothing that a forged packet could abuse; `accept`
    takes note of a packet that proved authentic. This class checks no counters: it is for streams whose
    packets another hop proves.
    """

    __slots__ = ("_ahead", "_previous", "_previous_until_s", "current")

    def __init__(self, root: bytes, label: str, suite: Suite) -> None:
        """`root` has 32 bytes; `label` is one of this module's."""
        chain, start = derive_chain(root, label)
        self.current = EpochKeys(suite, chain, start >> EPOCH_BITS)
        self._ahead: EpochKeys | None = None
        self._previous: EpochKeys | None = None
        self._previous_until_s = 0.0

    def find(self, counter: int) -> EpochKeys | None:
        """The keys for `counter`; None when it is too old, or more than EPOCHS_AHEAD epochs ahead."""
        current = self.current
        return current if counter >> EPOCH_BITS == current.epoch else self._find_other(counter)

    def _find_other(self, counter: int) -> EpochKeys | None:
        epoch = counter >> EPOCH_BITS
        current = self.current
        if epoch < current.epoch:
            previous = self._previous
            return previous if previous is not None and previous.epoch == epoch else None
        if epoch - current.epoch > EPOCHS_AHEAD or epoch >= _EPOCH_LIMIT:
            return None
        if self._ahead is None or self._ahead.epoch != epoch:
            self._ahead = current.following(epoch - current.epoch)
        return self._ahead

    def accept(self, counter: int, keys: EpochKeys, now: float) -> None:
        """Note that the packet of `counter`, opened with `keys` from `find`, was authentic."""
        if keys.epoch > self.current.epoch:
            self._previous = self.current
            self._previous_until_s = now + PREVIOUS_KEYS_S
            self.current = keys
            self._ahead = None

    def is_old(self, counter: int) -> bool:
        """Whether an honest packet that was overtaken or doubled on its way may carry `counter`, for which
        `find` said None."""
        return counter >> EPOCH_BITS <= self.current.epoch

    def expire(self, now: float) -> None:
        """Erase the previous epoch's keys PREVIOUS_KEYS_S after the present ones came into use. May be called
        any time."""
        if self._previous is not None and now >= self._previous_until_s:
            self._previous = None


class WindowReceiveChain(ReceiveChain):
    """A receiver of single packets: they come in any order, each counter is accepted once."""

    __slots__ = ()

    def find(self, counter: int) -> EpochKeys | None:
        """As in ReceiveChain; None also when `counter` was accepted before or is older than the window."""
        keys: EpochKeys | None = self.current
        if counter >> EPOCH_BITS != self.current.epoch:
            keys = self._find_other(counter)
        if keys is None:
            return None
        window = keys.window
        return keys if counter > window.highest or window.is_fresh(counter) else None

    def accept(self, counter: int, keys: EpochKeys, now: float) -> None:
        """Mark `counter`; erase the previous epoch's keys also when the window has left that epoch."""
        if keys is not self.current:
            super().accept(counter, keys, now)
        keys.window.mark(counter)
        if (
            self._previous is not None
            and self.current.window.highest - WINDOW >= self.current.epoch << EPOCH_BITS
        ):
            self._previous = None


class OrderedReceiveChain(ReceiveChain):
    """A receiver of trains: counters come one after the other, but for the sender's jump to the next
    epoch."""

    __slots__ = ("_last",)

    def __init__(self, root: bytes, label: str, suite: Suite) -> None:
        """As in ReceiveChain."""
        super().__init__(root, label, suite)
        self._last = derive_chain(root, label)[1]

    def find(self, counter: int) -> EpochKeys | None:
        """The keys for `counter` if it is the next one; None otherwise."""
        last = self._last
        if counter != last + 1 and counter != ((last >> EPOCH_BITS) + 1) << EPOCH_BITS:
            return None
        return super().find(counter)

    def accept(self, counter: int, keys: EpochKeys, now: float) -> None:
        """Note that `counter` came. Nothing can come late on a stream: keys of an epoch that ended are erased
        at once."""
        self._last = counter
        if keys is not self.current:
            self.current = keys
            self._ahead = None

    def is_old(self, counter: int) -> bool:
        """False: on a stream nothing honest is out of order."""
        return False

"""The control stream's state machine: greeting, proof of identity, keep-alive, limits on messages.

Theory: a link passes CONNECTING (QUIC handshake), GREETING (the dialler waits for Welcome, the acceptor for
Hello), IDENTIFYING (an acceptor waits for a relay's Identify), UP, ENDED, never back. Hello, Welcome, Ping
and Pong carry so much padding that at least one packet of theirs has the full UDP payload: a path that loses
such packets never gets UP, and a link whose path shrinks later ends. A relay, which has many idle links, pads
only some of its Pings.

Pure: it takes bytes and times and returns outputs, to be carried out in order. Nothing follows an `End`.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from overlay.errors import DecodeError
from overlay.identity import verify
from overlay.links.bucket import Bucket
from overlay.links.constants import IDENTIFY_CONTEXT, PADDING_BYTES, CloseCode
from overlay.links.framing import ControlReader, encode_control_frame
from overlay.links.limits import LinkLimits
from overlay.messages import (
    Hello,
    Identify,
    LinkMessage,
    Ping,
    Pong,
    Welcome,
    decode_control,
    encode_control,
    is_link_message,
)

_PADDING = bytes(PADDING_BYTES)


class Signer(Protocol):
    """What proves a dialling relay's identity: `overlay.identity.Identity`."""

    @property
    def node_id(self) -> bytes:
        """The 32-byte public key."""

    def sign(self, context: bytes, message: bytes) -> bytes:
        """Return a 64-byte signature."""


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes for the control stream."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Up:
    """The link may be used. `peer` is None for an anonymous customer."""

    peer: bytes | None


@dataclass(frozen=True, slots=True)
class Deliver:
    """One encoded message for whoever is above the link."""

    message: bytes


@dataclass(frozen=True, slots=True)
class End:
    """Close the link."""

    code: int
    reason: str


Output = Send | Up | Deliver | End


class State(Enum):
    """See the module's text."""

    CONNECTING = auto()
    GREETING = auto()
    IDENTIFYING = auto()
    UP = auto()
    ENDED = auto()


class LinkMachine:
    """One side of one link."""

    __slots__ = (
        "_acceptor_id",
        "_answer_by",
        "_bucket",
        "_deadline",
        "_is_dialler",
        "_limits",
        "_next_ping",
        "_nonce",
        "_ping_number",
        "_reader",
        "_refusal",
        "_signer",
        "pongs",
        "state",
    )

    def __init__(
        self,
        *,
        is_dialler: bool,
        acceptor_id: bytes,
        signer: Signer | None,
        nonce: bytes,
        limits: LinkLimits,
        now: float,
        refusal: str | None = None,
    ) -> None:
        """Begin a link.

        `acceptor_id` is whom the dialler wants, or the acceptor itself. `signer` is a dialling relay's
        identity, None for a customer and for an acceptor. `nonce` is an acceptor's 32 fresh random bytes,
        empty for a dialler. An acceptor with a `refusal` lets the greeting happen and then ends the link with
        that sentence.
        """
        self.state = State.CONNECTING
        self.pongs = 0
        self._is_dialler = is_dialler
        self._acceptor_id = acceptor_id
        self._signer = signer
        self._nonce = nonce
        self._limits = limits
        self._refusal = refusal
        self._reader = ControlReader()
        self._bucket = Bucket(limits.control_messages_per_s, limits.control_burst, now)
        self._deadline = now + limits.handshake_timeout_s
        self._next_ping: float | None = None
        self._answer_by: float | None = None
        self._ping_number = 0

    def handle_connected(self, acceptor_key: bytes | None, now: float) -> list[Output]:
        """QUIC's handshake is done; a dialler says which key the acceptor's certificate has (None:
        unreadable).
        """
        if self.state is not State.CONNECTING:
            return []
        self.state = State.GREETING
        if not self._is_dialler:
            return []
        if acceptor_key != self._acceptor_id:
            return self._end(CloseCode.WRONG_IDENTITY, "the node at this address is not the expected one")
        return [_send(Hello(self._signer is not None, _PADDING))]

    def handle_control(self, data: bytes, now: float) -> list[Output]:
        """Bytes came on the control stream."""
        if self.state is State.ENDED:
            return []
        try:
            messages = self._reader.decode_control_frames(data)
        except DecodeError as error:
            return self._end(CloseCode.PROTOCOL, str(error))
        if messages and not self._bucket.take(len(messages), now):
            return self._end(CloseCode.FLOOD, "too many control messages")
        outputs: list[Output] = []
        for message in messages:
            if self.state is State.UP and not is_link_message(message):
                outputs.append(Deliver(message))
            else:
                outputs += self._link_message(message, now)
                if isinstance(outputs[-1] if outputs else None, End):
                    break
        return outputs

    def handle_timeout(self, now: float) -> list[Output]:
        """Time has passed; may be called early or twice."""
        if self.state is State.ENDED:
            return []
        if self.state is not State.UP:
            if now < self._deadline:
                return []
            return self._end(*self._timeout_reason())
        if self._answer_by is not None and now >= self._answer_by:
            return self._end(CloseCode.TIMEOUT, "no answer to a keep-alive of full packet size")
        if self._next_ping is not None and now >= self._next_ping:
            self._next_ping = now + self._limits.keepalive_s
            if self._answer_by is None:
                self._ping_number = (self._ping_number + 1) & 0xFFFF_FFFF
                self._answer_by = now + self._limits.answer_timeout_s
                is_full = self._ping_number % self._limits.full_ping_every == 0
                return [_send(Ping(self._ping_number, _PADDING if is_full else b""))]
        return []

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is wanted; None for never."""
        if self.state is State.ENDED:
            return None
        if self.state is not State.UP:
            return self._deadline
        ping, answer = self._next_ping, self._answer_by
        if ping is None or answer is None:
            return answer if ping is None else ping
        return min(ping, answer)

    def end(self) -> None:
        """The link was ended from outside."""
        self.state = State.ENDED

    def _timeout_reason(self) -> tuple[CloseCode, str]:
        if self.state is State.CONNECTING:
            return CloseCode.TIMEOUT, "no answer in time"
        return (
            CloseCode.PATH_TOO_SMALL,
            "path MTU too small: small packets pass, packets with a UDP payload of 1452 bytes do not",
        )

    def _link_message(self, raw: bytes, now: float) -> list[Output]:
        try:
            message = decode_control(raw)
        except DecodeError as error:
            return self._end(CloseCode.PROTOCOL, str(error))
        match self.state, self._is_dialler, message:
            case State.GREETING, False, Hello():
                return self._hello(message, now)
            case State.GREETING, True, Welcome():
                return self._welcome(message, now)
            case State.IDENTIFYING, False, Identify():
                return self._identify(message, now)
            case State.UP, False, Ping():
                return [_send(Pong(message.number, _PADDING[: len(message.padding)]))]
            case State.UP, True, Pong() if (
                message.number == self._ping_number and self._answer_by is not None
            ):
                self._answer_by = None
                self.pongs += 1
                return []
        name = type(message).__name__
        return self._end(CloseCode.PROTOCOL, f"a {name} message is out of place ({self.state.name.lower()})")

    def _hello(self, message: Hello, now: float) -> list[Output]:
        if len(message.padding) < PADDING_BYTES:
            return self._end(CloseCode.PROTOCOL, "a Hello without its padding")
        outputs: list[Output] = [_send(Welcome(self._nonce, _PADDING))]
        if message.identifies:
            self.state = State.IDENTIFYING
            return outputs
        return outputs + self._up(None, now)

    def _welcome(self, message: Welcome, now: float) -> list[Output]:
        if len(message.padding) < PADDING_BYTES:
            return self._end(CloseCode.PROTOCOL, "a Welcome without its padding")
        outputs: list[Output] = []
        if self._signer is not None:
            signature = self._signer.sign(IDENTIFY_CONTEXT, self._acceptor_id + message.nonce)
            outputs.append(_send(Identify(self._signer.node_id, signature)))
        self._next_ping = now + self._limits.keepalive_s
        return outputs + self._up(self._acceptor_id, now)

    def _identify(self, message: Identify, now: float) -> list[Output]:
        signed = self._acceptor_id + self._nonce
        if not verify(message.node_id, IDENTIFY_CONTEXT, signed, message.signature):
            return self._end(CloseCode.NOT_IDENTIFIED, "the proof of identity is false")
        return self._up(message.node_id, now)

    def _up(self, peer: bytes | None, now: float) -> list[Output]:
        if self._refusal is not None:
            return self._end(CloseCode.REFUSED, self._refusal)
        self.state = State.UP
        return [Up(peer)]

    def _end(self, code: CloseCode, reason: str) -> list[Output]:
        self.state = State.ENDED
        return [End(code, reason)]


def _send(message: LinkMessage) -> Send:
    return Send(encode_control_frame(encode_control(message)))

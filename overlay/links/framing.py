"""Control messages on the control stream: `length (2, big-endian) | message` of 1 to MAX_MESSAGE_BYTES."""

from overlay.errors import DecodeError
from overlay.messages import MAX_MESSAGE_BYTES


def encode_control_frame(message: bytes) -> bytes:
    """Frame one encoded message. Raises ValueError when its length is not 1 to MAX_MESSAGE_BYTES."""
    if not 0 < len(message) <= MAX_MESSAGE_BYTES:
        raise ValueError(f"a control message has 1 to {MAX_MESSAGE_BYTES} bytes, not {len(message)}")
    return len(message).to_bytes(2, "big") + message


class ControlReader:
    """Cuts the control stream into messages. Holds at most one incomplete message."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        """Begin at the start of a stream."""
        self._buffer = bytearray()

    def decode_control_frames(self, data: bytes) -> list[bytes]:
        """Add received bytes; return the messages now complete, in order.

        Raises DecodeError at a length that is not allowed; the reader is then of no more use.
        """
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        start, end = 0, len(buffer)
        while end - start >= 2:
            length = int.from_bytes(buffer[start : start + 2], "big")
            if not 0 < length <= MAX_MESSAGE_BYTES:
                raise DecodeError(
                    f"a control message of {length} bytes is announced; allowed are 1 to {MAX_MESSAGE_BYTES}"
                )
            if end - start - 2 < length:
                break
            messages.append(bytes(buffer[start + 2 : start + 2 + length]))
            start += 2 + length
        del buffer[:start]
        return messages

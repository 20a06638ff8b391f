"""Sizes and limits of the onion packet. Every size follows from the few at the top; see
docs/protocol/onion.md, "Sizes".

Bytes, packets, units and seconds are named as such. A *unit* is one onion packet's size; a train has several.
"""

UNIT = 1384
"""Bytes of one unit: UNIT, the circuit id and QUIC's own overhead fit a UDP payload of 1426 bytes."""
CIRCUIT_ID_BYTES = 4
LINK_FRAME = CIRCUIT_ID_BYTES + UNIT
"""Bytes of one QUIC DATAGRAM between neighbours: circuit id | packet."""
MAX_TRAIN_UNITS = 48
"""Units of the longest train: room for one TUN super-packet of 65,535 bytes and its headers."""
MAX_TRAIN_BYTES = MAX_TRAIN_UNITS * UNIT
N_MAX = 4
"""Relays on the longest path. Headers have this many slots on every path, so that none shows its length."""

COUNTER_FIELD_BYTES = 7
COMMAND_BYTES = 1
TAG_BYTES = 16
SLOT_BYTES = COUNTER_FIELD_BYTES + COMMAND_BYTES + TAG_BYTES
FORWARD_HEADER_BYTES = N_MAX * SLOT_BYTES
REST_BYTES = FORWARD_HEADER_BYTES - SLOT_BYTES
STREAM_HEADER_BYTES = FORWARD_HEADER_BYTES + COMMAND_BYTES
"""Header keystream of one hop, forward: the whole header and the command."""

BACKWARD_COUNTER_BYTES = 8
BACKWARD_HEADER_BYTES = N_MAX * BACKWARD_COUNTER_BYTES
BACKWARD_KEPT_BYTES = BACKWARD_HEADER_BYTES - BACKWARD_COUNTER_BYTES
"""Header bytes that a relay keeps of a backward packet; its own counter takes the place of the others."""

FORWARD_OVERHEAD_BYTES = FORWARD_HEADER_BYTES
BACKWARD_OVERHEAD_BYTES = BACKWARD_HEADER_BYTES + TAG_BYTES
FORWARD_BODY_BYTES = UNIT - FORWARD_OVERHEAD_BYTES
BACKWARD_BODY_BYTES = UNIT - BACKWARD_OVERHEAD_BYTES

KEY_BYTES = 32
NONCE_BYTES = 12
COUNTER_BITS = 56
COUNTER_LIMIT = 1 << COUNTER_BITS
"""Counters stay below; a sender that gets there is broken and never starts again from 0."""
EPOCH_BITS = 20
"""A key lives for at most 2**20 counters: at most 2**32 AES blocks, far from where AES-GCM wears out."""
EPOCH_AGE_S = 120.0
"""A sender leaves an epoch this long after its first packet (WireGuard's rekey interval)."""
EPOCHS_AHEAD = 8
"""How many epochs a receiver of single packets reaches ahead; docs/protocol/onion.md, "Epochs", says why not
1."""
PREVIOUS_KEYS_S = 3.0
"""How long the previous epoch's keys wait for packets that were overtaken."""
WINDOW = 8192
"""Counters that a receiver of single packets looks back: 10 MB in flight at full speed."""
DATAGRAM_FAILURES_LIMIT = 16
"""Failures that break a datagram lane. Links are authenticated: the natural rate is zero."""
STREAM_FAILURES_LIMIT = 1
"""On the stream lane nothing honest fails."""

assert SLOT_BYTES == 24
assert (FORWARD_HEADER_BYTES, BACKWARD_HEADER_BYTES) == (96, 32)
assert (FORWARD_BODY_BYTES, BACKWARD_BODY_BYTES) == (1288, 1336)
assert LINK_FRAME == 1388

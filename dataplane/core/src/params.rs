//! Sizes and limits of the onion packet; docs/protocol/onion.md, "Sizes". They are the ones of
//! circuits/params.py, which says where each comes from.

/// Bytes of one unit.
pub const UNIT: usize = 1384;
/// Bytes of a circuit id on a link.
pub const CIRCUIT_ID_BYTES: usize = 4;
/// Bytes of one QUIC DATAGRAM between neighbours: circuit id | packet.
pub const LINK_FRAME: usize = CIRCUIT_ID_BYTES + UNIT;
/// Units of the longest train.
pub const MAX_TRAIN_UNITS: usize = 48;
/// Bytes of the longest train.
pub const MAX_TRAIN_BYTES: usize = MAX_TRAIN_UNITS * UNIT;
/// Relays on the longest path.
pub const N_MAX: usize = 4;

/// Bytes of a counter in a slot.
pub const COUNTER_FIELD_BYTES: usize = 7;
/// Bytes of an AEAD tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of one hop's slot in a forward header: counter, command, tag.
pub const SLOT_BYTES: usize = COUNTER_FIELD_BYTES + 1 + TAG_BYTES;
/// Bytes of a forward header.
pub const FORWARD_HEADER_BYTES: usize = N_MAX * SLOT_BYTES;
/// Bytes of a forward header behind its first slot.
pub const REST_BYTES: usize = FORWARD_HEADER_BYTES - SLOT_BYTES;
/// Header keystream of one hop, forward: the whole header and the command.
pub const STREAM_HEADER_BYTES: usize = FORWARD_HEADER_BYTES + 1;

/// Bytes of a counter in a backward header.
pub const BACKWARD_COUNTER_BYTES: usize = 8;
/// Bytes of a backward header.
pub const BACKWARD_HEADER_BYTES: usize = N_MAX * BACKWARD_COUNTER_BYTES;
/// Bytes of a backward header that a relay keeps.
pub const BACKWARD_KEPT_BYTES: usize = BACKWARD_HEADER_BYTES - BACKWARD_COUNTER_BYTES;

/// What a forward packet adds to its body.
pub const FORWARD_OVERHEAD_BYTES: usize = FORWARD_HEADER_BYTES;
/// What a backward packet adds to its body.
pub const BACKWARD_OVERHEAD_BYTES: usize = BACKWARD_HEADER_BYTES + TAG_BYTES;

/// Bytes of every key and root.
pub const KEY_BYTES: usize = 32;
/// Counters stay below.
pub const COUNTER_LIMIT: u64 = 1 << 56;
/// A key lives for at most `1 << EPOCH_BITS` counters.
pub const EPOCH_BITS: u32 = 20;
/// Epochs stay below.
pub const EPOCH_LIMIT: u64 = COUNTER_LIMIT >> EPOCH_BITS;
/// A sender leaves an epoch this long after its first packet.
pub const EPOCH_AGE_NS: u64 = 120 * SECOND_NS;
/// How many epochs a receiver of single packets reaches ahead.
pub const EPOCHS_AHEAD: u64 = 8;
/// How long the keys of the epoch before wait for packets that were overtaken.
pub const PREVIOUS_KEYS_NS: u64 = 3 * SECOND_NS;
/// Counters that a receiver of single packets looks back.
pub const WINDOW: u64 = 8192;
/// Failures that break a datagram lane.
pub const DATAGRAM_FAILURES_LIMIT: u64 = 16;
/// Failures that break a stream lane.
pub const STREAM_FAILURES_LIMIT: u64 = 1;

/// Nanoseconds of a second.
pub const SECOND_NS: u64 = 1_000_000_000;

const _: () = assert!(SLOT_BYTES == 24 && FORWARD_HEADER_BYTES == 96 && BACKWARD_HEADER_BYTES == 32);
const _: () = assert!(UNIT - FORWARD_OVERHEAD_BYTES == 1288 && UNIT - BACKWARD_OVERHEAD_BYTES == 1336);
const _: () = assert!(LINK_FRAME == 1388);

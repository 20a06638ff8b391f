//! Credits of the stream lane: how many units each side of a circuit's end may send (docs/protocol/engine.md,
//! "Credits").

use crate::params::MAX_TRAIN_UNITS;

/// Units granted without a word.
pub const INITIAL_WINDOW_UNITS: u64 = 512;
/// Units of the largest window.
pub const MAX_WINDOW_UNITS: u64 = 4096;
/// More in flight than this, and a grant ends the circuit.
pub const MAX_GRANT_UNITS: u64 = 4 * MAX_WINDOW_UNITS;
/// Bytes of one record: circuit id, units; both big-endian.
pub const GRANT_BYTES: usize = 12;
/// The circuit id that names a stream of credits.
pub const GRANT_CIRCUIT_ID: u32 = 0;

/// What one circuit's end was granted and has granted.
#[derive(Clone, Copy, Debug)]
pub struct Credit {
    sent: u64,
    granted_out: u64,
    received: u64,
    consumed: u64,
    window: u64,
    granted_in: u64,
    last_grant_ns: u64,
}

impl Default for Credit {
    fn default() -> Credit {
        Credit {
            sent: 0,
            granted_out: INITIAL_WINDOW_UNITS,
            received: 0,
            consumed: 0,
            window: INITIAL_WINDOW_UNITS,
            granted_in: INITIAL_WINDOW_UNITS,
            last_grant_ns: 0,
        }
    }
}

/// A peer granted more than any receiver may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

impl Credit {
    /// Units that may be sent now, at most one train's.
    #[inline]
    pub fn sendable(&self) -> usize {
        self.granted_out.saturating_sub(self.sent).min(MAX_TRAIN_UNITS as u64) as usize
    }

    /// Units were sent.
    #[inline]
    pub fn send(&mut self, units: usize) {
        self.sent += units as u64;
    }

    /// The peer granted up to `units`; whether that is more than before.
    pub fn grant(&mut self, units: u64) -> Result<bool, TooMuch> {
        if units <= self.granted_out {
            return Ok(false);
        }
        if units - self.sent > MAX_GRANT_UNITS {
            return Err(TooMuch);
        }
        self.granted_out = units;
        Ok(true)
    }

    /// The peer sends `units`; false if it was not granted them.
    #[inline]
    #[must_use]
    pub fn receive(&mut self, units: usize) -> bool {
        self.received += units as u64;
        self.received <= self.granted_in
    }

    /// Units went on their way; the new total to grant, if it is time for that.
    #[inline]
    #[must_use]
    pub fn consume(&mut self, units: usize, now: u64, rtt_ns: u64, is_tight: bool) -> Option<u64> {
        self.consumed += units as u64;
        // Signed: a window that was halved may leave more granted than it would be now.
        let due = (self.consumed + self.window) as i64 - self.granted_in as i64;
        if due < (self.window >> 2) as i64 {
            return None;
        }
        if !is_tight {
            // Used up within two round trips: the window is what holds this circuit back.
            if now.saturating_sub(self.last_grant_ns).saturating_mul(2) < rtt_ns
                && self.window < MAX_WINDOW_UNITS
            {
                self.window *= 2;
            }
        } else if self.window > INITIAL_WINDOW_UNITS {
            self.window /= 2;
        }
        self.last_grant_ns = now;
        let granted = self.consumed + self.window;
        if granted <= self.granted_in {
            return None;
        }
        self.granted_in = granted;
        Some(granted)
    }
}

/// The bytes of one record.
pub fn encode_grant(circuit_id: u32, units: u64) -> [u8; GRANT_BYTES] {
    let mut record = [0; GRANT_BYTES];
    record[..4].copy_from_slice(&circuit_id.to_be_bytes());
    record[4..].copy_from_slice(&units.to_be_bytes());
    record
}

/// Reads records from a stream whose bytes come in any pieces.
#[derive(Clone, Debug, Default)]
pub struct GrantReader {
    part: [u8; GRANT_BYTES],
    filled: usize,
}

impl GrantReader {
    /// Take bytes from the front of `chunk` up to the end of the next record: (circuit id, units).
    pub fn step(&mut self, chunk: &mut &[u8]) -> Option<(u32, u64)> {
        let (taken, rest) = chunk.split_at(chunk.len().min(GRANT_BYTES - self.filled));
        self.part[self.filled..self.filled + taken.len()].copy_from_slice(taken);
        self.filled += taken.len();
        *chunk = rest;
        if self.filled < GRANT_BYTES {
            return None;
        }
        self.filled = 0;
        let (id, units) = self.part.split_first_chunk::<4>()?;
        Some((u32::from_be_bytes(*id), u64::from_be_bytes(*units.first_chunk()?)))
    }
}

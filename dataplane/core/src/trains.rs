//! Trains on a circuit's QUIC stream: `k (1) | packet (k * UNIT)`, repeated (docs/protocol/onion.md, "Trains").

use bytes::BytesMut;

use crate::params::{MAX_TRAIN_UNITS, UNIT};

/// A frame claimed 0 or more than 48 units: its stream is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadUnits(pub u8);

/// Cuts one stream's bytes into frames. Holds at most one unfinished frame.
#[derive(Default)]
pub struct TrainReader {
    frame: BytesMut,
    missing: usize,
}

/// What a reader found in its next bytes.
#[derive(Debug)]
pub enum Step {
    /// A frame of this many units begins: whoever counts credits looks now.
    Begins(usize),
    /// One whole frame, its first byte (the units) included.
    Frame(BytesMut),
    /// All was taken, and the frame is not finished.
    More,
}

impl TrainReader {
    /// Bytes of the unfinished frame.
    pub fn held_bytes(&self) -> usize {
        self.frame.len()
    }

    /// Take bytes from the front of `chunk` up to the next thing of note. `buffer` gives an empty buffer with
    /// room for a frame of so many bytes.
    pub fn step(
        &mut self,
        chunk: &mut &[u8],
        buffer: impl FnOnce(usize) -> BytesMut,
    ) -> Result<Step, BadUnits> {
        if self.missing == 0 {
            let Some((&units, rest)) = chunk.split_first() else { return Ok(Step::More) };
            if units == 0 || usize::from(units) > MAX_TRAIN_UNITS {
                return Err(BadUnits(units));
            }
            *chunk = rest;
            self.missing = usize::from(units) * UNIT;
            self.frame = buffer(self.missing + 1);
            self.frame.extend_from_slice(&[units]);
            return Ok(Step::Begins(usize::from(units)));
        }
        let (taken, rest) = chunk.split_at(chunk.len().min(self.missing));
        *chunk = rest;
        self.frame.extend_from_slice(taken);
        self.missing -= taken.len();
        Ok(if self.missing == 0 { Step::Frame(std::mem::take(&mut self.frame)) } else { Step::More })
    }
}

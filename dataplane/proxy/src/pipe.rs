//! One direction of a connection, as `overlay/socks/io/pipe.py`: what the far side does not take at once is kept (at
//! most one read), and nothing more is read until it is gone.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{send, shutdown, SendFlags, Shutdown};

/// Read at most this much at a time.
pub const BUFFER_BYTES: usize = 256 * 1024;
/// A pipe begins with reads of this size, doubles while the far side takes all, and goes back when it does not.
const FIRST_READ_BYTES: usize = 16 * 1024;
/// Reads per turn before others get theirs.
const READS_PER_TURN: usize = 2;

#[derive(PartialEq, Eq, Debug, Clone, Copy)]
pub enum Flow {
    /// Nothing more to read for now.
    Empty,
    /// The far side takes no more for now.
    Full,
    /// The turn is over; call again soon.
    More,
    /// The sender closed, everything was delivered, and the far side has been told.
    Ended,
}

pub struct Pipe {
    pending: Vec<u8>,
    start: usize,
    is_read_out: bool,
    read_bytes: usize,
    /// Everything the source sent was delivered, its end included.
    pub has_ended: bool,
    pub bytes_moved: u64,
    /// To be set when the source's sender has closed: no further event will come then.
    pub until_end: bool,
}

impl Pipe {
    pub fn new(early: Vec<u8>) -> Self {
        Self {
            bytes_moved: early.len() as u64,
            pending: early,
            start: 0,
            is_read_out: false,
            read_bytes: FIRST_READ_BYTES,
            has_ended: false,
            until_end: false,
        }
    }

    /// Whether bytes wait for the far side to take them.
    pub fn is_full(&self) -> bool {
        self.start < self.pending.len()
    }

    /// Moves what can be moved; of `buffer`, which has BUFFER_BYTES, nothing is kept. An error: a socket is broken.
    pub fn pump(&mut self, source: impl AsFd, target: impl AsFd, buffer: &mut [u8]) -> Result<Flow, Errno> {
        if self.has_ended {
            return Ok(Flow::Ended);
        }
        if self.is_full() && !self.flush(&target)? {
            return Ok(Flow::Full);
        }
        if self.is_read_out {
            return self.end(&target);
        }
        for _ in 0..READS_PER_TURN {
            let wanted = self.read_bytes;
            let size = match rustix::io::read(&source, &mut buffer[..wanted]) {
                Err(Errno::AGAIN) => return Ok(Flow::Empty),
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if size == 0 {
                self.is_read_out = true;
                return self.end(&target);
            }
            let sent = send_some(&target, &buffer[..size])?;
            self.bytes_moved += size as u64;
            if sent < size {
                self.pending = buffer[sent..size].to_vec();
                self.start = 0;
                self.read_bytes = FIRST_READ_BYTES.max(wanted / 4);
                return Ok(Flow::Full);
            }
            if size == wanted {
                self.read_bytes = (wanted * 2).min(buffer.len());
            } else if !self.until_end {
                // A short read emptied the socket: what comes later comes with an event of its own.
                return Ok(Flow::Empty);
            }
        }
        Ok(Flow::More)
    }

    fn flush(&mut self, target: impl AsFd) -> Result<bool, Errno> {
        self.start += send_some(target, &self.pending[self.start..])?;
        if self.is_full() {
            return Ok(false);
        }
        self.pending = Vec::new();
        self.start = 0;
        Ok(true)
    }

    fn end(&mut self, target: impl AsFd) -> Result<Flow, Errno> {
        self.has_ended = true;
        shutdown(target, Shutdown::Write)?;
        Ok(Flow::Ended)
    }
}

/// How much of `data` the socket takes without waiting.
pub fn send_some(target: impl AsFd, data: &[u8]) -> Result<usize, Errno> {
    loop {
        match send(&target, data, SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

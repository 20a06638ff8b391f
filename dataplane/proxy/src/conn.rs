//! One client, from its first byte to its last or until Python takes over.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::grants::GrantName;
use crate::handshake::Handshake;
use crate::pipe::Pipe;

pub struct Connecting {
    pub handshake: Handshake,
    /// Where in the handshake's bytes the connection's own begin.
    pub early_at: usize,
    pub key: Vec<u8>,
    pub grant: GrantName,
    pub port: u16,
    pub addresses: Vec<IpAddr>,
    /// The next one to try.
    pub next: usize,
    /// By the address's place.
    pub attempts: Vec<(usize, OwnedFd)>,
    pub wants_socket: bool,
    pub since: Instant,
}

pub struct Spliced {
    pub upstream: OwnedFd,
    /// The attempt it was.
    pub which: u8,
    pub grant: GrantName,
    pub up: Pipe,
    pub down: Pipe,
}

pub enum State {
    Handshake(Handshake),
    Connecting(Box<Connecting>),
    Spliced(Box<Spliced>),
}

pub struct Conn {
    /// Tells this connection from earlier ones in the same place.
    pub round: u32,
    pub client: OwnedFd,
    pub state: State,
    /// Answers sent so far.
    pub answered: usize,
    pub has_input: bool,
    pub began: Instant,
    pub last_active: Instant,
}

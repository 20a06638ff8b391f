//! Connections and the TUN as the core sees them: the `Driver`.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hopfare_core::{Driver, LinkId};
use quinn_proto::{Connection, Dir, StreamId, VarInt, WriteError};
use rustc_hash::FxHashMap;

use crate::shared::{Event, LinkCell, Name, TunFile};
use crate::tls::{DATAGRAM_COST, EARLY_STREAMS, LINK_FRAME, LINK_WINDOW, MAX_STREAMS};

/// Under this much unsent stream data a link that was asked about it is told that it has room again.
const LOW_BACKLOG_BYTES: usize = 128 * 1024;
/// What QUIC may hold beyond its congestion window: enough to fill the next bursts.
const SEND_AHEAD_BYTES: u64 = 96 * 1024;
/// Control messages that a peer does not read: then the link ends (docs/protocol/links.md, "Bounds").
const MAX_CONTROL_BACKLOG: usize = 1 << 20;
/// What QUIC takes of the control stream although circuits fill what it may hold.
const CONTROL_AHEAD_BYTES: u64 = 64 * 1024;
/// Before circuits' streams, which have 0.
const CONTROL_PRIORITY: i32 = 1;
const RELAY_STREAMS: u32 = 2048;
const CUSTOMER_STREAMS: u32 = 512;

pub const CODE_PROTOCOL: u64 = 1;
pub const CODE_FLOOD: u64 = 5;

pub struct Conn {
    pub quic: Connection,
    pub link: Name,
    pub cell: Arc<LinkCell>,
    pub is_dialler: bool,
    pub is_up: bool,
    /// Closed by us or lost: nothing of it goes up any more.
    pub is_gone: bool,
    pub is_dirty: bool,
    pub is_touched: bool,
    pub scheduled: Option<Instant>,
    pub remote: SocketAddr,
    pub control: Option<StreamId>,
    pub control_stalled: bool,
    /// Unidirectional streams that were readable before the link was up.
    pub early: Vec<StreamId>,
    pub bad_datagrams: u32,
    /// A fault was told: Python ends the link, and needs no second word.
    pub is_faulty: bool,
    /// Frames sent that ask for an acknowledgement, as of the last look.
    pub elicited: u64,
    /// Frames received, as of the last look.
    pub heard: u64,
    /// When Python was last told of a new address.
    pub moved_at: Option<Instant>,
    pub uni_limit: u32,
    out: FxHashMap<u64, VecDeque<Bytes>>,
    out_bytes: usize,
    want_room: bool,
    want_backlog: bool,
}

impl Conn {
    pub fn new(quic: Connection, link: Name, cell: Arc<LinkCell>, is_dialler: bool) -> Self {
        let remote = quic.remote_address();
        Self {
            quic,
            link,
            cell,
            is_dialler,
            is_up: false,
            is_gone: false,
            is_dirty: false,
            is_touched: false,
            scheduled: None,
            remote,
            control: None,
            control_stalled: false,
            early: Vec::new(),
            bad_datagrams: 0,
            is_faulty: false,
            elicited: 0,
            heard: 0,
            moved_at: None,
            uni_limit: EARLY_STREAMS,
            out: FxHashMap::default(),
            out_bytes: 0,
            want_room: false,
            want_backlog: false,
        }
    }

    /// This is the link's control stream: it goes before all circuits.
    pub fn set_control(&mut self, stream: StreamId) {
        self.control = Some(stream);
        let _ = self.quic.send_stream(stream).set_priority(CONTROL_PRIORITY);
    }

    /// Whether a packet of the peer's has come since the last look. Frames are counted once their packet has been
    /// opened: what anybody else sends to this connection is none.
    pub fn has_heard(&mut self) -> bool {
        let heard = frames_received(&self.quic);
        heard != std::mem::replace(&mut self.heard, heard)
    }

    /// The greeting is over: the peer may use the link's whole windows.
    pub fn come_up(&mut self, is_relay: bool) {
        self.is_up = true;
        self.quic.set_receive_window(VarInt::from_u32(LINK_WINDOW));
        self.uni_limit = if is_relay { RELAY_STREAMS } else { CUSTOMER_STREAMS };
        self.quic.set_max_concurrent_streams(Dir::Uni, VarInt::from_u32(self.uni_limit));
    }

    /// Allow more streams before the peer runs out of them.
    pub fn widen(&mut self) {
        let open = self.quic.streams().remote_open_streams(Dir::Uni);
        if self.uni_limit < MAX_STREAMS && open > u64::from(self.uni_limit / 2) {
            self.uni_limit *= 2;
            self.quic.set_max_concurrent_streams(Dir::Uni, VarInt::from_u32(self.uni_limit));
        }
    }

    fn write(&mut self, stream: StreamId, data: Bytes) {
        let key = u64::from(stream);
        if let Some(queue) = self.out.get_mut(&key) {
            self.out_bytes += data.len();
            queue.push_back(data);
            return;
        }
        self.out_bytes += data.len();
        self.out.insert(key, VecDeque::from([data]));
        self.resume(stream);
    }

    /// QUIC may take more of a stream: write until it says no, for only then it tells when it would again.
    pub fn resume(&mut self, stream: StreamId) {
        let key = u64::from(stream);
        let is_control = self.control == Some(stream);
        if is_control {
            self.set_send_window(SEND_AHEAD_BYTES + CONTROL_AHEAD_BYTES);
        }
        self.write_out(stream, key);
        if is_control {
            self.trim_send_window();
        }
    }

    /// What waits of the control stream does not wait for its turn among the circuits.
    pub fn resume_control(&mut self) {
        if let Some(stream) = self.control {
            if !self.out.is_empty() && self.out.contains_key(&u64::from(stream)) {
                self.resume(stream);
            }
        }
    }

    fn write_out(&mut self, stream: StreamId, key: u64) {
        let Some(queue) = self.out.get_mut(&key) else { return };
        while let Some(front) = queue.front_mut() {
            let before = front.len();
            match self.quic.send_stream(stream).write_chunks(std::slice::from_mut(front)) {
                Ok(_) => {
                    self.out_bytes -= before - front.len();
                    if front.is_empty() {
                        queue.pop_front();
                    }
                }
                Err(WriteError::Blocked) => return,
                // The stream has ended, and with it whatever it carried.
                Err(_) => break,
            }
        }
        self.forget_out(key);
    }

    pub fn forget_out(&mut self, stream: u64) {
        if let Some(queue) = self.out.remove(&stream) {
            self.out_bytes -= queue.iter().map(Bytes::len).sum::<usize>();
        }
    }

    /// Frees what waits to be sent; for a link that is gone.
    pub fn forget_all_out(&mut self) {
        self.out.clear();
        self.out_bytes = 0;
        self.early = Vec::new();
    }

    fn room(&mut self) -> usize {
        self.quic.datagrams().send_buffer_space() / DATAGRAM_COST
    }

    /// Whether a link that was full has room again, once.
    pub fn has_room_again(&mut self) -> bool {
        let room = self.want_room && self.room() > 0;
        let backlog = self.want_backlog && self.out_bytes < LOW_BACKLOG_BYTES;
        self.want_room &= !room;
        self.want_backlog &= !backlog;
        room || backlog
    }

    /// Keeps what QUIC holds close to what it may send: the rest waits where it can still be dropped or fairly shared.
    pub fn trim_send_window(&mut self) {
        self.set_send_window(SEND_AHEAD_BYTES);
    }

    fn set_send_window(&mut self, ahead_bytes: u64) {
        let window = self.quic.congestion_state().window();
        self.quic.set_send_window(window + ahead_bytes);
    }
}

/// Everything outside of the core that the core calls.
pub struct Net {
    pub conns: Vec<Option<Box<Conn>>>,
    pub dirty: Vec<u32>,
    pub events: Vec<Event>,
    /// Packets wait to be sent since the last flush: they go before anything is told.
    pub has_packets: bool,
    pub tun: Option<TunFile>,
    pub tun_error: Option<String>,
    /// Streams of peers that the core has had stopped in this turn.
    pub stopped: Vec<(u32, u64)>,
    random: RandomBuffer,
}

impl Net {
    pub fn new() -> Self {
        Self {
            conns: Vec::new(),
            dirty: Vec::new(),
            events: Vec::new(),
            has_packets: false,
            tun: None,
            tun_error: None,
            stopped: Vec::new(),
            random: RandomBuffer::new(),
        }
    }

    pub fn conn(&mut self, id: u32) -> Option<&mut Conn> {
        self.conns.get_mut(id as usize)?.as_deref_mut()
    }

    pub fn mark_dirty(&mut self, id: u32) {
        if let Some(conn) = self.conns.get_mut(id as usize).and_then(Option::as_deref_mut) {
            if !conn.is_dirty {
                conn.is_dirty = true;
                self.dirty.push(id);
            }
        }
    }

    /// The peer broke a rule; Python ends the link.
    pub fn fault(&mut self, id: u32, code: u64, reason: &str) {
        let Some(conn) = self.conn(id) else { return };
        if conn.is_gone || conn.is_faulty {
            return;
        }
        conn.is_faulty = true;
        let link = conn.link;
        self.events.push(Event::Fault { link, code, reason: reason.to_owned() });
    }

    pub fn send_control(&mut self, id: u32, data: Bytes) {
        let Some(conn) = self.conn(id) else { return };
        let Some(stream) = conn.control else { return };
        conn.write(stream, data);
        let waiting: usize =
            conn.out.get(&u64::from(stream)).map_or(0, |queue| queue.iter().map(Bytes::len).sum());
        self.mark_dirty(id);
        if waiting > MAX_CONTROL_BACKLOG {
            self.fault(id, CODE_FLOOD, "control messages are not being read");
        }
    }
}

fn stream_id(value: u64) -> StreamId {
    // Every id that the core knows came from QUIC.
    StreamId::from(VarInt::from_u64(value).unwrap_or(VarInt::MAX))
}

impl Driver for Net {
    fn rtt_ns(&self, link: LinkId) -> u64 {
        self.conns
            .get(link as usize)
            .and_then(Option::as_deref)
            .map_or(0, |conn| u64::try_from(conn.quic.rtt().as_nanos()).unwrap_or(u64::MAX))
    }

    fn datagram_room(&mut self, link: LinkId) -> usize {
        let Some(conn) = self.conn(link) else { return 0 };
        let room = conn.room();
        if room == 0 {
            conn.want_room = true;
        }
        room
    }

    fn send_datagram(&mut self, link: LinkId, frame: Bytes) {
        debug_assert_eq!(frame.len(), LINK_FRAME);
        self.has_packets = true;
        if let Some(conn) = self.conn(link) {
            if conn.quic.datagrams().send(frame, false).is_err() {
                conn.want_room = true;
            }
            self.mark_dirty(link);
        }
    }

    fn open_stream(&mut self, link: LinkId) -> Option<u64> {
        let stream = self.conn(link)?.quic.streams().open(Dir::Uni)?;
        Some(u64::from(stream))
    }

    fn send_stream(&mut self, link: LinkId, stream: u64, data: Bytes) {
        self.has_packets = true;
        if let Some(conn) = self.conn(link) {
            conn.write(stream_id(stream), data);
            self.mark_dirty(link);
        }
    }

    fn reset_stream(&mut self, link: LinkId, stream: u64) {
        if let Some(conn) = self.conn(link) {
            conn.forget_out(stream);
            let _ = conn.quic.send_stream(stream_id(stream)).reset(VarInt::from_u32(0));
            self.mark_dirty(link);
        }
    }

    fn stop_stream(&mut self, link: LinkId, stream: u64) {
        if let Some(conn) = self.conn(link) {
            let _ = conn.quic.recv_stream(stream_id(stream)).stop(VarInt::from_u32(0));
            self.stopped.push((link, stream));
            self.mark_dirty(link);
        }
    }

    fn stream_backlog(&mut self, link: LinkId) -> usize {
        let Some(conn) = self.conn(link) else { return 0 };
        if conn.out_bytes > LOW_BACKLOG_BYTES {
            conn.want_backlog = true;
        }
        conn.out_bytes
    }

    fn close_link(&mut self, link: LinkId, code: u64, reason: &'static str) {
        self.fault(link, code, reason);
    }

    fn tun_write(&mut self, vnet: &[u8; 10], packet: &[u8]) -> bool {
        let Some(tun) = &self.tun else { return false };
        let written = if tun.has_offload {
            rustix::io::writev(&tun.file, &[IoSlice::new(vnet), IoSlice::new(packet)])
        } else {
            rustix::io::write(&tun.file, packet)
        };
        match written {
            Ok(_) => true,
            Err(error) => {
                self.note_tun_error(error);
                false
            }
        }
    }

    fn random(&mut self, out: &mut [u8]) {
        self.random.fill(out);
    }
}

impl Net {
    /// Remember an error after which the device will never work again.
    pub fn note_tun_error(&mut self, error: rustix::io::Errno) {
        use rustix::io::Errno;
        if matches!(error, Errno::BADF | Errno::BADFD | Errno::NODEV | Errno::NXIO)
            && self.tun_error.is_none()
        {
            self.tun_error = Some(error.to_string());
        }
    }
}

/// Random bytes of aws-lc's generator, many at a time.
struct RandomBuffer {
    bytes: Box<[u8; 4096]>,
    used: usize,
}

impl RandomBuffer {
    fn new() -> Self {
        Self { bytes: Box::new([0; 4096]), used: 4096 }
    }

    fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            if self.used == self.bytes.len() {
                aws_lc_rs::rand::fill(&mut self.bytes[..]).expect("the system's random numbers are there");
                self.used = 0;
            }
            let count = out.len().min(self.bytes.len() - self.used);
            let (head, tail) = out.split_at_mut(count);
            let source = &mut self.bytes[self.used..self.used + count];
            head.copy_from_slice(source);
            // Used bytes must not be found in memory later.
            source.fill(0);
            self.used += count;
            out = tail;
        }
    }
}

fn frames_received(quic: &Connection) -> u64 {
    let frames = quic.stats().frame_rx;
    [
        frames.acks,
        frames.connection_close,
        frames.crypto,
        frames.data_blocked,
        frames.datagram,
        frames.handshake_done.into(),
        frames.max_data,
        frames.max_stream_data,
        frames.max_streams_bidi,
        frames.max_streams_uni,
        frames.new_connection_id,
        frames.path_challenge,
        frames.path_response,
        frames.ping,
        frames.reset_stream,
        frames.retire_connection_id,
        frames.stop_sending,
        frames.stream,
        frames.stream_data_blocked,
        frames.streams_blocked_bidi,
        frames.streams_blocked_uni,
    ]
    .into_iter()
    .fold(0, u64::wrapping_add)
}

/// Stores a link's figures for Python.
pub fn publish(conn: &mut Conn, now_ns: u64, received: bool) {
    let stats = conn.quic.stats();
    let cell = &conn.cell;
    cell.rtt_us.store(u64::try_from(stats.path.rtt.as_micros()).unwrap_or(0), Ordering::Relaxed);
    cell.sent.store(stats.path.sent_packets, Ordering::Relaxed);
    cell.lost.store(stats.path.lost_packets, Ordering::Relaxed);
    let frames = &stats.frame_tx;
    let elicited = frames.stream
        + frames.datagram
        + frames.ping
        + frames.crypto
        + frames.max_data
        + frames.max_stream_data
        + frames.max_streams_uni
        + frames.reset_stream
        + frames.stop_sending
        + frames.new_connection_id;
    if received {
        cell.last_receive_ns.store(now_ns, Ordering::Relaxed);
        cell.waiting_since_ns.store(0, Ordering::Relaxed);
    }
    if elicited != conn.elicited {
        conn.elicited = elicited;
        if cell.waiting_since_ns.load(Ordering::Relaxed) == 0 {
            cell.waiting_since_ns.store(now_ns, Ordering::Relaxed);
        }
    }
}

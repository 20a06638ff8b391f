//! Parts of the pure crate for Python's differential tests (tests/dataplane). Nothing else uses them.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use hopfare_core::budget::Budget;
use hopfare_core::credit;
use hopfare_core::inner;
use hopfare_core::ip;
use hopfare_core::keychain::derive_chain;
use hopfare_core::layers;
use hopfare_core::params::{BACKWARD_OVERHEAD_BYTES, FORWARD_OVERHEAD_BYTES};
use hopfare_core::policy;
use hopfare_core::queue;
use hopfare_core::segment;
use hopfare_core::suites::Suite;
use hopfare_core::trains;
use hopfare_core::vnet;
use hopfare_core::window;
use hopfare_core::{Driver, Event, InnerAddresses, LinkId, Policy, Price, Root, Rule};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Add the submodule `testing`.
pub fn add(parent: &Bound<'_, PyModule>) -> PyResult<()> {
    let module = PyModule::new(parent.py(), "testing")?;
    module.add_class::<RelayForward>()?;
    module.add_class::<RelayBackward>()?;
    module.add_class::<ExitBackward>()?;
    module.add_class::<ClientForward>()?;
    module.add_class::<ClientBackward>()?;
    module.add_class::<Window>()?;
    module.add_class::<TrainReader>()?;
    module.add_class::<CodelQueue>()?;
    module.add_class::<Credit>()?;
    module.add_class::<PolicyTable>()?;
    module.add_class::<Core>()?;
    module.add_function(wrap_pyfunction!(first_counter, &module)?)?;
    module.add_function(wrap_pyfunction!(decode_body, &module)?)?;
    module.add_function(wrap_pyfunction!(parse, &module)?)?;
    module.add_function(wrap_pyfunction!(may_write, &module)?)?;
    module.add_function(wrap_pyfunction!(to_packets, &module)?)?;
    module.add_function(wrap_pyfunction!(join, &module)?)?;
    parent.add_submodule(&module)
}

fn bad(what: &str) -> PyErr {
    PyValueError::new_err(what.to_owned())
}

fn suite(number: u8) -> PyResult<Suite> {
    Suite::from_number(number).ok_or_else(|| bad("no such suite"))
}

fn lane(number: u8) -> layers::Lane {
    if number == 1 {
        layers::Lane::Datagram
    } else {
        layers::Lane::Stream
    }
}

/// The counter before a sender's first.
#[pyfunction]
fn first_counter(root: Root, label: u8) -> u64 {
    use hopfare_core::keychain::Label;
    let labels = [Label::Forward, Label::Backward, Label::ForwardStream, Label::BackwardStream];
    derive_chain(&root, labels[usize::from(label) % 4]).1
}

/// (failures, dropped, broken)
fn figures(health: &layers::Health) -> (u64, u64, bool) {
    (health.failures, health.dropped, health.broken)
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct RelayForward(layers::RelayForward);

#[pymethods]
impl RelayForward {
    #[getter]
    fn health(&self) -> (u64, u64, bool) {
        figures(&self.0.health)
    }

    fn expire(&mut self, now: u64) {
        self.0.expire(now);
    }

    #[new]
    fn new(root: Root, suite_number: u8, lane_number: u8) -> PyResult<Self> {
        Ok(Self(layers::RelayForward::new(&root, suite(suite_number)?, lane(lane_number))))
    }

    /// (command, data) or None; `to` opens to another buffer instead of in place.
    fn open(&mut self, packet: &[u8], now: u64, to: bool) -> Option<(u8, Vec<u8>)> {
        let mut out = if to { vec![0; packet.len()] } else { packet.to_vec() };
        let opened = if to { self.0.open_to(packet, &mut out, now) } else { self.0.open(&mut out, now) };
        match opened {
            layers::Opened::Forward => Some((0, out)),
            layers::Opened::Deliver => Some((1, out.split_off(FORWARD_OVERHEAD_BYTES))),
            layers::Opened::Drop => Some((2, Vec::new())),
            layers::Opened::Refused => None,
        }
    }
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct RelayBackward(layers::RelayBackward);

#[pymethods]
impl RelayBackward {
    #[getter]
    fn health(&self) -> (u64, u64, bool) {
        figures(&self.0.health)
    }

    fn expire(&mut self, now: u64) {
        self.0.expire(now);
    }

    #[new]
    fn new(root: Root, suite_number: u8, lane_number: u8) -> PyResult<Self> {
        Ok(Self(layers::RelayBackward::new(&root, suite(suite_number)?, lane(lane_number))))
    }

    fn wrap(&mut self, packet: &[u8], now: u64, to: bool) -> Option<Vec<u8>> {
        let mut out = if to { vec![0; packet.len()] } else { packet.to_vec() };
        let wrapped = if to { self.0.wrap_to(packet, &mut out, now) } else { self.0.wrap(&mut out, now) };
        wrapped.then_some(out)
    }
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct ExitBackward(layers::ExitBackward);

#[pymethods]
impl ExitBackward {
    #[getter]
    fn health(&self) -> (u64, u64, bool) {
        figures(&self.0.health)
    }

    fn expire(&mut self, now: u64) {
        self.0.expire(now);
    }

    #[new]
    fn new(root: Root, suite_number: u8, lane_number: u8) -> PyResult<Self> {
        Ok(Self(layers::ExitBackward::new(&root, suite(suite_number)?, lane(lane_number))))
    }

    /// The header's random bytes are all `fill`.
    fn seal(&mut self, body: &[u8], now: u64, fill: u8) -> Option<Vec<u8>> {
        let mut packet = vec![0; BACKWARD_OVERHEAD_BYTES];
        packet.extend_from_slice(body);
        self.0.seal(&mut packet, now, &mut |out| out.fill(fill)).then_some(packet)
    }
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct ClientForward(layers::ClientForward);

#[pymethods]
impl ClientForward {
    #[getter]
    fn health(&self) -> (u64, u64, bool) {
        figures(&self.0.health)
    }

    fn expire(&mut self, now: u64) {
        self.0.expire(now);
    }

    #[new]
    fn new(roots: Vec<Root>, suite_number: u8, lane_number: u8) -> PyResult<Self> {
        let lanes = layers::ClientForward::new(&roots, suite(suite_number)?, lane(lane_number));
        lanes.map(Self).ok_or_else(|| bad("no such path"))
    }

    fn seal(&mut self, body: &[u8], now: u64, fill: u8, hop: Option<usize>, command: u8) -> Option<Vec<u8>> {
        let mut packet = vec![0; FORWARD_OVERHEAD_BYTES];
        packet.extend_from_slice(body);
        let command = [layers::Command::Forward, layers::Command::Deliver, layers::Command::Drop]
            [usize::from(command) % 3];
        self.0.seal(&mut packet, now, hop, command, &mut |out| out.fill(fill)).then_some(packet)
    }
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct ClientBackward(layers::ClientBackward);

#[pymethods]
impl ClientBackward {
    #[getter]
    fn health(&self) -> (u64, u64, bool) {
        figures(&self.0.health)
    }

    fn expire(&mut self, now: u64) {
        self.0.expire(now);
    }

    #[new]
    fn new(roots: Vec<Root>, suite_number: u8, lane_number: u8) -> PyResult<Self> {
        let lanes = layers::ClientBackward::new(&roots, suite(suite_number)?, lane(lane_number));
        lanes.map(Self).ok_or_else(|| bad("no such path"))
    }

    fn open(&mut self, packet: &[u8], now: u64) -> Option<Vec<u8>> {
        let mut packet = packet.to_vec();
        self.0.open(&mut packet, now).then(|| packet.split_off(BACKWARD_OVERHEAD_BYTES))
    }
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct Window(window::ReplayWindow);

#[pymethods]
impl Window {
    #[new]
    fn new(first: u64) -> Self {
        Self(window::ReplayWindow::new(first))
    }

    fn is_fresh(&self, counter: u64) -> bool {
        self.0.is_fresh(counter)
    }

    fn mark(&mut self, counter: u64) {
        self.0.mark(counter);
    }
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
#[derive(Default)]
struct TrainReader(trains::TrainReader);

#[pymethods]
impl TrainReader {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The packets that `chunk` completes; ValueError for a bad frame.
    fn feed(&mut self, mut chunk: &[u8]) -> PyResult<Vec<Vec<u8>>> {
        let mut packets = Vec::new();
        loop {
            match self.0.step(&mut chunk, BytesMut::with_capacity) {
                Err(_) => return Err(bad("bad units")),
                Ok(trains::Step::More) => return Ok(packets),
                Ok(trains::Step::Begins(_)) => {}
                Ok(trains::Step::Frame(frame)) => packets.push(frame[1..].to_vec()),
            }
        }
    }
}

/// The items of a body, or None.
#[pyfunction]
fn decode_body(body: &[u8]) -> Option<Vec<(u8, Vec<u8>)>> {
    let items = inner::decode_body(body).ok()?;
    Some(items.map(|item| (item.kind as u8, item.data.to_vec())).collect())
}

type Parsed = (u8, u8, Vec<u8>, Vec<u8>, u16, i32, u8, usize, bool);

/// A packet's fields in the order of `exit.packets.Packet`, or None.
#[pyfunction]
fn parse(raw: &[u8]) -> Option<Parsed> {
    let packet = ip::parse(raw)?;
    Some((
        if packet.is_v4() { 4 } else { 6 },
        packet.protocol,
        packet.source.bytes().to_vec(),
        packet.destination.bytes().to_vec(),
        packet.source_port,
        packet.destination_port.map_or(-1, i32::from),
        packet.detail,
        packet.transport,
        packet.is_fragment,
    ))
}

/// Whether a virtio_net_hdr and its packet may be written to a TUN.
#[pyfunction]
fn may_write(raw: &[u8]) -> bool {
    let Some((header, packet)) = raw.split_first_chunk() else { return false };
    ip::parse(packet).is_some_and(|parsed| vnet::is_valid(&vnet::Header::decode(header), packet, &parsed))
}

/// The packets that a virtio_net_hdr and its packet stand for.
#[pyfunction]
fn to_packets(raw: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    if let Some((header, packet)) = raw.split_first_chunk() {
        let header = vnet::Header::decode(header);
        segment::to_packets(&header, packet, &mut Vec::new(), &mut |packet| out.push(packet.to_vec()));
    }
    out
}

/// What is written to a TUN for a batch of packets; each behind its virtio_net_hdr.
#[pyfunction]
fn join(raws: Vec<Vec<u8>>, tcp: bool, udp: bool) -> Vec<Vec<u8>> {
    let mut coalescer = hopfare_core::coalesce::Coalescer::default();
    (coalescer.tcp, coalescer.udp) = (tcp, udp);
    let mut written = Vec::new();
    let out = &mut |header: &[u8; 10], packet: &[u8]| written.push([&header[..], packet].concat());
    for raw in &raws {
        if let Some((header, packet)) = raw.split_first_chunk() {
            coalescer.offer(header, packet, out);
        }
    }
    coalescer.flush(out);
    written
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct CodelQueue {
    queue: queue::CodelQueue<(u64, usize)>,
    budget: Budget,
}

#[pymethods]
impl CodelQueue {
    #[new]
    fn new(limit_bytes: usize, memory_bytes: usize) -> Self {
        Self { queue: queue::CodelQueue::new(limit_bytes), budget: Budget::new(memory_bytes) }
    }

    fn push(&mut self, item: u64, bytes: usize, now: u64) -> bool {
        self.queue.push((item, bytes), bytes, now, &mut self.budget)
    }

    fn pop(&mut self, now: u64) -> Option<u64> {
        self.queue.pop(now, &mut self.budget).map(|(item, _)| item)
    }

    /// (bytes, bytes at the head, dropped, bytes of the budget)
    fn state(&self) -> (usize, usize, u64, usize) {
        (self.queue.bytes(), self.queue.peek_bytes(), self.queue.dropped, self.budget.used_bytes())
    }
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
#[derive(Default)]
struct Credit(credit::Credit);

#[pymethods]
impl Credit {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn consume(&mut self, units: usize, now: u64, rtt_ns: u64, is_tight: bool) -> Option<u64> {
        self.0.consume(units, now, rtt_ns, is_tight)
    }

    fn receive(&mut self, units: usize) -> bool {
        self.0.receive(units)
    }

    /// None: the grant is a fault.
    fn grant(&mut self, units: u64) -> Option<bool> {
        self.0.grant(units).ok()
    }

    fn send(&mut self, units: usize) {
        self.0.send(units);
    }

    fn sendable(&self) -> usize {
        self.0.sendable()
    }
}

type RuleTuple = (bool, u128, u128, u16, u16);

/// deny4, deny6, rules4, rules6, has_ipv6, local addresses, dns4, dns6
type PolicyTuple = (
    Vec<(u32, u32)>,
    Vec<(u128, u128)>,
    Vec<RuleTuple>,
    Vec<RuleTuple>,
    bool,
    Vec<std::net::IpAddr>,
    [u8; 4],
    [u8; 16],
);

fn policy_of((deny4, deny6, rules4, rules6, has_ipv6, local, dns4, dns6): PolicyTuple) -> Policy {
    let rules = |rules: Vec<RuleTuple>| {
        let rule =
            |(accept, network, mask, min_port, max_port)| Rule { accept, network, mask, min_port, max_port };
        rules.into_iter().map(rule).collect()
    };
    Policy { deny4, deny6, rules4: rules(rules4), rules6: rules(rules6), has_ipv6, local, dns4, dns6 }
}

#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct PolicyTable(policy::PolicyTable);

#[pymethods]
impl PolicyTable {
    #[new]
    fn new(policy: PolicyTuple) -> Self {
        Self(policy::PolicyTable::new(policy_of(policy)))
    }

    /// The verdict about a whole packet, or None if it is malformed: 0 accept, 1 address, 2 port, 3 protocol,
    /// 4 no IPv6.
    fn verdict(&mut self, raw: &[u8]) -> Option<u8> {
        Some(self.0.verdict(&ip::parse(raw)?) as u8)
    }
}

/// Records what the core wants of the outside.
struct Recorder {
    sent: Vec<(String, LinkId, u64, Vec<u8>)>,
    rooms: HashMap<LinkId, usize>,
    backlogs: HashMap<LinkId, usize>,
    rtt_ns: u64,
    /// By link: its sides number their streams apart.
    next_streams: HashMap<LinkId, u64>,
    fill: u8,
}

impl Recorder {
    fn record(&mut self, what: &str, link: LinkId, number: u64, data: &[u8]) {
        self.sent.push((what.to_owned(), link, number, data.to_vec()));
    }
}

impl Driver for Recorder {
    fn rtt_ns(&self, _: LinkId) -> u64 {
        self.rtt_ns
    }

    fn datagram_room(&mut self, link: LinkId) -> usize {
        self.rooms.get(&link).copied().unwrap_or(64)
    }

    fn send_datagram(&mut self, link: LinkId, frame: Bytes) {
        self.record("datagram", link, 0, &frame);
    }

    fn open_stream(&mut self, link: LinkId) -> Option<u64> {
        let next = self.next_streams.entry(link).or_insert(2);
        let stream = *next;
        *next += 4;
        Some(stream)
    }

    fn send_stream(&mut self, link: LinkId, stream: u64, data: Bytes) {
        self.record("stream", link, stream, &data);
    }

    fn reset_stream(&mut self, link: LinkId, stream: u64) {
        self.record("reset", link, stream, &[]);
    }

    fn stop_stream(&mut self, link: LinkId, stream: u64) {
        self.record("stop", link, stream, &[]);
    }

    fn stream_backlog(&mut self, link: LinkId) -> usize {
        self.backlogs.get(&link).copied().unwrap_or(0)
    }

    fn close_link(&mut self, link: LinkId, code: u64, reason: &'static str) {
        self.record("close", link, code, reason.as_bytes());
    }

    fn tun_write(&mut self, header: &[u8; 10], packet: &[u8]) -> bool {
        self.record("tun", 0, 0, &[header, packet].concat());
        true
    }

    fn random(&mut self, out: &mut [u8]) {
        out.fill(self.fill);
    }
}

/// A core whose outputs are kept until `take_sent`.
#[pyclass(unsendable, module = "hopfare_dataplane.testing")]
struct Core {
    core: hopfare_core::Core,
    out: Recorder,
}

type Addresses = ([u8; 4], Option<[u8; 16]>);

fn failed(error: hopfare_core::AddError) -> PyErr {
    bad(&format!("{error:?}"))
}

fn inner_addresses((v4, v6): Addresses) -> InnerAddresses {
    InnerAddresses { v4, v6 }
}

#[pymethods]
impl Core {
    #[new]
    fn new(memory_bytes: usize, rtt_ns: u64, fill: u8) -> Self {
        let out = Recorder {
            sent: Vec::new(),
            rooms: HashMap::new(),
            backlogs: HashMap::new(),
            rtt_ns,
            next_streams: HashMap::new(),
            fill,
        };
        Self { core: hopfare_core::Core::new(memory_bytes), out }
    }

    /// What the core sent since the last call: (what, link, stream or code, bytes).
    fn take_sent(&mut self) -> Vec<(String, LinkId, u64, Vec<u8>)> {
        std::mem::take(&mut self.out.sent)
    }

    fn set_room(&mut self, link: LinkId, frames: usize, backlog_bytes: usize) {
        self.out.rooms.insert(link, frames);
        self.out.backlogs.insert(link, backlog_bytes);
    }

    fn attach_tun(&mut self, has_offload: bool, by_source: bool) {
        self.core.attach_tun(has_offload, by_source);
    }

    fn join_packets(&mut self, tcp: bool, udp: bool) {
        self.core.join_packets(tcp, udp);
    }

    fn set_policy(&mut self, policy: PolicyTuple) {
        self.core.set_policy(policy_of(policy));
    }

    fn link_up(&mut self, link: LinkId, first_stream: u64) {
        self.out.next_streams.insert(link, first_stream);
        self.core.link_up(link);
    }

    fn link_down(&mut self, link: LinkId) {
        self.core.link_down(link, &mut self.out);
    }

    fn new_meter(&mut self, credit: Option<u128>, low: u128) -> u32 {
        self.core.new_meter(credit, low)
    }

    fn add_credit(&mut self, meter: u32, wei: u128) {
        self.core.add_credit(meter, wei);
    }

    /// (credit, charged, packets, refused packets)
    fn meter(&self, meter: u32) -> Option<(Option<u128>, u128, u64, u64)> {
        let meter = self.core.meter(meter)?;
        Some((meter.credit, meter.charged, meter.packets, meter.refused_packets))
    }

    #[allow(clippy::too_many_arguments)] // the two sides of a circuit
    fn relay(
        &mut self,
        root: Root,
        suite: u8,
        link_in: LinkId,
        id_in: u32,
        price_in: (u32, u128),
        link_out: LinkId,
        id_out: u32,
        price_out: (u32, u128),
    ) -> PyResult<u64> {
        let price = |(meter, wei)| Price { meter, wei };
        self.core
            .relay(&root, suite, link_in, id_in, price(price_in), link_out, id_out, price(price_out))
            .map_err(failed)
    }

    fn exit(
        &mut self,
        root: Root,
        suite: u8,
        link: LinkId,
        id: u32,
        price: (u32, u128),
        addresses: Addresses,
    ) -> PyResult<u64> {
        let price = Price { meter: price.0, wei: price.1 };
        self.core.exit(&root, suite, link, id, price, inner_addresses(addresses)).map_err(failed)
    }

    fn client(
        &mut self,
        roots: Vec<Root>,
        suite: u8,
        link: LinkId,
        id: u32,
        price: (u32, u128),
        addresses: Addresses,
    ) -> PyResult<u64> {
        let price = Price { meter: price.0, wei: price.1 };
        self.core.client(&roots, suite, link, id, price, inner_addresses(addresses)).map_err(failed)
    }

    fn echo(&mut self, flow: u64, token: [u8; 8], now: u64) {
        self.core.echo(flow, token, now, &mut self.out);
    }

    /// Streams of a link that are remembered: the peer's, its own.
    fn stream_counts(&self, link: LinkId) -> (usize, usize) {
        self.core.stream_counts(link)
    }

    fn unknown_packets(&self) -> u64 {
        self.core.unknown_packets()
    }

    fn flow_count(&self) -> usize {
        self.core.flow_count()
    }

    fn drop_flow(&mut self, flow: u64) {
        self.core.drop_flow(flow, &mut self.out);
    }

    fn wake(&mut self, flow: u64, now: u64) {
        self.core.wake(flow, now, &mut self.out);
    }

    fn on_datagrams(&mut self, link: LinkId, frames: Vec<Vec<u8>>, now: u64) {
        let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
        self.core.on_datagrams(link, &frames, now, &mut self.out);
    }

    fn on_stream(&mut self, link: LinkId, stream: u64, chunk: &[u8], fin: bool, now: u64) {
        self.core.on_stream(link, stream, chunk, fin, now, &mut self.out);
    }

    fn on_stream_reset(&mut self, link: LinkId, stream: u64) {
        self.core.on_stream_reset(link, stream, &mut self.out);
    }

    fn on_writable(&mut self, link: LinkId, now: u64) {
        self.core.on_writable(link, now, &mut self.out);
    }

    fn on_tun(&mut self, raw: &[u8], now: u64) {
        self.core.on_tun(raw, now);
    }

    fn pump(&mut self, now: u64) {
        self.core.pump(now, &mut self.out);
    }

    fn expire(&mut self, now: u64) {
        self.core.expire(now);
    }

    fn used_bytes(&self) -> usize {
        self.core.used_bytes()
    }

    /// Forward and backward: packets, failures, dropped.
    fn counters(&self, flow: u64) -> Option<[u64; 6]> {
        let counters = self.core.counters(flow)?;
        let (a, b) = (counters.forward, counters.backward);
        Some([a.packets, a.failures, a.dropped, b.packets, b.failures, b.dropped])
    }

    /// (malformed, spoofed, refused)
    fn gate_counters(&self) -> (u64, u64, u64) {
        let gate = self.core.gate_counters();
        (gate.malformed, gate.spoofed, gate.refused)
    }

    /// ("lost", flow, fault, b"") | ("echo", flow, 0, token) | ("low", meter, 0, b"")
    fn take_events(&mut self) -> Vec<(String, u64, u8, Vec<u8>)> {
        let mut events = Vec::new();
        self.core.take_events(&mut events);
        let tell = |event| match event {
            Event::FlowLost { flow, fault, .. } => ("lost".to_owned(), flow, fault as u8, Vec::new()),
            Event::EchoReply { flow, token } => ("echo".to_owned(), flow, 0, token.to_vec()),
            Event::MeterLow { meter } => ("low".to_owned(), u64::from(meter), 0, Vec::new()),
        };
        events.into_iter().map(tell).collect()
    }
}

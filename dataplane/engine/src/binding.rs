//! What Python sees: one `Engine` class and the cells that hold figures.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use hopfare_core::budget::Pool;
use hopfare_core::{Core, InnerAddresses, Policy, Rule};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::IntoPyObjectExt;

use crate::data::{DataThread, Peers};
use crate::handover::connect;
use crate::router::{Divided, Router, MAX_SHARDS};
use crate::shared::{
    Command, Event, FlowCell, FlowKind, LinkCell, MeterCell, Name, NamedPrice, Shared, Totals, TunFile,
};
use crate::steer::Steer;
use crate::tls::settings;

/// Counts changes of this interface: Python refuses a crate that was built for another.
pub const INTERFACE: u32 = 3;

#[pyclass(name = "LinkCell", frozen)]
#[derive(Default)]
pub struct PyLinkCell(Arc<LinkCell>);

#[pymethods]
impl PyLinkCell {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Smoothed round trip in seconds.
    #[getter]
    fn rtt_s(&self) -> f64 {
        load(&self.0.rtt_us) as f64 / 1e6
    }

    /// (nanoseconds of the last receipt, since when data waits for an answer or 0, packets sent, packets lost).
    fn figures(&self) -> (u64, u64, u64, u64) {
        (
            load(&self.0.last_receive_ns),
            load(&self.0.waiting_since_ns),
            load(&self.0.sent),
            load(&self.0.lost),
        )
    }

    #[getter]
    fn dropped_datagrams(&self) -> u64 {
        load(&self.0.dropped_datagrams)
    }
}

#[pyclass(name = "FlowCell", frozen)]
#[derive(Default)]
pub struct PyFlowCell(Arc<FlowCell>);

#[pymethods]
impl PyFlowCell {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Packets, failures and dropped forward, then backward.
    fn figures(&self) -> [u64; 6] {
        std::array::from_fn(|at| load(&self.0 .0[at]))
    }
}

#[pyclass(name = "MeterCell", frozen)]
#[derive(Default)]
pub struct PyMeterCell(Arc<MeterCell>);

#[pymethods]
impl PyMeterCell {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// (credit or None, charged, packets, refused packets) as of the last batch.
    fn figures(&self) -> (Option<u128>, u128, u64, u64) {
        let (credit, charged) = self.0.read();
        (credit, charged.wei, charged.packets, charged.refused_packets)
    }
}

fn load(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

/// A price as (meter, wei per packet).
type PyPrice = (Name, u128);
/// Inner addresses as (IPv4, IPv6 or None), packed.
type PyAddresses = (Vec<u8>, Option<Vec<u8>>);
/// (accept, network, mask, first port, last port)
type PyRule = (bool, u128, u128, u16, u16);
/// (IP version, first, last)
type PyRange = (u8, u128, u128);

fn price(value: PyPrice) -> NamedPrice {
    NamedPrice { meter: value.0, wei: value.1 }
}

fn fixed<const N: usize>(value: &[u8]) -> PyResult<[u8; N]> {
    value.try_into().map_err(|_| PyValueError::new_err(format!("{N} bytes are needed, not {}", value.len())))
}

fn addresses(value: PyAddresses) -> PyResult<InnerAddresses> {
    let v6 = match value.1 {
        Some(v6) => Some(fixed(&v6)?),
        None => None,
    };
    Ok(InnerAddresses { v4: fixed(&value.0)?, v6 })
}

fn socket_address(host: &str, port: u16) -> PyResult<SocketAddr> {
    let ip: IpAddr =
        host.parse().map_err(|_| PyValueError::new_err(format!("{host} is not a numeric address")))?;
    Ok(SocketAddr::new(ip, port))
}

fn packed_address(packed: &[u8]) -> PyResult<IpAddr> {
    if packed.len() == 4 {
        Ok(IpAddr::from(fixed::<4>(packed)?))
    } else {
        Ok(IpAddr::from(fixed::<16>(packed)?))
    }
}

fn rule(value: PyRule) -> Rule {
    Rule { accept: value.0, network: value.1, mask: value.2, min_port: value.3, max_port: value.4 }
}

/// A descriptor of our own for a file that Python has open.
fn duplicate(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("the descriptor is closed"));
    }
    // SAFETY: borrowed for this call only, in which Python holds the file open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3).map_err(|error| PyOSError::new_err(error.to_string()))
}

/// The data threads and the queues to and from them. All methods but `stop` return at once.
#[pyclass(frozen)]
pub struct Engine {
    shared: Arc<Shared>,
    memory_limit_bytes: usize,
    epoch: Instant,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Where there are several threads.
    router: Option<Mutex<Router>>,
}

impl Engine {
    fn route(&self, command: Command) -> Result<(), Divided> {
        match &self.router {
            None => self.shared.send(0, command),
            Some(router) => {
                router.lock().unwrap_or_else(PoisonError::into_inner).route(&self.shared, command)?;
            }
        }
        Ok(())
    }

    fn send(&self, command: Command) {
        // Only new flows are ever refused, and they come by `add_flow`.
        let _ = self.route(command);
    }

    fn add_flow(&self, flow: Name, suite: u8, kind: FlowKind, cell: &PyFlowCell) -> PyResult<()> {
        let command = Command::AddFlow { flow, suite, kind: Box::new(kind), cell: cell.0.clone() };
        self.route(command).map_err(|Divided| {
            PyValueError::new_err(
                "a meter with a limit is charged for links of one engine thread only: this circuit's are on another",
            )
        })
    }

    fn total(&self, figure: impl Fn(&Totals) -> &AtomicU64) -> u64 {
        self.shared.inboxes.iter().map(|inbox| load(figure(&inbox.totals))).sum()
    }
}

#[pymethods]
impl Engine {
    /// Raises ValueError for a number of threads that is not 1 to 64, OSError without descriptors for them.
    #[new]
    #[pyo3(signature = (memory_limit_bytes, threads = 1))]
    fn new(memory_limit_bytes: usize, threads: usize) -> PyResult<Self> {
        if !(1..=MAX_SHARDS).contains(&threads) {
            return Err(PyValueError::new_err(format!("1 to {MAX_SHARDS} threads, not {threads}")));
        }
        Ok(Self {
            shared: Arc::new(Shared::new(threads)?),
            memory_limit_bytes,
            epoch: Instant::now(),
            threads: Mutex::new(Vec::new()),
            router: (threads > 1).then(|| Mutex::new(Router::new(threads))),
        })
    }

    /// Begin to drive bound UDP sockets: for each thread those of its own. `steer` is the factor of the sum by which
    /// the kernel gives datagrams to them (overlay/links/io/udp.py). A certificate and its PKCS #8 key, both DER, make the endpoint accept links.
    /// Raises RuntimeError when it runs already or the certificate is not usable, OSError for a socket that is not.
    #[pyo3(signature = (sockets, certificate, alpn, idle_timeout_s, controller, steer = 1))]
    fn start(
        &self,
        sockets: Vec<Vec<RawFd>>,
        certificate: Option<(Vec<u8>, Vec<u8>)>,
        alpn: &str,
        idle_timeout_s: f64,
        controller: &str,
        steer: u32,
    ) -> PyResult<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if !threads.is_empty() {
            return Err(PyRuntimeError::new_err("the engine runs already"));
        }
        let settings =
            settings(certificate, alpn, idle_timeout_s, controller).map_err(PyRuntimeError::new_err)?;
        let shards = self.shared.inboxes.len();
        if sockets.len() != shards {
            return Err(PyValueError::new_err(format!("sockets for {shards} threads are needed")));
        }
        let steer = Steer::new(steer, shards);
        let pool = Arc::new(Pool::new(shards));
        let mut data = Vec::new();
        for (handover, fds) in connect(shards).into_iter().zip(sockets) {
            let shard = handover.shard();
            let sockets = fds
                .into_iter()
                .map(|fd| Ok(UdpSocket::from(duplicate(fd)?)))
                .collect::<PyResult<Vec<_>>>()?;
            let limit = self.memory_limit_bytes;
            let (settings, core, peers) = if shards == 1 {
                (settings.clone(), Core::new(limit), None)
            } else {
                let core = Core::sharded(limit, pool.clone(), shard, shards);
                (settings.of_shard(steer, shard), core, Some(Peers::new(handover, steer)))
            };
            data.push(DataThread::new(self.shared.clone(), settings, sockets, core, peers, self.epoch)?);
        }
        for (shard, mut data) in data.into_iter().enumerate() {
            let shared = self.shared.clone();
            let run = move || {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| data.run())) {
                    let reason = panic
                        .downcast_ref::<&str>()
                        .map(|text| (*text).to_owned())
                        .or_else(|| panic.downcast_ref::<String>().cloned())
                        .unwrap_or_else(|| "of unknown kind".to_owned());
                    shared.post(&mut vec![Event::Died { reason }]);
                }
            };
            let name = if shard == 0 { "hopfare-data".to_owned() } else { format!("hopfare-data{shard}") };
            let started = std::thread::Builder::new().name(name).spawn(run);
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Those that run must not go on without the others.
                    self.send(Command::Stop);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Send what is closing and end the threads. Harmless when they do not run.
    fn stop(&self, py: Python<'_>) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if !threads.is_empty() {
            self.send(Command::Stop);
            py.detach(|| {
                for thread in threads {
                    let _ = thread.join();
                }
            });
        }
    }

    /// Readable when events wait.
    fn event_fd(&self) -> RawFd {
        self.shared.event_fd().as_raw_fd()
    }

    /// The engine's clock, which the cells' times are of.
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64 + 1
    }

    /// All events that wait, oldest first, as tuples that begin with their kind.
    fn take_events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let events = self.shared.take_events();
        if let Some(router) = &self.router {
            let mut router = router.lock().unwrap_or_else(PoisonError::into_inner);
            for event in &events {
                if let Event::FlowLost { flow, .. } = event {
                    router.forget_flow(&self.shared, *flow);
                }
            }
        }
        events.into_iter().map(|event| self.event(py, event)).collect()
    }

    fn dial(&self, link: Name, host: &str, port: u16, cell: &PyLinkCell) -> PyResult<()> {
        let remote = socket_address(host, port)?;
        self.send(Command::Dial { link, remote, cell: cell.0.clone() });
        Ok(())
    }

    fn probe(&self, link: Name, host: &str, port: u16) -> PyResult<()> {
        let remote = socket_address(host, port)?;
        self.send(Command::Probe { link, remote });
        Ok(())
    }

    fn accept(&self, incoming: Name, link: Name, cell: &PyLinkCell) {
        self.send(Command::Accept { incoming, link, cell: cell.0.clone() });
    }

    fn retry(&self, incoming: Name) {
        self.send(Command::Retry { incoming });
    }

    fn ignore(&self, incoming: Name) {
        self.send(Command::Ignore { incoming });
    }

    fn control(&self, link: Name, data: &[u8]) {
        self.send(Command::Control { link, data: Bytes::copy_from_slice(data) });
    }

    fn up(&self, link: Name, is_relay: bool) {
        self.send(Command::Up { link, is_relay });
    }

    fn close(&self, link: Name, code: u64, reason: String, tell_peer: bool) {
        self.send(Command::Close { link, code, reason, tell_peer });
    }

    #[allow(clippy::too_many_arguments)] // the engine interface's own
    fn relay(
        &self,
        flow: Name,
        root: &[u8],
        suite: u8,
        link_in: Name,
        id_in: u32,
        price_in: PyPrice,
        link_out: Name,
        id_out: u32,
        price_out: PyPrice,
        cell: &PyFlowCell,
    ) -> PyResult<()> {
        let kind = FlowKind::Relay {
            root: fixed(root)?,
            link_in,
            id_in,
            price_in: price(price_in),
            link_out,
            id_out,
            price_out: price(price_out),
            across: None,
        };
        self.add_flow(flow, suite, kind, cell)
    }

    #[allow(clippy::too_many_arguments)]
    fn exit(
        &self,
        flow: Name,
        root: &[u8],
        suite: u8,
        link: Name,
        id: u32,
        price_in: PyPrice,
        inner: PyAddresses,
        cell: &PyFlowCell,
    ) -> PyResult<()> {
        let kind = FlowKind::Exit {
            root: fixed(root)?,
            link,
            id,
            price: price(price_in),
            addresses: addresses(inner)?,
        };
        self.add_flow(flow, suite, kind, cell)
    }

    #[allow(clippy::too_many_arguments)]
    fn client(
        &self,
        flow: Name,
        roots: Vec<Vec<u8>>,
        suite: u8,
        link: Name,
        id: u32,
        price_in: PyPrice,
        inner: PyAddresses,
        cell: &PyFlowCell,
    ) -> PyResult<()> {
        let roots = roots.iter().map(|root| fixed(root)).collect::<PyResult<Vec<_>>>()?;
        let kind = FlowKind::Client { roots, link, id, price: price(price_in), addresses: addresses(inner)? };
        self.add_flow(flow, suite, kind, cell)
    }

    fn drop_flow(&self, flow: Name) {
        self.send(Command::DropFlow { flow });
    }

    fn echo(&self, flow: Name, token: &[u8]) -> PyResult<()> {
        let token = fixed(token)?;
        self.send(Command::Echo { flow, token });
        Ok(())
    }

    #[pyo3(signature = (meter, credit, low, cell))]
    fn new_meter(&self, meter: Name, credit: Option<u128>, low: u128, cell: &PyMeterCell) {
        if let Some(credit) = credit {
            cell.0.settle(0, credit);
        }
        self.send(Command::NewMeter { meter, credit, low, cell: cell.0.clone() });
    }

    fn free_meter(&self, meter: Name) {
        self.send(Command::FreeMeter { meter });
    }

    fn add_credit(&self, meter: Name, wei: u128, flows: Vec<Name>) {
        self.send(Command::AddCredit { meter, wei, flows });
    }

    fn watch_meter(&self, meter: Name, on: bool) {
        self.send(Command::WatchMeter { meter, on });
    }

    fn set_low(&self, meter: Name, wei: u128) {
        self.send(Command::SetLow { meter, wei });
    }

    fn attach_tun(
        &self,
        fd: RawFd,
        has_offload: bool,
        has_uso: bool,
        by_source: bool,
        may_rest: bool,
    ) -> PyResult<()> {
        for shard in 0..self.shared.inboxes.len() {
            let file = duplicate(fd)?;
            let tun = TunFile { file, has_offload, has_uso, by_source, is_read: shard == 0, may_rest };
            self.shared.send(shard, Command::AttachTun(tun));
        }
        Ok(())
    }

    /// The exit's rules: see `exit.policy`. `local` and `dns` are packed addresses, `deny` is sorted by version.
    #[pyo3(signature = (has_ipv6, local, deny, rules4, rules6, dns4, dns6))]
    #[allow(clippy::too_many_arguments)]
    fn set_policy(
        &self,
        has_ipv6: bool,
        local: Vec<Vec<u8>>,
        deny: Vec<PyRange>,
        rules4: Vec<PyRule>,
        rules6: Vec<PyRule>,
        dns4: &[u8],
        dns6: &[u8],
    ) -> PyResult<()> {
        let policy = Policy {
            has_ipv6,
            local: local.iter().map(|packed| packed_address(packed)).collect::<PyResult<_>>()?,
            deny4: deny
                .iter()
                .filter(|range| range.0 == 4)
                .map(|range| (range.1 as u32, range.2 as u32))
                .collect(),
            deny6: deny.iter().filter(|range| range.0 == 6).map(|range| (range.1, range.2)).collect(),
            rules4: rules4.into_iter().map(rule).collect(),
            rules6: rules6.into_iter().map(rule).collect(),
            dns4: fixed(dns4)?,
            dns6: fixed(dns6)?,
        };
        self.send(Command::SetPolicy(Box::new(policy)));
        Ok(())
    }

    fn expire(&self) {
        self.send(Command::Expire);
    }

    /// Have a data thread fail: for the test that the node then ends.
    #[pyo3(signature = (thread = 0))]
    fn fail(&self, thread: usize) -> PyResult<()> {
        if thread >= self.shared.inboxes.len() {
            return Err(PyValueError::new_err("no such thread"));
        }
        self.shared.send(thread, Command::Fail);
        Ok(())
    }

    /// The thread that has a link; None when it is gone.
    fn thread_of(&self, link: Name) -> Option<usize> {
        match &self.router {
            None => Some(0),
            Some(router) => router.lock().unwrap_or_else(PoisonError::into_inner).link_shard(link),
        }
    }

    /// Of each thread: turns of its loop, messages from other threads, datagrams of other threads' links.
    fn thread_figures(&self) -> Vec<(u64, u64, u64)> {
        let figures = |totals: &Totals| (load(&totals.loops), load(&totals.crossed), load(&totals.strayed));
        self.shared.inboxes.iter().map(|inbox| figures(&inbox.totals)).collect()
    }

    #[getter]
    fn used_bytes(&self) -> u64 {
        self.total(|totals| &totals.used_bytes)
    }

    /// What control messages hold that Python has not taken.
    #[getter]
    fn waiting_control(&self) -> usize {
        self.shared.waiting_control.load(Ordering::Relaxed)
    }

    #[getter]
    fn unknown_packets(&self) -> u64 {
        self.total(|totals| &totals.unknown_packets)
    }

    /// Malformed, spoofed and refused inner packets of all exit flows.
    fn gate_figures(&self) -> [u64; 3] {
        std::array::from_fn(|at| self.total(|totals| &totals.gate[at]))
    }

    /// (turns of the loop, receiving system calls, failed sends, packets of no connection, handshakes dropped).
    fn figures(&self) -> [u64; 5] {
        [
            self.total(|totals| &totals.loops),
            self.total(|totals| &totals.receives),
            self.total(|totals| &totals.send_failures),
            self.total(|totals| &totals.unknown_quic),
            self.total(|totals| &totals.dropped_handshakes),
        ]
    }
}

impl Engine {
    fn event<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyAny>> {
        match event {
            Event::Incoming { incoming, remote, validated } => {
                ("incoming", incoming, remote.ip().to_string(), remote.port(), validated)
                    .into_bound_py_any(py)
            }
            Event::Connected { link, certificate } => {
                let certificate = certificate.map(|der| PyBytes::new(py, &der));
                ("connected", link, certificate).into_bound_py_any(py)
            }
            Event::Control { link, data, cell } => {
                self.shared.release_control(&cell, data.len());
                ("control", link, PyBytes::new(py, &data)).into_bound_py_any(py)
            }
            Event::Ended { link, by_peer, code, reason } => {
                ("ended", link, by_peer, code, reason).into_bound_py_any(py)
            }
            Event::Fault { link, code, reason } => ("fault", link, code, reason).into_bound_py_any(py),
            Event::Moved { link, remote } => {
                ("moved", link, remote.ip().to_string(), remote.port()).into_bound_py_any(py)
            }
            Event::ProbeAnswered { link, size } => ("probe", link, size).into_bound_py_any(py),
            Event::FlowLost { flow, fault } => ("flow lost", flow, fault).into_bound_py_any(py),
            Event::EchoReply { flow, token } => {
                self.shared.waiting_echoes.fetch_sub(1, Ordering::Relaxed);
                ("echo", flow, PyBytes::new(py, &token)).into_bound_py_any(py)
            }
            Event::MeterLow { meter } => ("meter low", meter).into_bound_py_any(py),
            Event::TunGone { reason } => ("tun gone", reason).into_bound_py_any(py),
            Event::Died { reason } => ("died", reason).into_bound_py_any(py),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Python's own `stop` has waited for the thread; one that was forgotten ends by itself.
        self.send(Command::Stop);
    }
}

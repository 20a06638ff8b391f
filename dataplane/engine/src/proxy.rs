//! What Python sees of the proxy's thread (crate `hopfare_proxy`): one `Proxy` class and the cells of grants.
//! `overlay/socks/io/native.py` is its other half.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hopfare_proxy::handshake::{Handshake, Host, Step};
use hopfare_proxy::{Command, Event, Family, GrantCell, GrantName, HandOver, Limits, ProxyThread, Shared};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::IntoPyObjectExt;

/// Counts changes of this part's interface, as `INTERFACE` does for the engine's.
const PROXY_INTERFACE: u32 = 1;
/// Tried of one name, as in `overlay.socks.names`.
const MAX_ADDRESSES: usize = 8;

#[pyclass(name = "GrantCell", frozen)]
#[derive(Default)]
pub struct PyGrantCell(Arc<GrantCell>);

#[pymethods]
impl PyGrantCell {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// (connections now, requests ever).
    fn figures(&self) -> (u32, u64) {
        (self.0.connections.load(Ordering::Relaxed), self.0.used.load(Ordering::Relaxed))
    }
}

fn address(packed: &[u8]) -> PyResult<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(packed) {
        Ok(IpAddr::from(v4))
    } else if let Ok(v6) = <[u8; 16]>::try_from(packed) {
        Ok(IpAddr::from(v6))
    } else {
        Err(PyValueError::new_err("an address has 4 or 16 bytes"))
    }
}

fn v4(packed: &[u8]) -> PyResult<Ipv4Addr> {
    match address(packed)? {
        IpAddr::V4(found) => Ok(found),
        IpAddr::V6(_) => Err(PyValueError::new_err("an IPv4 address is needed")),
    }
}

fn v6(packed: &[u8]) -> PyResult<Ipv6Addr> {
    match address(packed)? {
        IpAddr::V6(found) => Ok(found),
        IpAddr::V4(_) => Err(PyValueError::new_err("an IPv6 address is needed")),
    }
}

fn packed<'py>(py: Python<'py>, address: IpAddr) -> Bound<'py, PyBytes> {
    match address {
        IpAddr::V4(v4) => PyBytes::new(py, &v4.octets()),
        IpAddr::V6(v6) => PyBytes::new(py, &v6.octets()),
    }
}

/// The proxy's thread and the queues to and from it. All methods but `stop` return at once.
#[pyclass(frozen)]
pub struct Proxy {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[pymethods]
impl Proxy {
    /// Begin to serve these listening sockets, which must not block. Times in seconds. Raises OSError.
    #[new]
    fn new(
        listeners: Vec<RawFd>,
        max_connections: usize,
        handshake_timeout_s: f64,
        connect_timeout_s: f64,
        idle_timeout_s: f64,
        by_destination: bool,
    ) -> PyResult<Self> {
        let seconds = |value: f64| {
            Duration::try_from_secs_f64(value).map_err(|error| PyValueError::new_err(error.to_string()))
        };
        let limits = Limits {
            max_connections,
            handshake_timeout: seconds(handshake_timeout_s)?,
            connect_timeout: seconds(connect_timeout_s)?,
            idle_timeout: seconds(idle_timeout_s)?,
            by_destination,
        };
        let listeners = listeners.into_iter().map(duplicate).collect::<PyResult<Vec<_>>>()?;
        let shared = Arc::new(Shared::new()?);
        let mut proxy = ProxyThread::new(shared.clone(), limits, listeners)?;
        let for_thread = shared.clone();
        let run = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| proxy.run())) {
                let reason = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "of unknown kind".to_owned());
                for_thread.post(&mut vec![Event::Died { reason }]);
            }
        };
        let thread = std::thread::Builder::new().name("hopfare-proxy".into()).spawn(run)?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Reset all connections and end the thread. Harmless when it does not run.
    fn stop(&self, py: Python<'_>) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            self.shared.send(Command::Stop);
            py.detach(|| {
                let _ = thread.join();
            });
        }
    }

    /// Readable when events wait.
    fn event_fd(&self) -> RawFd {
        self.shared.event_fd().as_raw_fd()
    }

    /// All events that wait, oldest first, as tuples that begin with their kind. Descriptors in them are the caller's.
    fn take_events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.shared.take_events().into_iter().map(|event| to_python(py, event)).collect()
    }

    /// What came about since the last time: (grant, port, times), and (packed address, times) of requests for addresses.
    #[allow(clippy::type_complexity)] // of no use elsewhere
    fn take_notes<'py>(
        &self,
        py: Python<'py>,
    ) -> (Vec<(GrantName, u16, u64)>, Vec<(Bound<'py, PyBytes>, u64)>) {
        let notes = self.shared.take_notes();
        let opened = notes.opened.into_iter().map(|((grant, port), times)| (grant, port, times));
        let addresses = notes.addresses.into_iter().map(|(address, times)| (packed(py, address), times));
        (opened.collect(), addresses.collect())
    }

    /// Serve requests of this key (as in a hand-over) on a circuit with these inner addresses, packed.
    fn grant(
        &self,
        grant: GrantName,
        key: Vec<u8>,
        circuit: u64,
        source_v4: &[u8],
        source_v6: Option<&[u8]>,
        cell: &PyGrantCell,
    ) -> PyResult<()> {
        let source_v4 = v4(source_v4)?;
        let source_v6 = source_v6.map(v6).transpose()?;
        let cell = cell.0.clone();
        self.shared.send(Command::Grant { grant, key, circuit, source_v4, source_v6, cell });
        Ok(())
    }

    /// No new connections on it; with `abort` the old ones end as well. ("drained", grant) follows.
    fn revoke(&self, grant: GrantName, abort: bool) {
        self.shared.send(Command::Revoke { grant, abort });
    }

    /// What a name means on a circuit for so many seconds: packed addresses in the order to try them.
    fn learn(&self, circuit: u64, host: String, addresses: Vec<Vec<u8>>, ttl_s: f64) -> PyResult<()> {
        let addresses =
            addresses.iter().take(MAX_ADDRESSES).map(|one| address(one)).collect::<PyResult<_>>()?;
        let until = Instant::now() + Duration::try_from_secs_f64(ttl_s).unwrap_or_default();
        self.shared.send(Command::Learn { circuit, host, addresses, until });
        Ok(())
    }

    /// Give sockets of the namespace away, as ("sockets", ...) asked; none when there are none to be had.
    fn add_sockets(&self, is_ipv6: bool, sockets: Vec<RawFd>) {
        let family = if is_ipv6 { Family::V6 } else { Family::V4 };
        // SAFETY: the caller gives these descriptors away: nobody else closes them.
        let sockets = sockets.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
        self.shared.send(Command::Sockets { family, sockets });
    }

    /// Carry a connection that was made and answered on a grant's circuit; gives both sockets away. `early` goes
    /// upstream first.
    fn carry(&self, grant: GrantName, client: RawFd, upstream: RawFd, early: Vec<u8>) {
        // SAFETY: the caller gives these descriptors away: nobody else closes them.
        let (client, upstream) = unsafe { (OwnedFd::from_raw_fd(client), OwnedFd::from_raw_fd(upstream)) };
        self.shared.send(Command::Carry { grant, client, upstream, early });
    }

    /// A connection that was handed over has ended, or was given back to be carried.
    fn returned(&self) {
        self.shared.send(Command::Returned);
    }

    /// Have the thread fail: for the test that the node then ends.
    fn fail(&self) {
        self.shared.send(Command::Fail);
    }

    /// (connections now, accepted, established, handed over, bytes up, bytes down); bytes of ended connections.
    fn figures(&self) -> (usize, u64, u64, u64, u64, u64) {
        let totals = &self.shared.totals;
        (
            totals.connections.load(Ordering::Relaxed),
            totals.accepted.load(Ordering::Relaxed),
            totals.established.load(Ordering::Relaxed),
            totals.handed_over.load(Ordering::Relaxed),
            totals.bytes_up.load(Ordering::Relaxed),
            totals.bytes_down.load(Ordering::Relaxed),
        )
    }
}

/// A descriptor of our own for a socket that Python has open.
fn duplicate(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("the socket is closed"));
    }
    // SAFETY: borrowed for this call only, in which Python holds the socket open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3).map_err(|error| PyOSError::new_err(error.to_string()))
}

fn to_python<'py>(py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyAny>> {
    match event {
        Event::HandOver(given) => {
            let HandOver { client, bytes, answered, has_input, age, key, attempt } = *given;
            let attempt = attempt.map(|it| {
                let sockets =
                    it.sockets.into_iter().map(|(to, socket)| (packed(py, to), socket.into_raw_fd()));
                let addresses = it.addresses.into_iter().map(|to| packed(py, to));
                (it.grant, sockets.collect::<Vec<_>>(), addresses.collect::<Vec<_>>())
            });
            (
                "hand over",
                client.into_raw_fd(),
                PyBytes::new(py, &bytes),
                answered,
                has_input,
                age.as_secs_f64(),
                key.map(|key| PyBytes::new(py, &key)),
                attempt,
            )
                .into_bound_py_any(py)
        }
        Event::NeedSockets { family, count } => {
            ("sockets", family == Family::V6, count).into_bound_py_any(py)
        }
        Event::Drained { grant } => ("drained", grant).into_bound_py_any(py),
        Event::CannotAccept { errno } => ("cannot accept", errno).into_bound_py_any(py),
        Event::Died { reason } => ("died", reason).into_bound_py_any(py),
    }
}

/// For tests: feed a handshake piece by piece. Returns what was answered, what came of it ("more", "unusual" or
/// "request"), and of a request the credentials, the host, the port, and where the connection's own bytes begin.
#[pyfunction]
#[allow(clippy::type_complexity)] // of no use elsewhere
fn try_handshake(
    pieces: Vec<Vec<u8>>,
) -> PyResult<(Vec<u8>, &'static str, Option<(Vec<u8>, String, u16, usize)>)> {
    let (mut handshake, mut answer) = (Handshake::default(), Vec::new());
    for (at, piece) in pieces.iter().enumerate() {
        match handshake.receive(piece, &mut answer) {
            Step::More => {}
            Step::Unusual => return Ok((answer, "unusual", None)),
            Step::Request(request, early_at) => {
                let fed: usize = pieces[..=at].iter().map(Vec::len).sum();
                if fed < early_at {
                    return Err(PyRuntimeError::new_err("a request that ends behind its bytes"));
                }
                let host = match request.host {
                    Host::Address(address) => address.to_string(),
                    Host::Name(name) => name,
                };
                let request = (request.credentials, host, request.port, early_at);
                return Ok((answer, "request", Some(request)));
            }
        }
    }
    Ok((answer, "more", None))
}

pub fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PROXY_INTERFACE", PROXY_INTERFACE)?;
    module.add_class::<Proxy>()?;
    module.add_class::<PyGrantCell>()?;
    module.add_function(wrap_pyfunction!(try_handshake, module)?)?;
    Ok(())
}

//! The circuit build's ciphers for Python: `circuits.building.crypto.BuildCrypto` with one call for each message.

use std::sync::{Mutex, PoisonError};

use hopfare_core::build::{self, ClientBuild, Ephemeral, Message, MESSAGE_BYTES, RECORDS};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Most ephemeral keys that are made ahead: two builds of the longest path. Kept for this process's next builds.
const MAX_AHEAD: usize = 2 * RECORDS;
static AHEAD: Mutex<Vec<Ephemeral>> = Mutex::new(Vec::new());

fn fixed<const N: usize>(value: &[u8]) -> PyResult<[u8; N]> {
    value.try_into().map_err(|_| PyValueError::new_err(format!("{N} bytes are needed, not {}", value.len())))
}

fn message(value: &[u8]) -> PyResult<&Message> {
    value.try_into().map_err(|_| {
        PyValueError::new_err(format!("a message has {MESSAGE_BYTES} bytes, not {}", value.len()))
    })
}

fn next_ephemeral() -> Option<Ephemeral> {
    let ahead = AHEAD.lock().unwrap_or_else(PoisonError::into_inner).pop();
    ahead.or_else(Ephemeral::generate)
}

/// A relay's onion keys, current first.
#[pyclass(frozen)]
pub struct BuildKeys(Vec<build::OnionKey>);

#[pymethods]
impl BuildKeys {
    /// From the node's identity and the keys' secrets, 32 bytes each. Raises ValueError for another length.
    #[new]
    fn new(node_id: &[u8], secrets: Vec<Vec<u8>>) -> PyResult<Self> {
        let secrets = secrets.into_iter().map(zeroize::Zeroizing::new);
        let keys = secrets.map(|secret| {
            build::OnionKey::new(fixed(node_id)?, &zeroize::Zeroizing::new(fixed(&secret)?))
                .ok_or_else(|| PyValueError::new_err("an onion key that is none"))
        });
        Ok(Self(keys.collect::<PyResult<_>>()?))
    }
}

/// A relay's half of one BUILD that opened.
#[pyclass(frozen)]
pub struct OpenedBuild(Box<build::RelayBuild>);

#[pymethods]
impl OpenedBuild {
    /// The client message.
    #[getter]
    fn message<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.message)
    }

    /// The key shared with the client.
    #[getter]
    fn root<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.root())
    }

    /// The BUILD for the next relay, of the one that was opened.
    fn onward<'py>(&self, py: Python<'py>, build: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.0.onward(message(build)?)[..]))
    }

    /// The BUILT with this server message before the next relay's, or before random bytes.
    #[pyo3(signature = (own, built))]
    fn answer<'py>(
        &self,
        py: Python<'py>,
        own: &[u8],
        built: Option<&[u8]>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let built = built.map(message).transpose()?;
        let answer = self.0.answer(fixed(own)?, built).ok_or_else(failed)?;
        Ok(PyBytes::new(py, &answer[..]))
    }
}

/// A client's half of one build.
#[pyclass(frozen)]
pub struct SealedBuild {
    client: ClientBuild,
    records: Box<Message>,
}

/// A server message, whether what follows it is whole, and the root.
type PyAnswer<'py> = (Bound<'py, PyBytes>, bool, Bound<'py, PyBytes>);

#[pymethods]
impl SealedBuild {
    /// The BUILD.
    #[getter]
    fn records<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.records[..])
    }

    /// The answers of a BUILT.
    fn open<'py>(&self, py: Python<'py>, built: &[u8]) -> PyResult<Vec<PyAnswer<'py>>> {
        let answers = self.client.open(message(built)?);
        Ok(answers
            .iter()
            .map(|answer| {
                (PyBytes::new(py, &answer.message), answer.intact, PyBytes::new(py, &answer.root[..]))
            })
            .collect())
    }
}

/// Open a BUILD with the first key that fits, or None.
#[pyfunction]
fn open_build(keys: &BuildKeys, build: &[u8]) -> PyResult<Option<OpenedBuild>> {
    Ok(build::RelayBuild::open(&keys.0, message(build)?).map(|opened| OpenedBuild(Box::new(opened))))
}

/// Seal a BUILD for relays given as (identity, onion key, client message). Raises ValueError for an onion key that is
/// none.
#[pyfunction]
fn seal_build(hops: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)>) -> PyResult<SealedBuild> {
    if !(1..=RECORDS).contains(&hops.len()) {
        return Err(PyValueError::new_err(format!("a path has 1 to {RECORDS} relays")));
    }
    let hops = hops
        .iter()
        .map(|(node_id, onion_key, text)| Ok((fixed(node_id)?, fixed(onion_key)?, fixed(text)?)))
        .collect::<PyResult<Vec<_>>>()?;
    let (client, records) = ClientBuild::seal(&hops, next_ephemeral)
        .ok_or_else(|| PyValueError::new_err("the onion key is a point of small order"))?;
    Ok(SealedBuild { client, records })
}

/// Make ephemeral keys ahead for a build of `hops` relays, for a moment in which nobody waits.
#[pyfunction]
fn prepare_build(py: Python<'_>, hops: usize) {
    let wanted = hops.min(MAX_AHEAD);
    py.detach(|| loop {
        if AHEAD.lock().unwrap_or_else(PoisonError::into_inner).len() >= wanted {
            return;
        }
        let Some(keys) = Ephemeral::generate() else { return };
        AHEAD.lock().unwrap_or_else(PoisonError::into_inner).push(keys);
    });
}

fn failed() -> PyErr {
    PyRuntimeError::new_err("the system's random numbers are not there")
}

pub fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<BuildKeys>()?;
    module.add_class::<OpenedBuild>()?;
    module.add_class::<SealedBuild>()?;
    module.add_function(wrap_pyfunction!(open_build, module)?)?;
    module.add_function(wrap_pyfunction!(seal_build, module)?)?;
    module.add_function(wrap_pyfunction!(prepare_build, module)?)
}

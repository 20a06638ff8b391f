//! The native engine of hopfare for Python: `overlay/engine/native.py` is its other half.
//!
//! Python decides and this crate carries: commands go down a queue, events come up another, figures are atomics. Links,
//! flows and meters have numbers that Python chooses and never uses again. The wire is docs/protocol/{links,engine,onion}.md.

mod binding;
mod build;
mod controller;
mod data;
mod handover;
mod net;
mod probes;
mod proxy;
mod router;
mod shared;
mod steer;
mod testing;
mod tls;

use pyo3::prelude::*;

/// Train buffers of 66 KB come and go with every packet: the C library would give each back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[pymodule]
fn hopfare_dataplane(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    module.add("INTERFACE", binding::INTERFACE)?;
    module.add_class::<binding::Engine>()?;
    module.add_class::<binding::PyLinkCell>()?;
    module.add_class::<binding::PyFlowCell>()?;
    module.add_class::<binding::PyMeterCell>()?;
    proxy::add(module)?;
    build::add(module)?;
    testing::add(module)?;
    Ok(())
}

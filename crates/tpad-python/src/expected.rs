//! Experts that are likely to be asked for next.

use pyo3::prelude::*;

use crate::connection::Connection;
use crate::gpu;
use crate::keys;

/// Tells the daemon which experts are likely to be asked for on a GPU next: whether it was told.
#[pyfunction]
pub(crate) fn expect(
    py: Python<'_>,
    connection: &Connection,
    model: &str,
    keys: &Bound<'_, PyAny>,
    device: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let (source, keys) = (connection.source(py)?, keys::experts(keys)?);
    let Some(index) = gpu::named(Some(device))? else { return Ok(false) };
    // No GPU is opened for a daemon that has none.
    let Some(handoff) = source.handoff().filter(|it| !it.devices().is_empty()) else {
        return Ok(false);
    };
    let gpu = gpu::open(py, index)?.gpu;
    let told = handoff.over().is_none() && handoff.devices().iter().any(|it| it == gpu.uuid());
    if told {
        handoff.expect_on(&gpu, model, &keys);
    }
    Ok(told)
}

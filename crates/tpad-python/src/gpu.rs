//! Devices: how Python names them, and those that this process has open.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyInt;
use tpad_client::Gpu;

use crate::errors::Failure;

/// Devices that are open, by index, and the process that opened them: CUDA does not survive
/// a fork.
static OPEN: Mutex<Option<(u32, HashMap<u32, Gpu>)>> = Mutex::new(None);

/// A device of this process.
#[derive(Clone, Debug)]
pub(crate) struct OnGpu {
    pub(crate) gpu: Gpu,
    /// As CUDA and PyTorch count them in this process.
    pub(crate) index: u32,
}

/// The device that is meant: `None` and `"cpu"` for host memory, `"cuda"`, `"cuda:1"`, `1` or
/// a `torch.device` for a GPU.
pub(crate) fn named(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<u32>> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    if value.is_instance_of::<PyInt>() {
        return Ok(Some(value.extract()?));
    }
    let text = value.str()?;
    let text = text.to_cow()?;
    let wrong = || {
        PyValueError::new_err(format!(
            "device {text:?}: \"cpu\", \"cuda\" or \"cuda:N\" is expected"
        ))
    };
    match text.split_once(':') {
        None if text == "cpu" => Ok(None),
        None if text == "cuda" => Ok(Some(current(value.py())?)),
        Some(("cuda", index)) => index.parse().map(Some).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

/// The one that PyTorch works on, if it is loaded; the first otherwise.
fn current(py: Python<'_>) -> PyResult<u32> {
    let modules = py.import("sys")?.getattr("modules")?;
    match modules.get_item("torch") {
        Ok(torch) => torch.getattr("cuda")?.call_method0("current_device")?.extract(),
        Err(_) => Ok(0),
    }
}

/// Opens a device, or finds it open.
pub(crate) fn open(py: Python<'_>, index: u32) -> PyResult<OnGpu> {
    let opened = py.detach(|| {
        let process = std::process::id();
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (owner, devices) = open.get_or_insert_with(|| (process, HashMap::new()));
        if *owner != process {
            return Err(Failure::forked(*owner));
        }
        if let Some(gpu) = devices.get(&index) {
            return Ok(gpu.clone());
        }
        let gpu = Gpu::open(&index.to_string())?;
        devices.insert(index, gpu.clone());
        Ok(gpu)
    });
    let gpu = opened.map_err(|failure| failure.raise(py))?;
    Ok(OnGpu { gpu, index })
}

/// Opens a device of this process before blocks are asked for there: its context takes a while
/// to make, and the interpreter is free meanwhile.
#[pyfunction]
pub(crate) fn open_device(py: Python<'_>, device: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Some(index) = named(Some(device))? {
        open(py, index)?;
    }
    Ok(())
}

/// Blocks that were let go of on each device that this process has open, and whose leases last
/// until the device's work is done: by the device's index.
#[pyfunction]
pub(crate) fn pending() -> Vec<(u32, usize)> {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let here = open.iter().filter(|(process, _)| *process == std::process::id());
    here.flat_map(|(_, devices)| devices).map(|(index, gpu)| (*index, gpu.pending())).collect()
}

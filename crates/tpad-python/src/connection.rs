//! The connection to a daemon, beneath `tpad.Client` and `tpad.aio.Client`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use tpad_client::{ClientOptions, SocketPaths};
use tpad_manifest::BlockKey;

use crate::block::Block;
use crate::describe::Described;
use crate::errors::Failure;
use crate::gpu;
use crate::keys;
use crate::lease::Lease;
use crate::pending::Pending;
use crate::prefetch::Prefetch;
use crate::runtime::{Here, run};
use crate::source::{Leases, Options, Source, Wish};
use crate::tensor::Tensor;

/// Where a daemon is when nobody says.
#[pyfunction]
pub(crate) fn default_address() -> String {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR");
    format!("unix://{}", SocketPaths::new(runtime.as_deref()).to_connect().display())
}

/// Connects: `done` as in every call here, see `runtime::run`.
#[pyfunction]
#[pyo3(signature = (address, handoff, handoff_socket, worker, timeout, connect_timeout, verify, done = None))]
#[expect(clippy::too_many_arguments, reason = "the package's own Python calls it, by place")]
pub(crate) fn connect(
    py: Python<'_>,
    address: String,
    handoff: &str,
    handoff_socket: Option<std::path::PathBuf>,
    worker: Option<String>,
    timeout: Option<f64>,
    connect_timeout: f64,
    verify: bool,
    done: Option<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    let wish = match handoff {
        "auto" => Wish::Auto,
        "required" => Wish::Required,
        "off" => Wish::Off,
        other => {
            let text = format!("handoff={other:?}: \"auto\", \"required\" or \"off\" is expected");
            return Err(PyValueError::new_err(text));
        }
    };
    let mut client = ClientOptions::default();
    client.verify = verify;
    client.connect_timeout = seconds(connect_timeout)?;
    let timeout = timeout.map(seconds).transpose()?;
    let options = Options { address, wish, socket: handoff_socket, worker, timeout, client };
    run(py, done, Source::connect(options), |py, source| {
        let open = Mutex::new(Some(Arc::new(source)));
        Ok(Py::new(py, Connection { source: Here::new(open) })?.into_any())
    })
}

/// A connection to one daemon. Every call with `done` returns a `Task` at once; see
/// `tpad.aio`.
#[pyclass(frozen, module = "tpad._tpad")]
pub(crate) struct Connection {
    source: Here<Mutex<Option<Arc<Source>>>>,
}

impl Connection {
    pub(crate) fn source(&self, py: Python<'_>) -> PyResult<Arc<Source>> {
        let source = self.source.get().map_err(|failure| failure.raise(py))?;
        let source = source.lock().unwrap_or_else(PoisonError::into_inner);
        source.clone().ok_or_else(|| PyValueError::new_err("the client is closed"))
    }
}

#[pymethods]
impl Connection {
    fn address(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.source(py)?.address().to_owned())
    }

    /// Why no memory is handed over; `None` where it is.
    fn why_no_handoff(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.source(py)?.why_not())
    }

    /// What the daemon said when its memory was reached: `None` where it is not.
    fn handoff<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(handoff) = self.source(py)?.handoff() else { return Ok(None) };
        let said = PyDict::new(py);
        let daemon = handoff.daemon();
        said.set_item("epoch", daemon.epoch)?;
        said.set_item("lease_bytes", daemon.lease_bytes)?;
        said.set_item("keys", daemon.keys)?;
        said.set_item("devices", handoff.devices())?;
        Ok(Some(said))
    }

    fn close(&self) {
        if let Ok(source) = self.source.get() {
            let open = source.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(open);
        }
    }

    fn closed(&self) -> bool {
        let source = self.source.get();
        source.is_ok_and(|source| source.lock().unwrap_or_else(PoisonError::into_inner).is_none())
    }

    #[pyo3(signature = (timeout = None, done = None))]
    fn models(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let client = self.source(py)?.client(limit(timeout)?);
        run(py, done, async move { Ok(client.list_models().await?) }, |py, models| {
            json(py, &models)
        })
    }

    /// A model's description with its manifest; `config`, its config.json or None; `sources`, where
    /// its experts came from, or the exception that says why nobody knows.
    #[pyo3(signature = (model, timeout = None, done = None))]
    fn describe(
        &self,
        py: Python<'_>,
        model: String,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let client = self.source(py)?.client(limit(timeout)?);
        run(py, done, Described::of(client, model), Described::into_python)
    }

    #[pyo3(signature = (timeout = None, done = None))]
    fn status(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let client = self.source(py)?.client(limit(timeout)?);
        let status = async move { Ok(client.status().await?) };
        run(py, done, status, |py, text| parsed(py, &text))
    }

    #[pyo3(signature = (model, name, timeout = None, done = None))]
    fn file(
        &self,
        py: Python<'_>,
        model: String,
        name: String,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let client = self.source(py)?.client(limit(timeout)?);
        let file = async move { Ok(client.fetch_file(&model, &name).await?) };
        run(py, done, file, |py, file| Ok(PyBytes::new(py, &file.bytes).into_any().unbind()))
    }

    /// An expert that is held without a message; `None` when it has to be asked for.
    fn hold(
        &self,
        py: Python<'_>,
        model: &str,
        tier: &Bound<'_, PyAny>,
        group: u32,
        expert: u32,
        layer: u32,
    ) -> PyResult<Option<Block>> {
        let key = tpad_manifest::ExpertKey { tier: keys::tier(tier)?, group, expert };
        let held = self.source(py)?.hold(model, &BlockKey::Expert { key, layer });
        Ok(held.map(|lease| Block::of(Arc::new(Here::new(lease)))))
    }

    #[pyo3(signature = (model, tier, group, expert, layer, device = None, timeout = None, done = None))]
    #[expect(clippy::too_many_arguments, reason = "the package's own Python calls it, by place")]
    fn expert(
        &self,
        py: Python<'_>,
        model: &str,
        tier: &Bound<'_, PyAny>,
        group: u32,
        expert: u32,
        layer: u32,
        device: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let key = tpad_manifest::ExpertKey { tier: keys::tier(tier)?, group, expert };
        let key = BlockKey::Expert { key, layer };
        self.blocks(py, model, vec![key], device, timeout, done, one)
    }

    #[pyo3(signature = (model, keys, device = None, timeout = None, done = None))]
    fn experts(
        &self,
        py: Python<'_>,
        model: &str,
        keys: &Bound<'_, PyAny>,
        device: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        self.blocks(py, model, keys::experts(keys)?, device, timeout, done, |py, leases| {
            let blocks = leases.into_iter().map(|lease| Py::new(py, Block::of(lease)));
            let blocks = blocks.collect::<PyResult<Vec<_>>>()?;
            Ok(PyList::new(py, blocks)?.into_any().unbind())
        })
    }

    /// Asks for experts and does not wait for them.
    #[pyo3(signature = (model, keys, device = None, timeout = None))]
    fn begin_experts(
        &self,
        py: Python<'_>,
        model: &str,
        keys: &Bound<'_, PyAny>,
        device: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Pending> {
        let (source, keys) = (self.source(py)?, keys::experts(keys)?);
        let timeout = limit(timeout)?;
        let device = gpu::named(device)?.map(|index| gpu::open(py, index)).transpose()?;
        if let Some(leases) = source.hold_all(model, &keys, device.as_ref()) {
            return Ok(Pending::there(leases));
        }
        let model = model.to_owned();
        Pending::begin(async move { source.blocks(&model, &keys, device.as_ref(), timeout).await })
    }

    #[pyo3(signature = (model, tier, layer, device = None, timeout = None, done = None))]
    #[expect(clippy::too_many_arguments, reason = "the package's own Python calls it, by place")]
    fn router(
        &self,
        py: Python<'_>,
        model: &str,
        tier: &Bound<'_, PyAny>,
        layer: u32,
        device: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let key = BlockKey::Router { tier: keys::tier(tier)?, layer };
        self.blocks(py, model, vec![key], device, timeout, done, one)
    }

    /// Dense tensors by name, all of them without names.
    #[pyo3(signature = (model, names = None, device = None, timeout = None, done = None))]
    fn dense(
        &self,
        py: Python<'_>,
        model: String,
        names: Option<Vec<String>>,
        device: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let source = self.source(py)?;
        let timeout = limit(timeout)?;
        let device = gpu::named(device)?.map(|index| gpu::open(py, index)).transpose()?;
        let dense = async move {
            let keys = match names {
                Some(names) => {
                    let dense = |name: String| BlockKey::Dense { name: name.into() };
                    names.into_iter().map(dense).collect()
                }
                None => source.dense_names(&model).await?,
            };
            source.blocks(&model, &keys, device.as_ref(), timeout).await
        };
        run(py, done, dense, |py, leases| {
            let tensors = PyDict::new(py);
            for lease in &leases {
                for tensor in (0..lease.count()).filter_map(|at| Tensor::of(lease, at)) {
                    let tensor = Bound::new(py, tensor)?;
                    tensors.set_item(tensor.getattr("name")?, &tensor)?;
                }
            }
            Ok(tensors.into_any().unbind())
        })
    }

    /// Starts a prefetch, which goes on by itself.
    fn prefetch(
        &self,
        py: Python<'_>,
        model: String,
        keys: &Bound<'_, PyAny>,
    ) -> PyResult<Prefetch> {
        Prefetch::start(py, self.source(py)?.patient(), model, keys::experts(keys)?)
    }
}

impl Connection {
    #[expect(clippy::too_many_arguments, reason = "what all calls for blocks have in common")]
    fn blocks(
        &self,
        py: Python<'_>,
        model: &str,
        keys: Vec<BlockKey>,
        device: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
        convert: impl FnOnce(Python<'_>, Leases) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> PyResult<Py<PyAny>> {
        let source = self.source(py)?;
        let timeout = limit(timeout)?;
        let device = gpu::named(device)?.map(|index| gpu::open(py, index)).transpose()?;
        if done.is_none() {
            // What is there is found in less time than a wait takes to begin.
            if let Some(leases) = source.hold_all(model, &keys, device.as_ref()) {
                return convert(py, leases);
            }
        }
        let model = model.to_owned();
        let blocks = async move { source.blocks(&model, &keys, device.as_ref(), timeout).await };
        run(py, done, blocks, convert)
    }
}

fn one(py: Python<'_>, mut leases: Leases) -> PyResult<Py<PyAny>> {
    let missing = || Failure::said("internal", "the block did not come");
    let lease: Arc<Here<Lease>> = leases.pop().ok_or_else(|| missing().raise(py))?;
    Ok(Py::new(py, Block::of(lease))?.into_any())
}

/// What serializes, as dicts and lists.
pub(crate) fn json(py: Python<'_>, value: &impl serde::Serialize) -> PyResult<Py<PyAny>> {
    let text =
        serde_json::to_string(value).map_err(|error| PyValueError::new_err(error.to_string()))?;
    parsed(py, &text)
}

fn parsed(py: Python<'_>, text: &str) -> PyResult<Py<PyAny>> {
    let text = PyString::new(py, text);
    Ok(py.import("json")?.call_method1("loads", (text,))?.unbind())
}

pub(crate) fn limit(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    timeout.map(seconds).transpose()
}

fn seconds(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("{seconds} is no time to wait, in seconds")))
}

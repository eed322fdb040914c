//! Blocks, as Python has them: mappings of tensors that share a lease.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList};
use tpad_client::Medium;

use crate::keys;
use crate::lease::{self, Lease};
use crate::runtime::Here;
use crate::tensor::Tensor;

/// A block: one expert at one layer, one tier's router at one layer, or one dense tensor.
///
/// A read-only mapping from the checkpoint's tensor names to `Tensor`s, in the order in which
/// they lie. Where `held` is true they are the daemon's own memory, and the block is a lease on
/// it: it is given back when the block and every view of its tensors (arrays, torch tensors,
/// DLPack capsules) are gone. `release()`, or the end of `with block:`, lets go of the block's
/// own part, so that the last view ends the lease.
#[pyclass(frozen, mapping, weakref, module = "tpad")]
pub(crate) struct Block {
    lease: Mutex<Option<Arc<Here<Lease>>>>,
}

impl Block {
    pub(crate) fn of(lease: Arc<Here<Lease>>) -> Self {
        Self { lease: Mutex::new(Some(lease)) }
    }

    fn lease(&self) -> PyResult<Arc<Here<Lease>>> {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        lease.clone().ok_or_else(|| PyValueError::new_err("the block was released"))
    }

    fn find(&self, wanted: &str) -> PyResult<Option<Tensor>> {
        let lease = self.lease()?;
        let at = lease.tensors().position(|tensor| tensor.name == wanted);
        Ok(at.and_then(|at| Tensor::of(&lease, at)))
    }
}

#[pymethods]
impl Block {
    /// What it is: a `BlockKey`, a `RouterKey`, or a dense tensor's name.
    #[getter]
    fn key(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        keys::to_python(py, self.lease()?.key())
    }

    /// The BLAKE3 digest of its bytes, in hexadecimal: equal blocks have equal ids.
    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.lease()?.id().to_string())
    }

    /// The expert's number in the checkpoint it came from; `None` for routers and dense tensors.
    #[getter]
    fn source_expert(&self) -> PyResult<Option<u32>> {
        Ok(self.lease()?.source().map(|source| source.expert))
    }

    /// The expert's column in the checkpoint's router; `None` for routers and dense tensors.
    #[getter]
    fn router_column(&self) -> PyResult<Option<u32>> {
        Ok(self.lease()?.source().map(|source| source.column))
    }

    /// Where the daemon found it: `"hbm"`, `"dram"`, `"nvme"` or `"object_store"`; `None` where
    /// it does not say.
    #[getter]
    fn level(&self) -> PyResult<Option<&'static str>> {
        let medium = self.lease()?.medium();
        Ok((medium != Medium::Unknown).then(|| medium.as_str()))
    }

    /// Whether the tensors are the daemon's own memory, without a copy.
    #[getter]
    fn held(&self) -> PyResult<bool> {
        Ok(!matches!(&**self.lease()?, Lease::Fetched(_)))
    }

    /// Where the tensors are: `"cpu"` or `"cuda:N"`.
    #[getter]
    fn device(&self) -> PyResult<String> {
        let lease = self.lease()?;
        Ok(lease.device().map_or_else(|| "cpu".to_owned(), |on| format!("cuda:{}", on.index)))
    }

    /// The bytes of all tensors with the padding between them.
    #[getter]
    fn nbytes(&self) -> PyResult<usize> {
        Ok(self.lease()?.image_bytes())
    }

    /// Whether `release` was called.
    #[getter]
    fn released(&self) -> bool {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Lets go of the block: its tensors can be asked for no more. The lease ends here unless
    /// tensors or arrays made from them are left; the last of them ends it then.
    fn release(&self) {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lease);
    }

    /// The tensor of this role: `"gate"`, `"up"`, `"down"`, `"gate_up"`, `"router"`,
    /// `"tier_head"`, `"group_heads"` or `"other"`, and its part: `"weight"` by default, `"bias"`,
    /// `"scale"`, `"global_scale"`, `"input_scale"`, `"zero_point"`, `"group_index"`, `"shape"` or
    /// `"correction_bias"`. KeyError where the block has none, with those that it has.
    #[pyo3(signature = (role, part = "weight"))]
    fn by_role(&self, role: &str, part: &str) -> PyResult<Tensor> {
        let lease = self.lease()?;
        let named = |tensor: &lease::Facts<'_>| {
            (lease::projection(tensor.role.projection), lease::part(tensor.role.part))
        };
        let at = lease.tensors().position(|tensor| named(&tensor) == (role, part));
        at.and_then(|at| Tensor::of(&lease, at)).ok_or_else(|| {
            let there: Vec<String> = lease
                .tensors()
                .map(|tensor| named(&tensor))
                .map(|(role, part)| format!("{role} {part}"))
                .collect();
            PyKeyError::new_err(format!("no {role} {part}; there are {}", there.join(", ")))
        })
    }

    /// The tensors' names, in the order in which they lie.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let lease = self.lease()?;
        PyList::new(py, lease.tensors().map(|tensor| tensor.name).collect::<Vec<_>>())
    }

    /// The tensors, in the order in which they lie.
    fn values(&self) -> PyResult<Vec<Tensor>> {
        let lease = self.lease()?;
        Ok((0..lease.count()).filter_map(|at| Tensor::of(&lease, at)).collect())
    }

    /// Names and tensors.
    fn items(&self) -> PyResult<Vec<(String, Tensor)>> {
        let lease = self.lease()?;
        let named = lease.tensors().map(|tensor| tensor.name.to_owned());
        Ok(named.zip(self.values()?).collect())
    }

    /// The tensor of this name, or `default`.
    #[pyo3(signature = (name, default = None))]
    fn get(&self, py: Python<'_>, name: &str, default: Option<Py<PyAny>>) -> PyResult<Py<PyAny>> {
        match self.find(name)? {
            Some(tensor) => Ok(Py::new(py, tensor)?.into_any()),
            None => Ok(default.unwrap_or_else(|| py.None())),
        }
    }

    fn __getitem__(&self, name: &str) -> PyResult<Tensor> {
        self.find(name)?.ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        match name.extract::<std::borrow::Cow<'_, str>>() {
            Ok(name) => Ok(self.find(&name)?.is_some()),
            Err(_) => Ok(false),
        }
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.lease()?.count())
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        self.keys(py)?.try_iter()
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &self,
        _kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.release();
    }

    fn __repr__(&self) -> String {
        match self.lease() {
            Err(_) => "<tpad.Block, released>".to_owned(),
            Ok(lease) => {
                let place = match &**lease {
                    Lease::Held(_) => "held".to_owned(),
                    Lease::Fetched(_) => "received".to_owned(),
                    Lease::OnGpu(_, on) => format!("held on cuda:{}", on.index),
                };
                let (key, tensors, bytes) = (lease.key(), lease.count(), lease.image_bytes());
                format!("<tpad.Block {key}: {tensors} tensors, {bytes} bytes, {place}>")
            }
        }
    }
}

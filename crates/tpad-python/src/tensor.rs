//! Tensors, as Python has them: views that keep their block's lease.
#![expect(unsafe_code, reason = "the buffer protocol hands out pointers")]

use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyMemoryView, PyTuple};

use crate::dlpack;
use crate::lease::{self, Facts, Lease};
use crate::runtime::Here;

/// One tensor of a block: a read-only view of its elements where they lie, row by row.
///
/// It supports the buffer protocol, `__array__` and DLPack, and everything made from it without
/// a copy keeps the block's lease. NumPy's arrays refuse to be written to. PyTorch has no
/// read-only tensors: a write into one that is held in place ends the process (the memory is the
/// daemon's, mapped to be read) and one on a GPU would change what others read; `clone()` what is
/// to be changed.
#[pyclass(frozen, weakref, module = "tpad")]
pub(crate) struct Tensor {
    lease: Arc<Here<Lease>>,
    at: usize,
    /// As the buffer protocol and DLPack want them, for as long as views live.
    shape: Box<[i64]>,
    strides: Box<[i64]>,
}

impl Tensor {
    /// The tensor at a place of its block's order.
    pub(crate) fn of(lease: &Arc<Here<Lease>>, at: usize) -> Option<Self> {
        let facts = lease.tensor(at)?;
        let dimension = |n: &u64| i64::try_from(*n).ok();
        let shape: Box<[i64]> = facts.shape.iter().map(dimension).collect::<Option<_>>()?;
        let item = item_bytes(&facts);
        let mut strides: Box<[i64]> = vec![0; shape.len()].into();
        let mut step = item;
        for (stride, dimension) in strides.iter_mut().zip(&*shape).rev() {
            *stride = step;
            step = step.saturating_mul((*dimension).max(1));
        }
        Some(Self { lease: Arc::clone(lease), at, shape, strides })
    }

    fn facts(&self) -> Facts<'_> {
        // There since it was made, and blocks do not change.
        self.lease.tensor(self.at).expect("the tensor is one of its block")
    }

    /// The lease, for what is made from it.
    pub(crate) fn lease(&self) -> &Arc<Here<Lease>> {
        &self.lease
    }

    fn fill(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
        raw: bool,
    ) -> PyResult<()> {
        let this = slf.get();
        this.lease.get().map_err(|failure| failure.raise(slf.py()))?;
        let facts = this.facts();
        let Some(bytes) = this.lease.bytes(this.at) else {
            let device = this.device();
            let text = format!("{} is on {device}: use .torch() or DLPack", facts.name);
            return Err(PyBufferError::new_err(text));
        };
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("tensors of a block are read-only: copy it first"));
        }
        let (format, item) = match (raw, format(facts.dtype.name())) {
            (true, _) => (c"B", 1),
            (false, Some(format)) => (format, item_bytes(&facts)),
            (false, None) => {
                let text = format!(
                    "{} elements have no name in the buffer protocol: use .numpy() (with \
                     ml_dtypes), .torch() or .raw()",
                    facts.dtype
                );
                return Err(PyBufferError::new_err(text));
            }
        };
        let wants = |flag: c_int| flags & flag == flag;
        let flat = raw || !wants(ffi::PyBUF_ND);
        let length = bytes.len().try_into().unwrap_or(isize::MAX);
        let item = isize::try_from(item).unwrap_or(1);
        let buffer = ffi::Py_buffer {
            buf: bytes.as_ptr().cast_mut().cast::<c_void>(),
            obj: slf.clone().into_any().into_ptr(),
            len: length,
            itemsize: item,
            readonly: 1,
            ndim: if flat { 1 } else { c_int::try_from(this.shape.len()).unwrap_or(c_int::MAX) },
            format: if wants(ffi::PyBUF_FORMAT) {
                format.as_ptr().cast_mut()
            } else {
                std::ptr::null_mut()
            },
            shape: if flat { std::ptr::null_mut() } else { pointer(&this.shape) },
            strides: if flat || !wants(ffi::PyBUF_STRIDES) {
                std::ptr::null_mut()
            } else {
                pointer(&this.strides)
            },
            suboffsets: std::ptr::null_mut(),
            internal: std::ptr::null_mut(),
        };
        // SAFETY: Python hands over a `Py_buffer` of its own to be filled. What is put there
        // lives as long as this tensor, which `obj` keeps; the bytes stay as they are as long
        // as the lease that the tensor has.
        unsafe { view.write(buffer) };
        Ok(())
    }
}

/// Extents as the buffer protocol wants them.
fn pointer(extents: &[i64]) -> *mut isize {
    const { assert!(size_of::<i64>() == size_of::<isize>(), "tpad is for 64-bit machines") }
    extents.as_ptr().cast_mut().cast::<isize>()
}

/// Bytes of an element; 1 for those that fill no byte, whose tensors are only had raw.
fn item_bytes(facts: &Facts<'_>) -> i64 {
    i64::from((facts.dtype.bits().unwrap_or(8) / 8).max(1))
}

/// A type's name in the buffer protocol, where it has one.
fn format(dtype: &str) -> Option<&'static CStr> {
    Some(match dtype {
        "BOOL" => c"?",
        "U8" => c"B",
        "I8" => c"b",
        "I16" => c"h",
        "U16" => c"H",
        "I32" => c"i",
        "U32" => c"I",
        "I64" => c"q",
        "U64" => c"Q",
        "F16" => c"e",
        "F32" => c"f",
        "F64" => c"d",
        "C64" => c"Zf",
        _ => return None,
    })
}

#[pymethods]
impl Tensor {
    /// The name in the checkpoint. Experts cut from one stacked tensor share its name.
    #[getter]
    fn name(&self) -> &str {
        self.facts().name
    }

    /// The projection that it belongs to: see `Block.by_role`.
    #[getter]
    fn role(&self) -> &'static str {
        lease::projection(self.facts().role.projection)
    }

    /// What it does there: see `Block.by_role`.
    #[getter]
    fn part(&self) -> &'static str {
        lease::part(self.facts().role.part)
    }

    /// The element type as safetensors spells it: `"BF16"`.
    #[getter]
    fn dtype(&self) -> &str {
        self.facts().dtype.name()
    }

    /// Stored elements in each dimension, the slowest first. A slice of a stacked tensor has lost
    /// the expert axis.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &*self.shape)
    }

    /// Bytes of its elements.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.facts().bytes
    }

    /// Where it is: `"cpu"` or `"cuda:N"`.
    #[getter]
    fn device(&self) -> String {
        self.lease.device().map_or_else(|| "cpu".to_owned(), |on| format!("cuda:{}", on.index))
    }

    /// The address of its first element, in this process or on the device. It means nothing once
    /// the lease is over.
    #[getter]
    fn address(&self) -> u64 {
        self.facts().address
    }

    /// Which axis of a weight is which: `"out_in"`, as `torch.nn.Linear` has it, `"in_out"`, or
    /// `None` where the layout does not tell.
    #[getter]
    fn orientation(&self) -> Option<&'static str> {
        lease::orientation(self.facts().orientation)
    }

    /// How gate and up share the output axis: `"concatenated"`, `"interleaved"`, or `None`.
    #[getter]
    fn gate_up(&self) -> Option<&'static str> {
        lease::gate_up(self.facts().gate_up)
    }

    /// Logical values in one stored element: 2 for FP4 in bytes, 8 for INT4 in `I32`, else 1.
    #[getter]
    fn values_per_element(&self) -> u32 {
        self.facts().values_per_element
    }

    /// Whether it is one expert's slice of a stacked tensor.
    #[getter]
    fn sliced(&self) -> bool {
        self.facts().sliced
    }

    /// A NumPy array over the elements, without a copy, which cannot be written to. `BF16` and
    /// the small floating-point types need the package `ml_dtypes`; `F4` and `F6` elements fill no
    /// byte, and NumPy has them as `raw()` only. TypeError for a tensor on a GPU.
    fn numpy(slf: Bound<'_, Self>) -> PyResult<Bound<'_, PyAny>> {
        static NUMPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        NUMPY.import(py, "tpad._arrays", "numpy_of")?.call1((slf,))
    }

    /// A `torch.Tensor` over the elements, without a copy, where they are: on the CPU, or on the
    /// GPU that holds them. It must not be written to: `clone()` to own. On a GPU the lease ends
    /// after the work that was submitted to the device before the last view went. `F4` becomes
    /// `float4_e2m1fn_x2` with half the last dimension.
    fn torch(slf: Bound<'_, Self>) -> PyResult<Bound<'_, PyAny>> {
        static TORCH: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        TORCH.import(py, "tpad._arrays", "torch_of")?.call1((slf,))
    }

    /// The bytes, as a read-only `memoryview`, without a copy. BufferError for a tensor on a GPU.
    fn raw(slf: Bound<'_, Self>) -> PyResult<Bound<'_, PyMemoryView>> {
        let py = slf.py();
        PyMemoryView::from(Bound::new(py, Raw(slf.unbind()))?.as_any())
    }

    #[pyo3(signature = (dtype = None, copy = None))]
    fn __array__<'py>(
        slf: Bound<'py, Self>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static ARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        ARRAY.import(py, "tpad._arrays", "array_of")?.call1((slf, dtype, copy))
    }

    /// A DLPack capsule, without a copy: with the flag that says that it is read-only where
    /// `max_version` takes version 1, and without it for older consumers, which can be told
    /// nothing. Nothing is waited for: the bytes are there before the tensor is.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        slf: Bound<'py, Self>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _in_order_with_any = stream;
        let this = slf.get();
        this.lease.get().map_err(|failure| failure.raise(slf.py()))?;
        if copy == Some(true) {
            return Err(PyBufferError::new_err("no copies are made: copy what you get"));
        }
        if dl_device.is_some_and(|wanted| wanted != this.__dlpack_device__()) {
            let text = format!("it is on {}, and is not copied elsewhere", this.device());
            return Err(PyBufferError::new_err(text));
        }
        let facts = this.facts();
        let element = dlpack::element(facts.dtype.name()).ok_or_else(|| {
            let text =
                format!("{} elements do not fill bytes: use .torch() or .raw()", facts.dtype);
            PyBufferError::new_err(text)
        })?;
        dlpack::export(slf.py(), this, facts.address, element, &this.shape, max_version)
    }

    /// `(device type, device id)` as DLPack numbers them.
    pub(crate) fn __dlpack_device__(&self) -> (i32, i32) {
        match self.lease.device() {
            None => (dlpack::CPU, 0),
            Some(on) => (dlpack::CUDA, i32::try_from(on.index).unwrap_or(i32::MAX)),
        }
    }

    /// A capsule of an older DLPack: of the elements, or flat and of bytes.
    fn _dlpack<'py>(slf: &Bound<'py, Self>, bytes: bool) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        this.lease.get().map_err(|failure| failure.raise(slf.py()))?;
        let facts = this.facts();
        let flat = [i64::try_from(facts.bytes).unwrap_or(i64::MAX)];
        let (element, shape) = match dlpack::element(facts.dtype.name()) {
            Some(element) if !bytes => (element, &*this.shape),
            _ => (dlpack::BYTE, &flat[..]),
        };
        dlpack::export(slf.py(), this, facts.address, element, shape, None)
    }

    // SAFETY: Python calls it with a `Py_buffer` to fill.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        Self::fill(&slf, view, flags, false)
    }

    fn __repr__(&self) -> String {
        let Facts { name, dtype, .. } = self.facts();
        format!("<tpad.Tensor {name}: {dtype} {:?} on {}>", self.shape, self.device())
    }
}

/// The bytes of a tensor, without their type.
#[pyclass(frozen, module = "tpad._tpad")]
pub(crate) struct Raw(Py<Tensor>);

#[pymethods]
impl Raw {
    // SAFETY: Python calls it with a `Py_buffer` to fill.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        Tensor::fill(slf.get().0.bind(slf.py()), view, flags, true)
    }
}

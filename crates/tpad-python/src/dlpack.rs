//! DLPack: tensors for whoever else has tensors, by capsules.
#![expect(unsafe_code, reason = "capsules are pointers with a destructor")]

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use pyo3::ffi;
use pyo3::prelude::*;

use crate::lease::Lease;
use crate::runtime::Here;
use crate::tensor::Tensor;

/// Device types.
pub(crate) const CPU: i32 = 1;
pub(crate) const CUDA: i32 = 2;

/// The version that capsules of the second kind are of.
const VERSION: (u32, u32) = (1, 1);
const READ_ONLY: u64 = 1;

const UNUSED: &CStr = c"dltensor";
const UNUSED_VERSIONED: &CStr = c"dltensor_versioned";

/// An element type: its code and bits.
pub(crate) type Element = (u8, u8);

pub(crate) const BYTE: Element = (1, 8);

/// A type as DLPack numbers it; `None` for those whose elements fill no byte.
pub(crate) fn element(dtype: &str) -> Option<Element> {
    Some(match dtype {
        "I8" => (0, 8),
        "I16" => (0, 16),
        "I32" => (0, 32),
        "I64" => (0, 64),
        "U8" => (1, 8),
        "U16" => (1, 16),
        "U32" => (1, 32),
        "U64" => (1, 64),
        "F16" => (2, 16),
        "F32" => (2, 32),
        "F64" => (2, 64),
        "BF16" => (4, 16),
        "C64" => (5, 64),
        "BOOL" => (6, 8),
        "F8_E4M3" => (10, 8),
        "F8_E4M3FNUZ" => (11, 8),
        "F8_E5M2" => (12, 8),
        "F8_E5M2FNUZ" => (13, 8),
        "F8_E8M0" => (14, 8),
        _ => return None,
    })
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: DlTensor,
}

/// A managed tensor with what it points to. `managed` is first, so that a pointer to it is one
/// to the whole.
#[repr(C)]
struct Exported<M> {
    managed: M,
    shape: Box<[i64]>,
    strides: Box<[i64]>,
    _lease: Arc<Here<Lease>>,
}

/// A capsule over the elements of a tensor at `address`, seen as `element`s of this shape.
pub(crate) fn export<'py>(
    py: Python<'py>,
    of: &Tensor,
    address: u64,
    (code, bits): Element,
    shape: &[i64],
    max_version: Option<(u32, u32)>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut shape: Box<[i64]> = shape.into();
    let mut strides: Box<[i64]> = shape.clone();
    let mut step = 1_i64;
    for (stride, dimension) in strides.iter_mut().zip(&*shape).rev() {
        *stride = step;
        step = step.saturating_mul((*dimension).max(1));
    }
    let (device_type, device_id) = of.__dlpack_device__();
    let empty = shape.contains(&0);
    let tensor = DlTensor {
        // Consumers may check the pointer of a tensor without elements.
        data: if empty { std::ptr::null_mut() } else { data(address) },
        device_type,
        device_id,
        ndim: i32::try_from(shape.len()).unwrap_or(i32::MAX),
        code,
        bits,
        lanes: 1,
        shape: shape.as_mut_ptr(),
        strides: strides.as_mut_ptr(),
        byte_offset: 0,
    };
    let (context, lease) = (std::ptr::null_mut(), Arc::clone(of.lease()));
    match max_version {
        Some((major, minor)) if major >= VERSION.0 => {
            let minor = if major == VERSION.0 { minor.min(VERSION.1) } else { VERSION.1 };
            let managed = ManagedVersioned {
                major: VERSION.0,
                minor,
                context,
                deleter: Some(delete::<ManagedVersioned>),
                flags: READ_ONLY,
                tensor,
            };
            let exported = Exported { managed, shape, strides, _lease: lease };
            capsule(py, exported, UNUSED_VERSIONED, destroy_versioned)
        }
        _ => {
            let managed = Managed { tensor, context, deleter: Some(delete::<Managed>) };
            let exported = Exported { managed, shape, strides, _lease: lease };
            capsule(py, exported, UNUSED, destroy)
        }
    }
}

fn data(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

fn capsule<'py, M>(
    py: Python<'py>,
    exported: Exported<M>,
    name: &'static CStr,
    destructor: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Bound<'py, PyAny>> {
    let exported = Box::into_raw(Box::new(exported));
    // SAFETY: the pointer is not null and the name lives for ever.
    let capsule = unsafe { ffi::PyCapsule_New(exported.cast(), name.as_ptr(), Some(destructor)) };
    if capsule.is_null() {
        // SAFETY: it comes from `Box::into_raw` above, and no capsule has it.
        drop(unsafe { Box::from_raw(exported) });
    }
    // SAFETY: a new reference, or null with an exception.
    unsafe { Bound::from_owned_ptr_or_err(py, capsule) }
}

/// Ends the view: called once, by whoever consumed the capsule or by the capsule's destructor,
/// on whichever thread, with or without the GIL.
unsafe extern "C" fn delete<M>(managed: *mut M) {
    // SAFETY: `managed` is the first field of an `Exported` that came from `Box::into_raw`.
    drop(unsafe { Box::from_raw(managed.cast::<Exported<M>>()) });
}

/// What Python does with a capsule that nobody consumed: consumers rename it.
unsafe extern "C" fn destroy(capsule: *mut ffi::PyObject) {
    // SAFETY: it is a capsule of `capsule()`, under its first name if nobody consumed it.
    unsafe { unused::<Managed>(capsule, UNUSED) }
}

unsafe extern "C" fn destroy_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as above.
    unsafe { unused::<ManagedVersioned>(capsule, UNUSED_VERSIONED) }
}

/// # Safety
/// `capsule` is one, and what it holds under `name` is an `Exported<M>`.
unsafe fn unused<M>(capsule: *mut ffi::PyObject, name: &'static CStr) {
    // SAFETY: it is a capsule, says the caller.
    if unsafe { ffi::PyCapsule_IsValid(capsule, name.as_ptr()) } != 1 {
        return;
    }
    // SAFETY: it is valid by this name.
    let managed = unsafe { ffi::PyCapsule_GetPointer(capsule, name.as_ptr()) };
    // SAFETY: nobody has consumed it, so nobody has deleted it.
    unsafe { delete(managed.cast::<M>()) }
}

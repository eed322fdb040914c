//! Keys, as Python has them and as the client does.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyString, PyTuple};
use tpad_manifest::{BlockKey, ExpertKey, TierId};

/// A tier's id: text or a number.
pub(crate) fn tier(value: &Bound<'_, PyAny>) -> PyResult<TierId> {
    let wrong = |error: tpad_manifest::TierIdError| PyValueError::new_err(error.to_string());
    if let Ok(text) = value.cast::<PyString>() {
        return text.to_cow()?.parse().map_err(wrong);
    }
    if value.is_instance_of::<PyInt>() {
        return value.extract::<i64>()?.to_string().parse().map_err(wrong);
    }
    Err(PyTypeError::new_err(format!("a tier's id is a str or an int, not {}", value.get_type())))
}

/// An expert at a layer: a `BlockKey` or any four values in its order.
pub(crate) fn expert(value: &Bound<'_, PyAny>) -> PyResult<BlockKey> {
    let parts = value.cast::<PyTuple>().ok().filter(|parts| parts.len() == 4);
    let parts = parts.ok_or_else(|| {
        PyTypeError::new_err("a key is a BlockKey, or a tuple of (tier, group, expert, layer)")
    })?;
    let number = |at: usize| parts.get_borrowed_item(at)?.extract::<u32>();
    let tier = tier(&*parts.get_borrowed_item(0)?)?;
    let key = ExpertKey { tier, group: number(1)?, expert: number(2)? };
    Ok(BlockKey::Expert { key, layer: number(3)? })
}

/// Several of them.
pub(crate) fn experts(values: &Bound<'_, PyAny>) -> PyResult<Vec<BlockKey>> {
    values.try_iter()?.map(|value| expert(&value?)).collect()
}

/// What Python has of a key: a `BlockKey`, a `RouterKey`, or a dense tensor's name.
pub(crate) fn to_python(py: Python<'_>, key: &BlockKey) -> PyResult<Py<PyAny>> {
    static EXPERT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static ROUTER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    Ok(match key {
        BlockKey::Expert { key: ExpertKey { tier, group, expert }, layer } => {
            let class = EXPERT.import(py, "tpad._keys", "BlockKey")?;
            class.call1((tier.to_string(), group, expert, layer))?.unbind()
        }
        BlockKey::Router { tier, layer } => {
            let class = ROUTER.import(py, "tpad._keys", "RouterKey")?;
            class.call1((tier.to_string(), layer))?.unbind()
        }
        BlockKey::Dense { name } => PyString::new(py, name).into_any().unbind(),
    })
}

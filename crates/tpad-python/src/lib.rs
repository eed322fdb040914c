//! The Python package `tpad`, beneath its Python: blocks of a daemon as tensors that lie where
//! the daemon keeps them. What people import is in `python/tpad`; `docs/python.md` tells of it.

mod block;
mod connection;
mod describe;
mod dlpack;
mod errors;
mod expected;
mod gpu;
mod keys;
mod lease;
mod mask;
mod pending;
mod prefetch;
mod publish;
mod router;
mod runtime;
mod source;
mod tensor;

use pyo3::prelude::*;

/// The native half of `tpad`.
#[pymodule]
mod _tpad {
    #[pymodule_export]
    use crate::block::Block;
    #[pymodule_export]
    use crate::connection::{Connection, connect, default_address};
    #[pymodule_export]
    use crate::expected::expect;
    #[pymodule_export]
    use crate::gpu::{open_device, pending};
    #[pymodule_export]
    use crate::mask::{Mask, Tier, Watch, mask, watch};
    #[pymodule_export]
    use crate::pending::Pending;
    #[pymodule_export]
    use crate::prefetch::Prefetch;
    #[pymodule_export]
    use crate::publish::{
        activate, add_tier, history, import_checkpoint, publish_document, rollback,
    };
    #[pymodule_export]
    use crate::router::Router;
    #[pymodule_export]
    use crate::runtime::Task;
    #[pymodule_export]
    use crate::tensor::Tensor;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}

//! Why a checkpoint's layout is refused.

use std::sync::Arc;

/// Why a checkpoint's layout is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No tensor looks like an expert's.
    #[error(
        "no experts in a known layout among {tensors} tensors; the names look like {}",
        sample.join(", ")
    )]
    Unrecognised {
        /// How many tensors there are.
        tensors: usize,
        /// Some of their names.
        sample: Vec<Arc<str>>,
    },
}

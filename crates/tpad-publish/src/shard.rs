//! Shards: safetensors files, of which only the header is read here.

use std::sync::Arc;

use tpad_manifest::Dtype;

/// One tensor as a shard's header lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardTensor {
    /// The name in the checkpoint.
    pub name: Arc<str>,
    /// The element type.
    pub dtype: Dtype,
    /// The shape; empty for a scalar.
    pub shape: Vec<u64>,
    /// The shard's path, relative to the checkpoint's root.
    pub object: Arc<str>,
    /// The first byte, counted from the shard's start.
    pub offset: u64,
    /// The size, which equals type times shape where the type is known.
    pub bytes: u64,
}

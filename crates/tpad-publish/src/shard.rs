//! Shards: safetensors files, of which only the header is read here.
//!
//! The reader is our own because what it reads comes from strangers: the
//! `safetensors` crate lets the last of two equal names win, accepts headers
//! that need gigabytes to hold, and tells nothing about bytes that no tensor
//! owns. A header that passes here describes every byte of its file exactly
//! once.

mod error;
mod header;

use std::sync::Arc;

use tpad_manifest::Dtype;

pub use error::{HeaderFault, ShardError};
pub(crate) use header::PREFIX_BYTES;
pub use header::{
    MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_RANK, header_end, parse_header,
};

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

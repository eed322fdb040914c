//! What can be wrong with a shard's header.

use std::sync::Arc;

use tpad_manifest::{Dtype, SizeError};

use super::{MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_RANK};

/// A shard was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {fault}")]
pub struct ShardError {
    /// The shard's path, relative to the checkpoint's root.
    pub object: Arc<str>,
    /// What is wrong with its header.
    #[source]
    pub fault: HeaderFault,
}

/// What is wrong with a safetensors header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// The file cannot hold the eight bytes of a header's length.
    #[error("the file has {0} bytes, which is too short for a safetensors file")]
    Short(u64),
    /// The header is longer than this reader accepts.
    #[error(
        "the header claims {0} bytes, more than the {MAX_HEADER_BYTES} that are accepted: this is \
         no safetensors file, or it should be split into shards"
    )]
    TooLarge(u64),
    /// The header does not end inside the file.
    #[error("the header claims {header} bytes in a file of {file}: the file is truncated")]
    BeyondFile {
        /// The length that the header claims.
        header: u64,
        /// The file's size.
        file: u64,
    },
    /// The header does not start with an opening brace.
    #[error("the header does not start with '{{': this is no safetensors file")]
    NotAnObject,
    /// The header is no JSON, or JSON of another shape.
    #[error("the header is malformed: {0}")]
    Malformed(String),
    /// Two tensors have one name.
    #[error("the header names {0:?} twice")]
    DuplicateName(String),
    /// A tensor's name is empty or too long.
    #[error("a tensor's name has {0} bytes: 1 to {MAX_NAME_BYTES} are accepted")]
    NameLength(usize),
    /// A tensor has too many dimensions.
    #[error("tensor {0:?} has more than {MAX_RANK} dimensions")]
    Rank(Arc<str>),
    /// The shapes of all tensors together are too long.
    #[error("the shapes up to tensor {0:?} have more than {MAX_DIMENSIONS} dimensions together")]
    Dimensions(Arc<str>),
    /// A tensor's type and shape give no size.
    #[error("tensor {name:?}: {error}")]
    Size {
        /// The tensor.
        name: Arc<str>,
        /// Why there is no size.
        #[source]
        error: SizeError,
    },
    /// A tensor ends before it begins.
    #[error("tensor {name:?} has data_offsets [{begin}, {end}], which end before they begin")]
    Backwards {
        /// The tensor.
        name: Arc<str>,
        /// Its first byte in the data section.
        begin: u64,
        /// The byte after its last.
        end: u64,
    },
    /// A tensor's offsets disagree with its type and shape.
    #[error(
        "tensor {name:?} has {actual} bytes by its data_offsets, but {dtype} {shape:?} takes \
         {expected}"
    )]
    WrongSize {
        /// The tensor.
        name: Arc<str>,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes by type and shape.
        expected: u64,
        /// Bytes by offsets.
        actual: u64,
    },
    /// Bytes that no tensor owns.
    #[error("{bytes} bytes before tensor {name:?} belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        name: Arc<str>,
        /// The hole's size.
        bytes: u64,
    },
    /// Bytes that two tensors own.
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap {
        /// The tensor that begins first.
        first: Arc<str>,
        /// The tensor that begins inside it.
        second: Arc<str>,
    },
    /// The file's size is not what header and tensors take together.
    #[error("header and tensors take {expected} bytes, the file has {actual}: {}", length(*.expected, *.actual))]
    WrongLength {
        /// Header and tensors.
        expected: u64,
        /// The file.
        actual: u64,
    },
    /// Offsets in the file do not fit in 64 bits.
    #[error("tensor {0:?} ends beyond 64 bits")]
    Overflow(Arc<str>),
}

fn length(expected: u64, actual: u64) -> &'static str {
    if actual < expected { "it is truncated" } else { "the rest belongs to no tensor" }
}

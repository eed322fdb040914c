//! Blocks as they arrive.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tpad_manifest::{BlockId, BlockKey, Dtype, GateUp, Orientation, Role, Source};

/// A block with its bytes, or, received into memory of the caller's, with where
/// they are: [`PlacedBlock`].
#[derive(Clone, Debug)]
pub struct FetchedBlock<B = Bytes> {
    /// What it is.
    pub key: BlockKey,
    /// The BLAKE3 digest of the image.
    pub id: BlockId,
    /// The expert's number and router column in the checkpoint it came from;
    /// `None` for routers and dense tensors.
    pub source: Option<Source>,
    /// The medium that the daemon read the bytes from.
    pub medium: Medium,
    /// The tensors in image order.
    pub tensors: Vec<Tensor<B>>,
    /// The image: the tensors, each on a 256-byte boundary of the image, zero
    /// padded. Where it starts in memory is not aligned to anything.
    pub image: B,
}

/// A block in memory of the caller's: the image and its tensors are ranges of that
/// memory.
pub type PlacedBlock = FetchedBlock<Range<usize>>;

/// One tensor of a block.
#[derive(Clone, Debug)]
pub struct Tensor<B = Bytes> {
    /// The name in the checkpoint it came from. Experts cut from one stacked
    /// tensor share its name.
    pub name: Arc<str>,
    /// The element type.
    pub dtype: Dtype,
    /// Stored elements in each dimension, the slowest first; a slice of a
    /// stacked tensor has lost the expert axis. A router's rows are the
    /// tier's experts, in order of groups and experts.
    pub shape: Vec<u64>,
    /// What the tensor is for.
    pub role: Role,
    /// Which axis is which.
    pub orientation: Orientation,
    /// How gate and up share a fused tensor.
    pub gate_up: GateUp,
    /// Logical values in one stored element.
    pub values_per_element: u32,
    /// Whether this is one expert's slice of a stacked tensor.
    pub sliced: bool,
    /// The elements as safetensors stores them, row by row, numbers with their
    /// lowest byte first: a slice of the image, not a copy.
    pub bytes: B,
}

/// What the level that served a block is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Medium {
    /// GPU memory.
    Hbm,
    /// Host memory.
    Dram,
    /// Local disk.
    Nvme,
    /// The object store that holds the checkpoint.
    ObjectStore,
    /// The daemon does not say.
    Unknown,
}

impl Medium {
    /// The medium's name, as status and metrics write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hbm => "hbm",
            Self::Dram => "dram",
            Self::Nvme => "nvme",
            Self::ObjectStore => "object_store",
            Self::Unknown => "unknown",
        }
    }
}

//! Blocks: the unit that is fetched, verified, cached and evicted.

use crate::{BlockId, ImageLayout, SizeError, TensorRecord};

/// Where an expert came from, so that an engine which knows "expert 37 of
/// layer 5" finds its key, and the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The expert's number in the checkpoint it came from.
    pub expert: u32,
    /// The router's column (a row of its weight) that scores it.
    pub column: u32,
}

/// All that is known of one block without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRecord {
    /// The digest of the image.
    pub id: BlockId,
    /// The tensors in the order in which the image holds them.
    pub tensors: Vec<TensorRecord>,
    /// The source expert; `None` for routers and dense tensors.
    pub source: Option<Source>,
}

impl BlockRecord {
    /// Where the tensors lie in the image.
    ///
    /// # Errors
    /// When a tensor has no size or the image overflows.
    pub fn layout(&self) -> Result<ImageLayout, SizeError> {
        let sizes: Result<Vec<u64>, SizeError> =
            self.tensors.iter().map(TensorRecord::bytes).collect();
        ImageLayout::of(sizes?)
    }

    /// Logical parameters of the block.
    ///
    /// # Errors
    /// When the count overflows.
    pub fn parameters(&self) -> Result<u64, SizeError> {
        self.tensors.iter().try_fold(0u64, |sum, tensor| {
            sum.checked_add(tensor.parameters()?)
                .ok_or_else(|| SizeError::Overflow(tensor.shape.clone(), tensor.dtype.clone()))
        })
    }
}

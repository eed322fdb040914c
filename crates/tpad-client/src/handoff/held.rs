//! Blocks in the daemon's memory, as long as they are held.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use tpad_manifest::{BlockId, BlockKey, Dtype, GateUp, Orientation, Role, Source};

use super::directories::{Cell, Counted};
use super::link::Lease;
use super::slabs::Slab;
use crate::{Medium, PlacedBlock};

/// A block where the daemon keeps it: its image, read-only and not copied. Clones hold
/// it together; the last that is dropped gives it back, whatever has become of the
/// daemon and of the [`Handoff`](super::Handoff).
///
/// What it borrows out cannot outlive it:
///
/// ```compile_fail,E0505
/// fn first(block: tpad_client::HeldBlock) -> Option<u8> {
///     let tensor = block.tensors().next()?;
///     drop(block);
///     tensor.bytes.first().copied()
/// }
/// ```
///
/// A forked child has none of it: its parent's blocks are not mapped there.
#[derive(Clone)]
pub struct HeldBlock(Arc<Inner>);

struct Inner {
    /// What it is, from the start of its slot.
    block: Arc<PlacedBlock>,
    /// Where its slot begins in the slab.
    start: usize,
    medium: Medium,
    // Before the guard: whoever hears of its end sees that the slab is not used.
    slab: Arc<Slab>,
    _guard: Guard,
}

/// What keeps a slot as it is.
#[derive(Debug)]
#[expect(dead_code, reason = "a guard is there to be dropped")]
pub(super) enum Guard {
    /// The daemon's word.
    Lease(Lease, Counted),
    /// This worker's own.
    Cell(Cell),
}

/// One tensor of a block that is held.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The name in the checkpoint it came from. Experts cut from one stacked tensor share
    /// its name.
    pub name: &'a str,
    /// The element type.
    pub dtype: &'a Dtype,
    /// Stored elements in each dimension, the slowest first.
    pub shape: &'a [u64],
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
    /// The elements, as [`Tensor::bytes`](crate::Tensor::bytes) has them. Their first is
    /// on a 256-byte boundary of memory.
    pub bytes: &'a [u8],
}

impl HeldBlock {
    /// The block, whose image begins at `start` of the slab and lies within it with all
    /// its tensors; `None` if it does not.
    pub(super) fn new(
        block: Arc<PlacedBlock>,
        start: usize,
        slab: Arc<Slab>,
        medium: Medium,
        guard: Guard,
    ) -> Option<Self> {
        lies_within(&block, start, slab.bytes())
            .then(|| Self(Arc::new(Inner { block, start, medium, slab, _guard: guard })))
    }

    fn bytes(&self, range: &Range<usize>) -> &[u8] {
        let Inner { start, slab, .. } = &*self.0;
        slab.slice(start + range.start..start + range.end)
    }

    /// What it is.
    #[must_use]
    pub fn key(&self) -> &BlockKey {
        &self.0.block.key
    }

    /// The BLAKE3 digest of the image, which the daemon has checked.
    #[must_use]
    pub fn id(&self) -> &BlockId {
        &self.0.block.id
    }

    /// The expert's number and router column in the checkpoint it came from; `None` for
    /// routers and dense tensors.
    #[must_use]
    pub fn source(&self) -> Option<Source> {
        self.0.block.source
    }

    /// The medium that the daemon found it in.
    #[must_use]
    pub fn medium(&self) -> Medium {
        self.0.medium
    }

    /// The image: the tensors, each on a 256-byte boundary, zero padded. It begins on a
    /// page boundary.
    #[must_use]
    pub fn image(&self) -> &[u8] {
        self.bytes(&self.0.block.image)
    }

    /// The tensors, in image order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.0.block.tensors.iter().map(|tensor| TensorView {
            name: &tensor.name,
            dtype: &tensor.dtype,
            shape: &tensor.shape,
            role: tensor.role,
            orientation: tensor.orientation,
            gate_up: tensor.gate_up,
            values_per_element: tensor.values_per_element,
            sliced: tensor.sliced,
            bytes: self.bytes(&tensor.bytes),
        })
    }
}

/// Whether a block whose image begins at `start` of a slab of so many bytes lies within it
/// with all its tensors.
pub(super) fn lies_within(block: &PlacedBlock, start: usize, slab_bytes: usize) -> bool {
    let inside = |range: &Range<usize>| range.start <= range.end && range.end <= block.image.end;
    start.checked_add(block.image.end).is_some_and(|end| end <= slab_bytes)
        && inside(&block.image)
        && block.tensors.iter().all(|tensor| inside(&tensor.bytes))
}

impl Deref for HeldBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.image()
    }
}

impl fmt::Debug for HeldBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlacedBlock { key, id, image, .. } = &*self.0.block;
        let mut held = f.debug_struct("HeldBlock");
        held.field("key", key).field("id", id).field("bytes", &image.len()).finish_non_exhaustive()
    }
}

//! Tensors: what one is, and where its bytes lie.

use std::sync::Arc;

use crate::{Dtype, SizeError};

/// The linear map of an expert or router that a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// The gate of a gated MLP.
    Gate,
    /// The up projection.
    Up,
    /// The down projection.
    Down,
    /// Gate and up in one tensor.
    GateUp,
    /// The router.
    Router,
    /// What scores a whole tier, where the tier brings it.
    TierHead,
    /// What scores the groups of a tier, where the tier brings it.
    GroupHeads,
    /// Anything else, dense tensors among them.
    Other,
}

/// What a tensor does for its projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The weight, packed or not.
    Weight,
    /// An additive bias.
    Bias,
    /// The weight's scales, per tensor, channel or block.
    Scale,
    /// A second-level scale over the scales.
    GlobalScale,
    /// The activation's scale.
    InputScale,
    /// Zero points.
    ZeroPoint,
    /// The order of quantization groups (`g_idx`).
    GroupIndex,
    /// The unpacked weight's shape, stored as a tensor.
    Shape,
    /// A router's score correction bias: it steers selection, not weights.
    CorrectionBias,
}

/// A tensor's place in its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Role {
    /// Which linear map.
    pub projection: Projection,
    /// What it does there.
    pub part: Part,
}

/// Which axis of a weight is which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Orientation {
    /// The layout does not tell, or the tensor is no matrix.
    Unknown,
    /// `[out, in]`, as `torch.nn.Linear` stores it.
    OutIn,
    /// `[in, out]`.
    InOut,
}

/// How gate and up share a fused tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GateUp {
    /// The tensor is not fused, or the layout does not tell.
    Unknown,
    /// All of gate, then all of up, along the output axis.
    Concatenated,
    /// Gate and up alternate along the output axis.
    Interleaved,
}

/// A piece of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// The object's path, relative to the checkpoint's root.
    pub object: Arc<str>,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// One tensor of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRecord {
    /// The tensor's name in the checkpoint it came from.
    pub name: Arc<str>,
    /// The element type.
    pub dtype: Dtype,
    /// The shape of this block's part: a slice of a stacked tensor has lost
    /// the expert axis.
    pub shape: Vec<u64>,
    /// What the tensor is for.
    pub role: Role,
    /// Which axis is which.
    pub orientation: Orientation,
    /// How gate and up share it.
    pub gate_up: GateUp,
    /// Logical values in one stored element: 8 for INT4 in I32, 2 for FP4 in
    /// U8, else 1.
    pub values_per_element: u32,
    /// Whether this is one expert's slice of a stacked tensor.
    pub sliced: bool,
    /// Where the bytes lie, in the order in which they form the tensor.
    pub ranges: Vec<ByteRange>,
}

impl TensorRecord {
    /// The tensor's size in bytes, from its type and shape.
    ///
    /// # Errors
    /// As [`Dtype::tensor_bytes`].
    pub fn bytes(&self) -> Result<u64, SizeError> {
        self.dtype.tensor_bytes(&self.shape)
    }

    /// The parameters that the tensor adds to its tier's count: weights
    /// unpacked, and biases; scales, zero points and the like add none.
    ///
    /// # Errors
    /// When the count overflows.
    pub fn parameters(&self) -> Result<u64, SizeError> {
        if !matches!(self.role.part, Part::Weight | Part::Bias) {
            return Ok(0);
        }
        self.shape
            .iter()
            .try_fold(u64::from(self.values_per_element), |n, dim| n.checked_mul(*dim))
            .ok_or_else(|| SizeError::Overflow(self.shape.clone(), self.dtype.clone()))
    }
}

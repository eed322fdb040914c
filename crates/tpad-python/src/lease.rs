//! A block, wherever its bytes are, as long as anybody looks at it.

use tpad_client::{FetchedBlock, HeldBlock, HeldDeviceBlock, Medium};
use tpad_manifest::{
    BlockId, BlockKey, Dtype, GateUp, Orientation, Part, Projection, Role, Source,
};

use crate::gpu::OnGpu;

/// Where a block's bytes are.
#[derive(Debug)]
pub(crate) enum Lease {
    /// In the daemon's memory.
    Held(HeldBlock),
    /// In memory of this process, into which they were received.
    Fetched(FetchedBlock),
    /// In a GPU's memory, where the daemon keeps it.
    OnGpu(HeldDeviceBlock, OnGpu),
}

/// One tensor of a block: what it is and where its bytes begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: &'a Dtype,
    pub(crate) shape: &'a [u64],
    pub(crate) role: Role,
    pub(crate) orientation: Orientation,
    pub(crate) gate_up: GateUp,
    pub(crate) values_per_element: u32,
    pub(crate) sliced: bool,
    /// In this process's address space, or the device's.
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

impl Lease {
    pub(crate) fn key(&self) -> &BlockKey {
        match self {
            Self::Held(block) => block.key(),
            Self::Fetched(block) => &block.key,
            Self::OnGpu(block, _) => block.key(),
        }
    }

    pub(crate) fn id(&self) -> &BlockId {
        match self {
            Self::Held(block) => block.id(),
            Self::Fetched(block) => &block.id,
            Self::OnGpu(block, _) => block.id(),
        }
    }

    pub(crate) fn source(&self) -> Option<Source> {
        match self {
            Self::Held(block) => block.source(),
            Self::Fetched(block) => block.source,
            Self::OnGpu(block, _) => block.source(),
        }
    }

    pub(crate) fn medium(&self) -> Medium {
        match self {
            Self::Held(block) => block.medium(),
            Self::Fetched(block) => block.medium,
            Self::OnGpu(..) => Medium::Hbm,
        }
    }

    pub(crate) fn image_bytes(&self) -> usize {
        match self {
            Self::Held(block) => block.image().len(),
            Self::Fetched(block) => block.image.len(),
            Self::OnGpu(block, _) => block.image_bytes(),
        }
    }

    pub(crate) fn device(&self) -> Option<&OnGpu> {
        match self {
            Self::OnGpu(_, device) => Some(device),
            Self::Held(_) | Self::Fetched(_) => None,
        }
    }

    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Held(block) => block.tensors().len(),
            Self::Fetched(block) => block.tensors.len(),
            Self::OnGpu(block, _) => block.tensors().len(),
        }
    }

    /// The tensor at a place of the image's order.
    pub(crate) fn tensor(&self, at: usize) -> Option<Facts<'_>> {
        match self {
            Self::Held(block) => block.tensors().nth(at).map(|tensor| Facts {
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
                role: tensor.role,
                orientation: tensor.orientation,
                gate_up: tensor.gate_up,
                values_per_element: tensor.values_per_element,
                sliced: tensor.sliced,
                address: tensor.bytes.as_ptr().addr() as u64,
                bytes: tensor.bytes.len() as u64,
            }),
            Self::Fetched(block) => block.tensors.get(at).map(|tensor| Facts {
                name: &tensor.name,
                dtype: &tensor.dtype,
                shape: &tensor.shape,
                role: tensor.role,
                orientation: tensor.orientation,
                gate_up: tensor.gate_up,
                values_per_element: tensor.values_per_element,
                sliced: tensor.sliced,
                address: tensor.bytes.as_ptr().addr() as u64,
                bytes: tensor.bytes.len() as u64,
            }),
            Self::OnGpu(block, _) => block.tensors().nth(at).map(|tensor| Facts {
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
                role: tensor.role,
                orientation: tensor.orientation,
                gate_up: tensor.gate_up,
                values_per_element: tensor.values_per_element,
                sliced: tensor.sliced,
                address: tensor.address,
                bytes: tensor.bytes,
            }),
        }
    }

    /// All tensors, in image order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = Facts<'_>> {
        (0..self.count()).filter_map(|at| self.tensor(at))
    }

    /// The bytes of a tensor in host memory.
    pub(crate) fn bytes(&self, at: usize) -> Option<&[u8]> {
        match self {
            Self::Held(block) => block.tensors().nth(at).map(|tensor| tensor.bytes),
            Self::Fetched(block) => block.tensors.get(at).map(|tensor| &*tensor.bytes),
            Self::OnGpu(..) => None,
        }
    }
}

/// A projection by the name that Python has for it.
pub(crate) const fn projection(projection: Projection) -> &'static str {
    match projection {
        Projection::Gate => "gate",
        Projection::Up => "up",
        Projection::Down => "down",
        Projection::GateUp => "gate_up",
        Projection::Router => "router",
        Projection::TierHead => "tier_head",
        Projection::GroupHeads => "group_heads",
        Projection::Other => "other",
    }
}

/// A part by the name that Python has for it.
pub(crate) const fn part(part: Part) -> &'static str {
    match part {
        Part::Weight => "weight",
        Part::Bias => "bias",
        Part::Scale => "scale",
        Part::GlobalScale => "global_scale",
        Part::InputScale => "input_scale",
        Part::ZeroPoint => "zero_point",
        Part::GroupIndex => "group_index",
        Part::Shape => "shape",
        Part::CorrectionBias => "correction_bias",
    }
}

/// Which axis is which; `None` where the layout does not tell.
pub(crate) const fn orientation(orientation: Orientation) -> Option<&'static str> {
    match orientation {
        Orientation::Unknown => None,
        Orientation::OutIn => Some("out_in"),
        Orientation::InOut => Some("in_out"),
    }
}

/// How gate and up share a tensor; `None` where they do not.
pub(crate) const fn gate_up(gate_up: GateUp) -> Option<&'static str> {
    match gate_up {
        GateUp::Unknown => None,
        GateUp::Concatenated => Some("concatenated"),
        GateUp::Interleaved => Some("interleaved"),
    }
}

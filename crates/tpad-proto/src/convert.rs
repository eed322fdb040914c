//! Keys, tensors and blocks, to the wire and back.

use tpad_manifest::{
    BlockId, BlockKey, BlockRecord, ByteRange, ExpertKey, Role, SizeError, Source, TensorRecord,
    TierIdError,
};

use crate::v1;

/// Why a message from a peer does not convert.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be set is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A tier id that no manifest can hold.
    #[error("tier: {0}")]
    Tier(#[from] TierIdError),
    /// A block id of another length.
    #[error("block_id has {0} bytes, 32 are expected")]
    BlockIdLength(usize),
    /// A number that this version's enum does not have.
    #[error("{field} is {value}, which this version does not know")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: i32,
    },
    /// A source expert without its router column, or the reverse.
    #[error("source_expert and router_column come together or not at all")]
    HalfSource,
    /// Tensors whose size is unknown or overflows.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A tensor that does not lie where the image's layout puts it.
    #[error(
        "tensor {name:?} is said to be {bytes} bytes at {offset}, its image has {expected_bytes} at {expected_offset}"
    )]
    Layout {
        /// The tensor.
        name: String,
        /// Where the message puts it.
        offset: u64,
        /// How long the message says that it is.
        bytes: u64,
        /// Where the layout puts it.
        expected_offset: u64,
        /// What its dtype and shape make.
        expected_bytes: u64,
    },
    /// A bitset of another length, or with bits beyond its experts.
    #[error("{bytes} bytes are no bitset of {experts} experts")]
    Bits {
        /// The experts that it announces.
        experts: u32,
        /// Its bytes.
        bytes: usize,
    },
    /// A list of another length than what it goes with.
    #[error("{field} has {found} entries, {expected} are expected")]
    Length {
        /// The list.
        field: &'static str,
        /// How long it is.
        found: usize,
        /// How long it should be.
        expected: usize,
    },
    /// An image size that is not the layout's.
    #[error("image_bytes is {found}, the tensors make {expected}")]
    ImageBytes {
        /// What the message says.
        found: u64,
        /// What the tensors make.
        expected: u64,
    },
}

impl From<&ExpertKey> for v1::ExpertKey {
    fn from(key: &ExpertKey) -> Self {
        Self { tier: key.tier.to_string(), group: key.group, expert: key.expert }
    }
}

impl TryFrom<v1::ExpertKey> for ExpertKey {
    type Error = WireError;

    /// Digits become an integer id; whether the manifest spells the tier as a
    /// string is for the reader of the manifest, which compares by text.
    fn try_from(key: v1::ExpertKey) -> Result<Self, WireError> {
        Ok(Self { tier: key.tier.parse()?, group: key.group, expert: key.expert })
    }
}

impl TryFrom<v1::ExpertAtLayer> for (ExpertKey, u32) {
    type Error = WireError;

    fn try_from(at: v1::ExpertAtLayer) -> Result<Self, WireError> {
        let key = at.key.ok_or(WireError::Missing("key"))?;
        Ok((key.try_into()?, at.layer))
    }
}

impl From<&BlockKey> for v1::BlockKey {
    fn from(key: &BlockKey) -> Self {
        use v1::block_key::Key;
        let key = match key {
            BlockKey::Expert { key, layer } => {
                Key::Expert(v1::ExpertAtLayer { key: Some(key.into()), layer: *layer })
            }
            BlockKey::Router { tier, layer } => {
                Key::Router(v1::RouterAtLayer { tier: tier.to_string(), layer: *layer })
            }
            BlockKey::Dense { name } => Key::Dense(name.to_string()),
        };
        Self { key: Some(key) }
    }
}

impl TryFrom<v1::BlockKey> for BlockKey {
    type Error = WireError;

    fn try_from(key: v1::BlockKey) -> Result<Self, WireError> {
        use v1::block_key::Key;
        Ok(match key.key.ok_or(WireError::Missing("key"))? {
            Key::Expert(at) => {
                let (key, layer) = at.try_into()?;
                Self::Expert { key, layer }
            }
            Key::Router(at) => Self::Router { tier: at.tier.parse()?, layer: at.layer },
            Key::Dense(name) => Self::Dense { name: name.into() },
        })
    }
}

/// A tensor's description, lying at `offset` in its image. Where its bytes come
/// from stays here: it is the daemon's business.
///
/// # Errors
/// When the tensor has no size.
pub fn tensor(record: &TensorRecord, offset: u64) -> Result<v1::Tensor, SizeError> {
    Ok(v1::Tensor {
        name: record.name.to_string(),
        dtype: record.dtype.to_string(),
        shape: record.shape.clone(),
        offset,
        bytes: record.bytes()?,
        projection: v1::Projection::from(record.role.projection).into(),
        part: v1::Part::from(record.role.part).into(),
        orientation: v1::Orientation::from(record.orientation).into(),
        gate_up: v1::GateUp::from(record.gate_up).into(),
        values_per_element: record.values_per_element,
        sliced: record.sliced,
    })
}

/// The message that opens a block.
///
/// # Errors
/// When a tensor has no size or the image overflows.
pub fn block(
    key: &BlockKey,
    record: &BlockRecord,
    medium: v1::Medium,
) -> Result<v1::Block, SizeError> {
    let layout = record.layout()?;
    let tensors = record.tensors.iter().zip(&layout.offsets);
    Ok(v1::Block {
        key: Some(key.into()),
        block_id: bytes::Bytes::from_owner(*record.id.as_bytes()),
        image_bytes: layout.bytes,
        tensors: tensors
            .map(|(record, offset)| tensor(record, *offset))
            .collect::<Result<_, _>>()?,
        source_expert: record.source.map(|source| source.expert),
        router_column: record.source.map(|source| source.column),
        medium: medium.into(),
        ordinal: None,
        offset: 0,
    })
}

impl TryFrom<v1::Tensor> for TensorRecord {
    type Error = WireError;

    /// The record has no ranges: the wire does not say where bytes come from.
    fn try_from(tensor: v1::Tensor) -> Result<Self, WireError> {
        let projection = known(tensor.projection, "projection")?;
        let part = known(tensor.part, "part")?;
        Ok(Self {
            role: Role {
                projection: v1::Projection::try_into(projection)?,
                part: v1::Part::try_into(part)?,
            },
            orientation: known::<v1::Orientation>(tensor.orientation, "orientation")?.try_into()?,
            gate_up: known::<v1::GateUp>(tensor.gate_up, "gate_up")?.try_into()?,
            values_per_element: tensor.values_per_element,
            sliced: tensor.sliced,
            dtype: tensor.dtype.as_str().into(),
            name: tensor.name.into(),
            shape: tensor.shape,
            ranges: Vec::<ByteRange>::new(),
        })
    }
}

impl TryFrom<v1::Block> for (BlockKey, BlockRecord) {
    type Error = WireError;

    /// Checks that the tensors fill the image as [`BlockRecord::layout`] lays
    /// them out, so that its offsets may be used on the bytes that follow.
    fn try_from(block: v1::Block) -> Result<Self, WireError> {
        let id: [u8; 32] = (*block.block_id)
            .try_into()
            .map_err(|_| WireError::BlockIdLength(block.block_id.len()))?;
        let source = match (block.source_expert, block.router_column) {
            (Some(expert), Some(column)) => Some(Source { expert, column }),
            (None, None) => None,
            _ => return Err(WireError::HalfSource),
        };
        let places: Vec<(u64, u64)> = block.tensors.iter().map(|t| (t.offset, t.bytes)).collect();
        let record = BlockRecord {
            id: BlockId::from_bytes(id),
            tensors: block.tensors.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            source,
        };
        let layout = record.layout()?;
        for ((tensor, expected_offset), (offset, bytes)) in
            record.tensors.iter().zip(layout.offsets).zip(places)
        {
            let expected_bytes = tensor.bytes()?;
            if (offset, bytes) != (expected_offset, expected_bytes) {
                let name = tensor.name.to_string();
                return Err(WireError::Layout {
                    name,
                    offset,
                    bytes,
                    expected_offset,
                    expected_bytes,
                });
            }
        }
        if block.image_bytes != layout.bytes {
            return Err(WireError::ImageBytes { found: block.image_bytes, expected: layout.bytes });
        }
        Ok((block.key.ok_or(WireError::Missing("key"))?.try_into()?, record))
    }
}

fn known<E: TryFrom<i32>>(value: i32, field: &'static str) -> Result<E, WireError> {
    E::try_from(value).map_err(|_| WireError::UnknownValue { field, value })
}

#[cfg(test)]
mod tests;

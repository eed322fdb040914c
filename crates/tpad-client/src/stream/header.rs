//! A block's description, from the wire to checked types.

use std::ops::Range;

use tpad_manifest::{BlockKey, BlockRecord, TensorRecord};
use tpad_proto::v1;

use crate::{Error, FetchedBlock, ListedBlock, ListedTensor, Medium, PlacedBlock, Tensor};

/// A block without its bytes.
#[derive(Debug)]
pub(crate) struct Header {
    pub(super) key: BlockKey,
    pub(super) record: BlockRecord,
    medium: Medium,
    /// Its place in the stream's request, if the daemon says so.
    pub(super) ordinal: Option<u64>,
    /// Where in the image the payload begins.
    pub(super) offset: u64,
}

impl Header {
    /// The block around its whole image; `slice` cuts a tensor out of it.
    pub(crate) fn with_image<B>(
        self,
        image: B,
        slice: impl Fn(&B, Range<usize>) -> Option<B>,
    ) -> Result<FetchedBlock<B>, Error> {
        let wrong = |what: String| Error::protocol(self.key.to_string(), what);
        let layout = self.record.layout().map_err(|error| wrong(error.to_string()))?;
        let mut tensors = Vec::with_capacity(self.record.tensors.len());
        for (record, offset) in self.record.tensors.into_iter().zip(layout.offsets) {
            let bytes = record.bytes().map_err(|error| wrong(error.to_string()))?;
            let bytes = range(offset, bytes).and_then(|range| slice(&image, range));
            let Some(bytes) = bytes else {
                return Err(wrong(format!("tensor {} lies outside of the image", record.name)));
            };
            tensors.push(tensor(record, bytes));
        }
        Ok(FetchedBlock {
            key: self.key,
            id: self.record.id,
            source: self.record.source,
            medium: self.medium,
            tensors,
            image,
        })
    }
}

/// Reads a block's description. The conversion checks it against itself: every
/// tensor has the size that its shape says and lies where the rule for images
/// puts it, and the image is as large as its tensors need.
pub(super) fn header(block: v1::Block) -> Result<Header, Error> {
    let medium = medium(block.medium());
    let (ordinal, offset) = (block.ordinal, block.offset);
    let place = block.key.clone().and_then(|key| BlockKey::try_from(key).ok());
    let (key, record) = block.try_into().map_err(|error: tpad_proto::WireError| {
        let place = place.map_or_else(|| "block".to_owned(), |key| key.to_string());
        Error::protocol(place, error.to_string())
    })?;
    Ok(Header { key, record, medium, ordinal, offset })
}

/// A block of a list, with the same checks.
pub(crate) fn listed_block(block: v1::Block) -> Result<ListedBlock, Error> {
    let image_bytes = block.image_bytes;
    let places: Vec<(u64, u64)> =
        block.tensors.iter().map(|tensor| (tensor.offset, tensor.bytes)).collect();
    let Header { key, record, medium, .. } = header(block)?;
    let tensors = record.tensors.into_iter().zip(places);
    Ok(ListedBlock {
        key,
        id: record.id,
        image_bytes,
        source: record.source,
        medium,
        tensors: tensors
            .map(|(tensor, (offset, bytes))| ListedTensor {
                name: tensor.name.to_string(),
                dtype: tensor.dtype.to_string(),
                shape: tensor.shape,
                offset,
                bytes,
            })
            .collect(),
    })
}

/// A block that lies in memory from `start` on, with the same checks.
pub(crate) fn placed_block(block: v1::Block, start: usize) -> Result<PlacedBlock, Error> {
    let bytes = usize::try_from(block.image_bytes).ok();
    let header = header(block)?;
    let Some(end) = bytes.and_then(|bytes| start.checked_add(bytes)) else {
        return Err(Error::protocol(header.key.to_string(), "it ends beyond memory"));
    };
    header.with_image(start..end, |image, range| {
        let range = image.start + range.start..image.start.checked_add(range.end)?;
        (range.end <= image.end).then_some(range)
    })
}

fn range(offset: u64, bytes: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(usize::try_from(bytes).ok()?)?)
}

fn tensor<B>(record: TensorRecord, bytes: B) -> Tensor<B> {
    Tensor {
        name: record.name,
        dtype: record.dtype,
        shape: record.shape,
        role: record.role,
        orientation: record.orientation,
        gate_up: record.gate_up,
        values_per_element: record.values_per_element,
        sliced: record.sliced,
        bytes,
    }
}

fn medium(medium: v1::Medium) -> Medium {
    match medium {
        v1::Medium::Hbm => Medium::Hbm,
        v1::Medium::Dram => Medium::Dram,
        v1::Medium::Nvme => Medium::Nvme,
        v1::Medium::ObjectStore => Medium::ObjectStore,
        v1::Medium::Unspecified => Medium::Unknown,
    }
}

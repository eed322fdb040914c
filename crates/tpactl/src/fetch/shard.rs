//! Fetched blocks as one safetensors file.

use std::collections::btree_map::{BTreeMap, Entry};
use std::io::{self, Write};

use bytes::Bytes;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::Value;
use tpad_client::{FetchedBlock, Tensor};

use crate::failure::{Exit, Failure};

/// The safetensors header's length field and its alignment.
const WORD_BYTES: usize = 8;

/// The one name in a header that is no tensor's.
const METADATA: &str = "__metadata__";

/// A safetensors file, ready to be written.
#[derive(Debug)]
pub(super) struct Shard {
    header: Vec<u8>,
    tensors: Vec<Bytes>,
}

impl Shard {
    /// The file of all tensors of `blocks`, under the names that they have in
    /// the checkpoint.
    ///
    /// Two blocks may hold one tensor (equal name, shape and bytes): it is
    /// written once. Different tensors of one name do not fit one file.
    pub(super) fn of<'a>(
        blocks: &[FetchedBlock],
        metadata: impl Iterator<Item = (&'a str, String)>,
    ) -> Result<Self, Failure> {
        let mut named: BTreeMap<&str, (&FetchedBlock, &Tensor)> = BTreeMap::new();
        for block in blocks {
            for tensor in &block.tensors {
                match named.entry(&tensor.name) {
                    Entry::Vacant(entry) => {
                        entry.insert((block, tensor));
                    }
                    Entry::Occupied(entry) => {
                        let (other, first) = *entry.get();
                        if !same(first, tensor) {
                            return Err(collision(tensor, other, block));
                        }
                    }
                }
            }
        }
        // Wide types first, so that every tensor is aligned to its elements.
        let mut tensors = named
            .into_iter()
            .map(|(name, (_, tensor))| Ok((name, dtype(tensor)?, tensor)))
            .collect::<Result<Vec<_>, Failure>>()?;
        tensors.sort_by(|left, right| right.1.cmp(&left.1).then(left.0.cmp(right.0)));

        let mut end = 0;
        let mut infos = Vec::with_capacity(tensors.len());
        for (name, dtype, tensor) in &tensors {
            let start = end;
            end += tensor.bytes.len();
            let shape: Result<Vec<usize>, _> =
                tensor.shape.iter().map(|dim| usize::try_from(*dim)).collect();
            let shape = shape.map_err(|error| Failure::new(Exit::Internal, error))?;
            let info = TensorInfo { dtype: *dtype, shape, data_offsets: (start, end) };
            infos.push(((*name).to_owned(), info));
        }
        let header = header(infos, metadata.collect())?;
        let tensors = tensors.iter().map(|(.., tensor)| tensor.bytes.clone()).collect();
        Ok(Self { header: padded(header), tensors })
    }

    /// Writes the file.
    pub(super) fn write(&self, file: &mut impl Write) -> io::Result<()> {
        file.write_all(&(self.header.len() as u64).to_le_bytes())?;
        file.write_all(&self.header)?;
        self.tensors.iter().try_for_each(|bytes| file.write_all(bytes))
    }
}

/// The header in the order of its names: the library keeps the metadata in an
/// order of chance, and equal blocks shall make equal files.
fn header(
    infos: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<&str, String>,
) -> Result<Vec<u8>, Failure> {
    let internal = |error: serde_json::Error| Failure::new(Exit::Internal, error);
    let checked =
        Metadata::new(None, infos).map_err(|error| Failure::new(Exit::Internal, error))?;
    let checked = serde_json::to_value(&checked).map_err(internal)?;
    let mut header: BTreeMap<String, Value> = serde_json::from_value(checked).map_err(internal)?;
    let metadata = serde_json::to_value(&metadata).map_err(internal)?;
    header.insert(METADATA.to_owned(), metadata);
    serde_json::to_vec(&header).map_err(internal)
}

fn same(left: &Tensor, right: &Tensor) -> bool {
    left.dtype == right.dtype && left.shape == right.shape && left.bytes == right.bytes
}

fn collision(tensor: &Tensor, first: &FetchedBlock, second: &FetchedBlock) -> Failure {
    let message = format!(
        "{} and {} hold different tensors named {}: they do not fit one file",
        first.key, second.key, tensor.name
    );
    Failure::new(Exit::Usage, message)
        .remedy("fetch them into files of their own, with --tier or --layer")
}

fn dtype(tensor: &Tensor) -> Result<Dtype, Failure> {
    let name = serde_json::Value::from(tensor.dtype.name());
    serde_json::from_value(name).map_err(|_| {
        let message = format!("tensor {}: safetensors has no dtype {}", tensor.name, tensor.dtype);
        Failure::new(Exit::FailedPrecondition, message)
    })
}

fn padded(mut header: Vec<u8>) -> Vec<u8> {
    header.resize(header.len().next_multiple_of(WORD_BYTES), b' ');
    header
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;
    use tpad_client::Medium;
    use tpad_manifest::{BlockId, BlockKey, GateUp, Orientation, Part, Projection, Role, TierId};

    use super::*;

    fn block(layer: u32, name: &str, dtype: &str, shape: &[u64], bytes: &[u8]) -> FetchedBlock {
        let tensor: Tensor = Tensor {
            name: name.into(),
            dtype: dtype.into(),
            shape: shape.to_vec(),
            role: Role { projection: Projection::Router, part: Part::Weight },
            orientation: Orientation::OutIn,
            gate_up: GateUp::Unknown,
            values_per_element: 1,
            sliced: false,
            bytes: bytes.to_vec().into(),
        };
        FetchedBlock {
            key: BlockKey::Router { tier: TierId::Number(1), layer },
            id: BlockId::of(bytes),
            source: None,
            medium: Medium::Dram,
            image: tensor.bytes.clone(),
            tensors: vec![tensor],
        }
    }

    #[test]
    fn the_safetensors_library_reads_back_what_was_written() {
        let blocks = [
            block(0, "a", "U8", &[3], b"abc"),
            block(1, "b", "F32", &[1, 1], &1f32.to_le_bytes()),
            block(2, "c", "BF16", &[], &[1, 2]),
            block(3, "a", "U8", &[3], b"abc"),
        ];
        let shard = Shard::of(&blocks, [("tpad.model", "m".to_owned())].into_iter());
        let mut file = Vec::new();
        shard.expect("no collision").write(&mut file).expect("memory");
        let (_, header) = SafeTensors::read_metadata(&file).expect("a header");
        let metadata = header.metadata().clone().expect("metadata");
        assert_eq!(metadata["tpad.model"], "m");
        let read = SafeTensors::deserialize(&file).expect("a shard");
        assert_eq!(read.len(), 3);
        assert_eq!(read.tensor("a").expect("a").data(), b"abc");
        assert_eq!(read.tensor("b").expect("b").shape(), [1, 1]);
        assert_eq!(read.tensor("c").expect("c").dtype(), Dtype::BF16);
    }

    #[test]
    fn equal_blocks_make_equal_files() {
        let file = |order: [u32; 2]| {
            let blocks = order.map(|n| block(n, ["a", "B"][n as usize], "U8", &[1], &[7]));
            let metadata = ["x", "y", "z", "w"].map(|key| (key, key.to_owned()));
            let mut file = Vec::new();
            let shard = Shard::of(&blocks, metadata.into_iter());
            shard.expect("no collision").write(&mut file).expect("memory");
            file
        };
        let first = file([0, 1]);
        SafeTensors::deserialize(&first).expect("a shard");
        // Each has maps of its own, whose orders differ but by chance.
        for _ in 0..20 {
            assert_eq!(file([1, 0]), first);
        }
    }

    #[test]
    fn different_tensors_of_one_name_are_refused() {
        let blocks = [block(0, "a", "U8", &[1], b"x"), block(1, "a", "U8", &[1], b"y")];
        let failure = Shard::of(&blocks, std::iter::empty()).expect_err("a collision");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("layer 0") && failure.message.contains("layer 1"));
    }
}

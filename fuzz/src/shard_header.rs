//! A shard's header is refused, or it describes every byte of the file exactly
//! once, and in the way in which the safetensors crate reads it; experts that
//! are found in it lie where it says.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use crate::{bounded, bounded_by};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tpad_publish::{HeaderFault, ShardTensor, parse_header, recognise, shard_header_end};

/// Above this no data is laid behind a header, to compare with safetensors.
const MOST_DATA_BYTES: u64 = 1 << 20;

fn read(input: &[u8], file_bytes: u64) -> Result<Vec<ShardTensor>, HeaderFault> {
    let end = shard_header_end(input, file_bytes)?;
    let header = usize::try_from(end).ok().and_then(|end| input.get(8..end));
    let Some(header) = header else { return Err(HeaderFault::Short(file_bytes)) };
    parse_header(&Arc::from("x.safetensors"), header, file_bytes)
}

/// Reads an input: whether it is accepted.
///
/// # Panics
/// When it is neither refused nor right.
pub fn shard_header(input: &[u8]) -> bool {
    // The file is as long as its header wants it: the length is hard to guess.
    let length = input.len() as u64;
    let (tensors, file_bytes) = match bounded(input, || read(input, length)) {
        Ok(tensors) => (tensors, length),
        Err(HeaderFault::WrongLength { expected, .. }) => {
            (read(input, expected).expect("only its length was wrong"), expected)
        }
        Err(fault) => {
            assert!(fault.to_string().len() < 64 << 10, "a long refusal");
            return false;
        }
    };
    let mut end = shard_header_end(input, file_bytes).expect("it was read");
    let mut names = BTreeSet::new();
    for tensor in &tensors {
        assert!(names.insert(&tensor.name), "{} is there twice", tensor.name);
        assert_eq!(tensor.offset, end, "{} leaves a hole or overlaps", tensor.name);
        if let Ok(bytes) = tensor.dtype.tensor_bytes(&tensor.shape) {
            assert_eq!(bytes, tensor.bytes, "{} has another size", tensor.name);
        }
        end += tensor.bytes;
    }
    assert_eq!(end, file_bytes, "bytes behind the last tensor");
    agree(input, &tensors, file_bytes);
    experts(&tensors, file_bytes);
    true
}

/// What `config.json` says beside a shard.
static CONFIG: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 2,
        "num_experts_per_tok": 1, "hidden_size": 4, "intermediate_size": 3,
    })
});

/// A shard that is a whole checkpoint is refused, or its experts lie inside the
/// tensors of their names.
fn experts(tensors: &[ShardTensor], file_bytes: u64) {
    // Experts cost memory in proportion to the bytes that they have.
    let bytes = match usize::try_from(file_bytes) {
        Ok(bytes) if file_bytes <= MOST_DATA_BYTES => bytes,
        _ => return,
    };
    let Ok(checkpoint) = bounded_by(bytes, || recognise(tensors, &CONFIG)) else { return };
    let blocks = checkpoint.layers.iter().flat_map(|layer| &layer.experts);
    for record in blocks.chain(&checkpoint.dense).flat_map(|block| &block.tensors) {
        let whole = tensors.iter().find(|tensor| tensor.name == record.name);
        let whole = whole.expect("a block's tensor is one of the shard's");
        for range in &record.ranges {
            assert!(range.offset >= whole.offset, "{range:?} is before {}", whole.name);
            let end = range.offset + range.bytes;
            assert!(end <= whole.offset + whole.bytes, "{range:?} is beyond {}", whole.name);
        }
    }
}

/// What is accepted here is accepted by the format's own reader, and means the
/// same; types that it does not know are not compared.
fn agree(input: &[u8], tensors: &[ShardTensor], file_bytes: u64) {
    let known = |tensor: &ShardTensor| tensor.dtype.bits().is_some();
    if file_bytes > MOST_DATA_BYTES || !tensors.iter().all(known) {
        return;
    }
    let mut file = input.to_vec();
    file.resize(usize::try_from(file_bytes).expect("small"), 0);
    let theirs = SafeTensors::deserialize(&file).expect("the format's own reader accepts it");
    assert_eq!(theirs.len(), tensors.len(), "another number of tensors");
    for ours in tensors {
        let theirs = theirs.tensor(&ours.name).expect("a tensor of the same name");
        assert_eq!(theirs.dtype().to_string(), ours.dtype.name(), "{}", ours.name);
        let shape: Vec<u64> = theirs.shape().iter().map(|dim| *dim as u64).collect();
        assert_eq!(shape, ours.shape, "{}", ours.name);
        let offset = theirs.data().as_ptr() as usize - file.as_ptr() as usize;
        assert_eq!(offset as u64, ours.offset, "{}", ours.name);
    }
}

//! Reads a safetensors header: strictly, in one pass, without building a tree.

mod json;

use std::sync::Arc;

use tpad_manifest::SizeError;

use super::{HeaderFault, ShardTensor};

/// The longest header that is read. The largest published shards need 2 MiB;
/// the whole of a model of 120,000 tensors in one shard needs 16.03 MiB.
/// Reading the worst header of this size takes less than 64 MiB beyond it.
pub const MAX_HEADER_BYTES: u64 = 18 << 20;

/// The longest tensor name; the longest published ones have about 100 bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// The most dimensions; NumPy has the same limit.
pub const MAX_RANK: usize = 64;

/// The most dimensions of all tensors together: a dimension takes two bytes of
/// a header and eight in memory. Models have two or three to a tensor.
pub const MAX_DIMENSIONS: usize = 1 << 20;

/// The fewest bytes that describe a tensor: `"":{"dtype":"","shape":[],"data_offsets":[0,0]}`.
const MIN_ENTRY_BYTES: usize = 48;

/// The bytes that give the header's length.
pub(crate) const PREFIX_BYTES: usize = 8;

/// Where the header ends, counted from the start of the file, of `file_bytes`
/// bytes, that begins with `prefix`.
///
/// # Errors
/// When the prefix is cut off, or claims a header that is too large or does not
/// end inside the file.
pub fn header_end(prefix: &[u8], file_bytes: u64) -> Result<u64, HeaderFault> {
    let length = prefix.first_chunk::<PREFIX_BYTES>().ok_or(HeaderFault::Short(file_bytes))?;
    let header = u64::from_le_bytes(*length);
    if header > MAX_HEADER_BYTES {
        return Err(HeaderFault::TooLarge(header));
    }
    let end = header + PREFIX_BYTES as u64;
    if end > file_bytes {
        return Err(HeaderFault::BeyondFile { header, file: file_bytes });
    }
    Ok(end)
}

/// Lists the tensors of the shard `object` in the order of their bytes.
///
/// `header` is the JSON alone, without its length; `file_bytes` is the size of
/// the whole file. The memory taken is at most some four times the header's size.
///
/// # Errors
/// The first thing that keeps the header from describing every byte of the
/// file exactly once.
pub fn parse_header(
    object: &Arc<str>,
    header: &[u8],
    file_bytes: u64,
) -> Result<Vec<ShardTensor>, HeaderFault> {
    let header_bytes = u64::try_from(header.len()).unwrap_or(u64::MAX);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(HeaderFault::TooLarge(header_bytes));
    }
    if header.first() != Some(&b'{') {
        return Err(HeaderFault::NotAnObject);
    }
    let mut tensors = json::tensors(object, header)?;
    tensors.sort_unstable_by_key(|tensor| (tensor.offset, tensor.bytes));
    check_names(&tensors)?;
    check_sizes(&mut tensors)?;
    check_tiling(&mut tensors, PREFIX_BYTES as u64 + header_bytes, file_bytes)?;
    Ok(tensors)
}

fn check_names(tensors: &[ShardTensor]) -> Result<(), HeaderFault> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| &*tensor.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(HeaderFault::DuplicateName(pair[0].to_owned())),
        None => Ok(()),
    }
}

/// Turns `bytes`, in which the visitor left the end, into sizes.
fn check_sizes(tensors: &mut [ShardTensor]) -> Result<(), HeaderFault> {
    for tensor in tensors {
        let name = || tensor.name.clone();
        if tensor.shape.len() > MAX_RANK {
            return Err(HeaderFault::Rank(name()));
        }
        let (begin, end) = (tensor.offset, tensor.bytes);
        let actual = end.checked_sub(begin).ok_or_else(|| HeaderFault::Backwards {
            name: name(),
            begin,
            end,
        })?;
        match tensor.dtype.tensor_bytes(&tensor.shape) {
            Ok(expected) if expected != actual => {
                return Err(HeaderFault::WrongSize {
                    name: name(),
                    dtype: tensor.dtype.clone(),
                    shape: tensor.shape.clone(),
                    expected,
                    actual,
                });
            }
            // Its offsets are all that is known of the size of a new type.
            Ok(_) | Err(SizeError::UnknownDtype(_)) => {}
            Err(error) => return Err(HeaderFault::Size { name: name(), error }),
        }
        tensor.bytes = actual;
    }
    Ok(())
}

/// Turns offsets in the data section into offsets in the file.
fn check_tiling(
    tensors: &mut [ShardTensor],
    data_start: u64,
    file_bytes: u64,
) -> Result<(), HeaderFault> {
    let mut end = 0u64;
    let mut previous: Option<Arc<str>> = None;
    for tensor in tensors {
        let name = tensor.name.clone();
        if tensor.offset < end {
            // Only a tensor before this one can have moved `end` past it.
            let first = previous.unwrap_or_else(|| name.clone());
            return Err(HeaderFault::Overlap { first, second: name });
        }
        if tensor.offset > end {
            return Err(HeaderFault::Hole { bytes: tensor.offset - end, name });
        }
        end = tensor.offset + tensor.bytes;
        let file_offset = tensor.offset.checked_add(data_start);
        tensor.offset = file_offset.ok_or_else(|| HeaderFault::Overflow(name.clone()))?;
        previous = Some(name);
    }
    match data_start.checked_add(end) {
        Some(expected) if expected == file_bytes => Ok(()),
        Some(expected) => Err(HeaderFault::WrongLength { expected, actual: file_bytes }),
        None => Err(HeaderFault::Overflow(previous.unwrap_or_default())),
    }
}

//! Reads a safetensors header: strictly, in one pass, without building a tree.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tpad_manifest::{Dtype, SizeError};

use super::{HeaderFault, ShardTensor};

/// The longest header that is read. The largest published shards need 2 MiB;
/// a header of this size still lists half a million tensors.
pub const MAX_HEADER_BYTES: u64 = 32 << 20;

/// The longest tensor name; the longest published ones have about 100 bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// The most dimensions; NumPy has the same limit.
pub const MAX_RANK: usize = 64;

/// The longest name of an element type. It bounds messages, not meaning.
const MAX_DTYPE_BYTES: usize = 64;

/// The longest message that is passed on from the JSON reader, which may quote
/// the header.
const MAX_MESSAGE_CHARS: usize = 300;

/// The bytes that give the header's length.
pub(crate) const PREFIX_BYTES: usize = 8;

/// Where the header ends that begins with the bytes of `prefix`.
pub(crate) fn header_end(prefix: &[u8], file_bytes: u64) -> Result<u64, HeaderFault> {
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
/// the whole file. The memory taken is a small multiple of the header's size.
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
    let mut tensors = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(header);
    json.deserialize_map(Header { object, tensors: &mut tensors })
        .and_then(|()| json.end())
        .map_err(|error| HeaderFault::Malformed(shorten(&error.to_string())))?;
    tensors.sort_unstable_by_key(|tensor| (tensor.offset, tensor.bytes));
    check_names(&tensors)?;
    check_sizes(&mut tensors)?;
    check_tiling(&mut tensors, PREFIX_BYTES as u64 + header_bytes, file_bytes)?;
    tensors.shrink_to_fit();
    Ok(tensors)
}

fn check_names(tensors: &[ShardTensor]) -> Result<(), HeaderFault> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| &*tensor.name).collect();
    names.sort_unstable();
    if let Some(name) = names.iter().find(|name| !(1..=MAX_NAME_BYTES).contains(&name.len())) {
        return Err(HeaderFault::NameLength(name.len()));
    }
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

fn shorten(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).collect()
}

/// The header: tensors by name, and `__metadata__`.
struct Header<'a> {
    object: &'a Arc<str>,
    tensors: &'a mut Vec<ShardTensor>,
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut metadata_seen = false;
        while let Some(name) = map.next_key_seed(Text)? {
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(A::Error::custom("__metadata__ appears twice"));
                }
                map.next_value_seed(Metadata)?;
                continue;
            }
            let entry = map.next_value_seed(Entry)?;
            self.tensors.push(ShardTensor {
                name: name.as_ref().into(),
                dtype: entry.dtype,
                shape: entry.shape,
                object: self.object.clone(),
                offset: entry.begin,
                bytes: entry.end,
            });
        }
        Ok(())
    }
}

/// A string that is borrowed from the header unless it holds escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// `__metadata__`: strings by name, of which nothing is kept.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a __metadata__ object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = Vec::new();
        while let Some(name) = map.next_key_seed(Text)? {
            map.next_value_seed(Text)?;
            names.push(name);
        }
        names.sort_unstable();
        match names.windows(2).any(|pair| pair[0] == pair[1]) {
            true => Err(A::Error::custom("__metadata__ holds a name twice")),
            false => Ok(()),
        }
    }
}

/// One tensor's description.
struct Entry;

struct Described {
    dtype: Dtype,
    shape: Vec<u64>,
    begin: u64,
    end: u64,
}

impl<'de> DeserializeSeed<'de> for Entry {
    type Value = Described;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Described, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entry {
    type Value = Described;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor's dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Described, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key_seed(Text)? {
            let repeated = match &*key {
                "dtype" => dtype.replace(map.next_value_seed(Text)?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Shape)?).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                // A later version of the format may say more of a tensor.
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if repeated {
                return Err(A::Error::custom(format_args!("a tensor's {key} appears twice")));
            }
        }
        let dtype = dtype.ok_or_else(|| A::Error::missing_field("dtype"))?;
        if dtype.len() > MAX_DTYPE_BYTES {
            return Err(A::Error::custom("a tensor's dtype is longer than any that exists"));
        }
        let [begin, end] = offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?;
        Ok(Described {
            dtype: Dtype::from(&*dtype),
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            begin,
            end,
        })
    }
}

/// A shape. Dimensions beyond the limit are counted once and not kept.
struct Shape;

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<u64>, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if shape.len() <= MAX_RANK {
                shape.push(dim);
            }
        }
        shape.shrink_to_fit();
        Ok(shape)
    }
}

//! A safetensors header's JSON, tensor by tensor, without a tree of it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tpad_manifest::Dtype;

use super::{MAX_DIMENSIONS, MAX_NAME_BYTES, MAX_RANK, MIN_ENTRY_BYTES};
use crate::shard::{HeaderFault, ShardTensor};

/// The longest name of an element type. It bounds messages, not meaning.
const MAX_DTYPE_BYTES: usize = 64;

/// The most members of `__metadata__`: the shortest takes six bytes of a header
/// and four times as many to be compared with the others.
const MAX_METADATA: usize = 1 << 16;

/// The longest message that is passed on from the JSON reader, which may quote
/// the header.
const MAX_MESSAGE_CHARS: usize = 300;

/// The tensors in the order of the header; the end of each stands in `bytes`.
pub(super) fn tensors(object: &Arc<str>, header: &[u8]) -> Result<Vec<ShardTensor>, HeaderFault> {
    // The JSON reader looks only at the strings that are kept.
    let header = str::from_utf8(header).map_err(|error| {
        HeaderFault::Malformed(format!("it is not UTF-8 at byte {}", error.valid_up_to()))
    })?;
    // A list that grows is there twice while it is copied. Every tensor opens
    // one brace.
    let braces = header.bytes().skip(1).filter(|byte| *byte == b'{').count();
    let mut tensors = Vec::with_capacity(braces.min(header.len() / MIN_ENTRY_BYTES));
    let mut fault = None;
    let mut json = serde_json::Deserializer::from_str(header);
    json.deserialize_map(Header { object, tensors: &mut tensors, fault: &mut fault })
        .and_then(|()| json.end())
        .map_err(|error| {
            let malformed = || HeaderFault::Malformed(shorten(&error.to_string()));
            fault.take().unwrap_or_else(malformed)
        })?;
    Ok(tensors)
}

fn shorten(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).collect()
}

/// The header: tensors by name, and `__metadata__`.
struct Header<'a> {
    object: &'a Arc<str>,
    tensors: &'a mut Vec<ShardTensor>,
    /// What is wrong beyond the JSON: set before the reader is stopped.
    fault: &'a mut Option<HeaderFault>,
}

impl Header<'_> {
    fn stop<E: Error>(&mut self, fault: HeaderFault) -> E {
        *self.fault = Some(fault);
        E::custom("refused")
    }
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let (mut metadata_seen, mut dimensions) = (false, 0usize);
        while let Some(name) = map.next_key_seed(Text)? {
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(A::Error::custom("__metadata__ appears twice"));
                }
                map.next_value_seed(Metadata)?;
                continue;
            }
            if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
                return Err(self.stop(HeaderFault::NameLength(name.len())));
            }
            let entry = map.next_value_seed(Entry)?;
            dimensions = dimensions.saturating_add(entry.shape.len());
            if dimensions > MAX_DIMENSIONS {
                return Err(self.stop(HeaderFault::Dimensions(name.as_ref().into())));
            }
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
            if names.len() == MAX_METADATA {
                let message = format_args!("__metadata__ has more than {MAX_METADATA} members");
                return Err(A::Error::custom(message));
            }
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

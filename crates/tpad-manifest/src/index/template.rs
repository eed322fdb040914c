//! Templates: what the blocks of one shape have in common, names included.

use std::sync::Arc;

use crate::{
    ByteRange, Dtype, GateUp, ImageLayout, Orientation, Part, Projection, Role, SizeError,
    TensorRecord,
};

const LAYER: &str = "{layer}";
const EXPERT: &str = "{expert}";

/// A block without its bytes' places.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockTemplate {
    /// The tensors, in image order.
    pub tensors: Vec<TensorTemplate>,
}

/// A tensor without its bytes' places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorTemplate {
    /// The name; `{layer}` and `{expert}` stand for numbers.
    pub name: Arc<str>,
    /// The element type.
    pub dtype: Dtype,
    /// The shape of the block's part.
    pub shape: Vec<u64>,
    /// What the tensor is for.
    pub role: Role,
    /// Which axis is which.
    pub orientation: Orientation,
    /// How gate and up share it.
    pub gate_up: GateUp,
    /// Logical values in one stored element.
    pub values_per_element: u32,
    /// Whether it is a slice of a stacked tensor.
    pub sliced: bool,
}

impl TensorTemplate {
    /// The template of one tensor, its name literal.
    #[must_use]
    pub fn of(record: &TensorRecord) -> Self {
        Self {
            name: record.name.clone(),
            dtype: record.dtype.clone(),
            shape: record.shape.clone(),
            role: record.role,
            orientation: record.orientation,
            gate_up: record.gate_up,
            values_per_element: record.values_per_element,
            sliced: record.sliced,
        }
    }

    /// The tensor's size in bytes.
    ///
    /// # Errors
    /// As [`Dtype::tensor_bytes`].
    pub fn bytes(&self) -> Result<u64, SizeError> {
        self.dtype.tensor_bytes(&self.shape)
    }

    /// Logical parameters, as [`TensorRecord::parameters`].
    ///
    /// # Errors
    /// When the count overflows.
    pub fn parameters(&self) -> Result<u64, SizeError> {
        self.literal(Vec::new()).parameters()
    }

    /// The tensor at a layer, of an expert, with its places.
    pub(super) fn record(
        &self,
        layer: u32,
        expert: Option<u32>,
        ranges: Vec<ByteRange>,
    ) -> TensorRecord {
        let mut record = self.literal(ranges);
        record.name = expand(&self.name, layer, expert).into();
        record
    }

    /// The tensor under its literal name.
    pub(super) fn literal(&self, ranges: Vec<ByteRange>) -> TensorRecord {
        TensorRecord {
            name: self.name.clone(),
            dtype: self.dtype.clone(),
            shape: self.shape.clone(),
            role: self.role,
            orientation: self.orientation,
            gate_up: self.gate_up,
            values_per_element: self.values_per_element,
            sliced: self.sliced,
            ranges,
        }
    }
}

impl BlockTemplate {
    /// The size of a block's image.
    ///
    /// # Errors
    /// When a tensor's size is unknown or overflows.
    pub fn image_bytes(&self) -> Result<u64, SizeError> {
        let tensors = self.tensors.iter().map(TensorTemplate::bytes);
        let tensors: Vec<u64> = tensors.collect::<Result<_, _>>()?;
        Ok(ImageLayout::of(tensors)?.bytes)
    }

    /// The hidden and the inner size that the experts' shapes give, where the
    /// down projection is a plain matrix.
    #[must_use]
    pub fn structure(&self) -> Option<(u64, u64)> {
        let down = Role { projection: Projection::Down, part: Part::Weight };
        let tensor = self.tensors.iter().find(|tensor| tensor.role == down)?;
        match (tensor.orientation, tensor.values_per_element, &*tensor.shape) {
            (Orientation::OutIn, 1, [hidden, inner]) => Some((*hidden, *inner)),
            (Orientation::InOut, 1, [inner, hidden]) => Some((*hidden, *inner)),
            _ => None,
        }
    }
}

/// A pattern with its numbers filled in.
pub(super) fn expand(pattern: &str, layer: u32, expert: Option<u32>) -> String {
    let mut name = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(at) = rest.find('{') {
        let (before, after) = rest.split_at(at);
        name.push_str(before);
        let (number, after) = match (after.strip_prefix(LAYER), after.strip_prefix(EXPERT)) {
            (Some(after), _) => (Some(layer), after),
            (None, Some(after)) if expert.is_some() => (expert, after),
            _ => (None, after.strip_prefix('{').unwrap_or_default()),
        };
        match number {
            Some(number) => name.push_str(&number.to_string()),
            None => name.push('{'),
        }
        rest = after;
    }
    name.push_str(rest);
    name
}

/// Patterns that `name` could have come from, the likeliest first: the layer's
/// number comes before the expert's in every published layout.
pub(super) fn patterns(name: &str, layer: u32, expert: u32) -> Vec<String> {
    let layers = places(name, layer);
    let experts = places(name, expert);
    let mut found = Vec::new();
    let none = [None];
    for layer in layers.iter().map(Some).chain(none) {
        for expert in experts.iter().rev().map(Some).chain(none) {
            if let Some(pattern) = substitute(name, layer, expert) {
                found.push(pattern);
            }
        }
    }
    found
}

/// A number's places in a name: whole runs of digits between `.`, `_` and the
/// ends.
fn places(name: &str, number: u32) -> Vec<(usize, usize)> {
    let digits = number.to_string();
    let bounds = |at: Option<u8>| matches!(at, None | Some(b'.' | b'_'));
    let bytes = name.as_bytes();
    name.match_indices(&digits)
        .filter(|(at, text)| {
            let before = at.checked_sub(1).and_then(|n| bytes.get(n)).copied();
            bounds(before) && bounds(bytes.get(at + text.len()).copied())
        })
        .map(|(at, text)| (at, at + text.len()))
        .collect()
}

fn substitute(
    name: &str,
    layer: Option<&(usize, usize)>,
    expert: Option<&(usize, usize)>,
) -> Option<String> {
    let mut cuts: Vec<(usize, usize, &str)> = Vec::new();
    cuts.extend(layer.map(|(start, end)| (*start, *end, LAYER)));
    cuts.extend(expert.map(|(start, end)| (*start, *end, EXPERT)));
    cuts.sort_unstable();
    if cuts.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return None;
    }
    let mut pattern = String::with_capacity(name.len() + 16);
    let mut at = 0;
    for (start, end, word) in cuts {
        pattern.push_str(&name[at..start]);
        pattern.push_str(word);
        at = end;
    }
    pattern.push_str(&name[at..]);
    Some(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_a_number_is_filled_and_nothing_else() {
        for (pattern, expert, name) in [
            ("{layer}.{expert}.{layer}", Some(7), "3.7.3"),
            ("{layer}{expert}", Some(7), "37"),
            ("a.{expert}.w", None, "a.{expert}.w"),
            ("{{layer}}.{other}.{", Some(7), "{3}.{other}.{"),
            ("", Some(7), ""),
        ] {
            assert_eq!(expand(pattern, 3, expert), name, "{pattern}");
        }
    }

    #[test]
    fn the_likeliest_pattern_fits_published_names() {
        for (name, layer, expert, pattern) in [
            (
                "model.layers.3.mlp.experts.3.w1.weight",
                3,
                3,
                "model.layers.{layer}.mlp.experts.{expert}.w1.weight",
            ),
            (
                "encoder.block.1.layer.1.mlp.experts.expert_1.wi.weight",
                1,
                1,
                "encoder.block.{layer}.layer.1.mlp.experts.expert_{expert}.wi.weight",
            ),
            (
                "model.layers.0.mlp.experts.gate_up_proj",
                0,
                0,
                "model.layers.{layer}.mlp.experts.gate_up_proj",
            ),
            (
                "mtp.layers.0.mlp.experts.7.up_proj.weight",
                61,
                7,
                "mtp.layers.0.mlp.experts.{expert}.up_proj.weight",
            ),
        ] {
            let found = patterns(name, layer, expert);
            assert_eq!(found.first().map(String::as_str), Some(pattern), "{name}");
            assert_eq!(expand(pattern, layer, Some(expert)), name);
        }
    }
}

//! What a checkpoint holds, read with the `safetensors` crate alone.
//!
//! This knows the layouts of the five checkpoints in `tests/fixtures` and
//! shares no code with tpad, so that both would have to be wrong in the same
//! way for a wrong byte to pass.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Exact>;

/// One tensor, to the byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Exact {
    /// As safetensors spells it.
    pub dtype: String,
    /// The shape; a slice of a stacked tensor has lost the first axis.
    pub shape: Vec<u64>,
    /// Row-major, little-endian.
    pub bytes: Vec<u8>,
}

/// A checkpoint, sorted into what tpad serves.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// By layer and the expert's number in the checkpoint.
    pub experts: BTreeMap<(u32, u32), Tensors>,
    /// By layer.
    pub routers: BTreeMap<u32, Tensors>,
    /// All else.
    pub dense: Tensors,
}

/// Where a tensor belongs.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Expert {
        layer: u32,
        expert: u32,
    },
    /// All experts of the layer, along the first axis.
    Stacked {
        layer: u32,
    },
    Router {
        layer: u32,
    },
    Dense,
}

impl Reference {
    /// Reads every shard of a directory.
    ///
    /// # Panics
    /// When a shard cannot be read.
    #[must_use]
    pub fn read(directory: &Path) -> Self {
        let mut reference = Self::default();
        for entry in directory.read_dir().expect("the checkpoint's directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let shard = std::fs::read(&path).expect("the shard's bytes");
                let tensors = SafeTensors::deserialize(&shard).expect("a safetensors file");
                for (name, view) in tensors.iter() {
                    let shape = view.shape().iter().map(|dim| *dim as u64).collect();
                    let (dtype, bytes) = (view.dtype().to_string(), view.data().to_vec());
                    reference.add(name, Exact { dtype, shape, bytes });
                }
            }
        }
        reference
    }

    fn add(&mut self, name: &str, tensor: Exact) {
        let tensors = match place(name) {
            Place::Expert { layer, expert } => self.experts.entry((layer, expert)).or_default(),
            Place::Router { layer } => self.routers.entry(layer).or_default(),
            Place::Dense => &mut self.dense,
            Place::Stacked { layer } => {
                for (expert, slice) in (0..).zip(tensor.rows()) {
                    let tensors = self.experts.entry((layer, expert)).or_default();
                    tensors.insert(name.to_owned(), slice);
                }
                return;
            }
        };
        tensors.insert(name.to_owned(), tensor);
    }
}

impl Exact {
    /// The tensor's parts along its first axis.
    ///
    /// # Panics
    /// When it has no first axis.
    #[must_use]
    pub fn rows(&self) -> Vec<Self> {
        let (count, shape) = self.shape.split_first().expect("a first axis");
        let count = usize::try_from(*count).expect("it is in memory");
        let row = |bytes: &[u8]| Self {
            dtype: self.dtype.clone(),
            shape: shape.to_vec(),
            bytes: bytes.to_vec(),
        };
        self.bytes.chunks(self.bytes.len() / count).map(row).collect()
    }

    /// The tensor that these rows of this one make.
    ///
    /// # Panics
    /// When one of them does not exist.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        let all = self.rows();
        let row = |n: &u32| &all[usize::try_from(*n).expect("a row of it")].bytes[..];
        let mut shape = self.shape.clone();
        shape[0] = rows.len() as u64;
        let bytes = rows.iter().map(row).collect::<Vec<&[u8]>>().concat();
        Self { dtype: self.dtype.clone(), shape, bytes }
    }
}

impl std::fmt::Debug for Exact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?} of {} bytes", self.dtype, self.shape, self.bytes.len())
    }
}

fn place(name: &str) -> Place {
    inside(name).unwrap_or(Place::Dense)
}

/// The place of a tensor in a MoE layer's experts or router.
fn inside(name: &str) -> Option<Place> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer = layer.parse().ok()?;
    let rest = rest.strip_prefix("mlp.").or_else(|| rest.strip_prefix("block_sparse_moe."))?;
    if let Some(experts) = rest.strip_prefix("experts.") {
        let number = experts.split('.').next().and_then(|number| number.parse().ok());
        return Some(match number {
            Some(expert) => Place::Expert { layer, expert },
            None => Place::Stacked { layer },
        });
    }
    (rest.starts_with("gate.") || rest.starts_with("router.")).then_some(Place::Router { layer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_five_layouts_find_their_place() {
        let (layer, expert) = (1, 7);
        for (name, expected) in [
            (
                "model.layers.1.block_sparse_moe.experts.7.w1.weight",
                Place::Expert { layer, expert },
            ),
            (
                "model.layers.1.mlp.experts.7.up_proj.weight_scale_inv",
                Place::Expert { layer, expert },
            ),
            ("model.layers.1.mlp.experts.gate_up_proj_bias", Place::Stacked { layer }),
            ("model.layers.1.mlp.gate.e_score_correction_bias", Place::Router { layer }),
            ("model.layers.1.mlp.router.bias", Place::Router { layer }),
            ("model.layers.1.mlp.gate_proj.weight", Place::Dense),
            ("model.layers.1.mlp.shared_experts.up_proj.weight", Place::Dense),
            ("lm_head.weight", Place::Dense),
        ] {
            assert_eq!(place(name), expected, "{name}");
        }
    }

    #[test]
    fn rows_are_cut_along_the_first_axis() {
        let tensor = Exact { dtype: "U8".to_owned(), shape: vec![3, 2], bytes: (0..6).collect() };
        assert_eq!(tensor.rows()[1].bytes, [2, 3]);
        let selected = tensor.select(&[2, 0]);
        assert_eq!((selected.shape, selected.bytes), (vec![2, 2], vec![4, 5, 0, 1]));
    }
}

//! Checkpoints that bring a tier, named as `docs/tiers.md` says.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

/// A tier's content.
#[derive(Clone, Debug)]
pub(crate) struct TierSpec {
    pub(crate) id: String,
    pub(crate) layers: Vec<u32>,
    /// Experts of each group.
    pub(crate) groups: Vec<u32>,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    /// What its bytes depend on.
    pub(crate) seed: u64,
}

/// A tensor to write.
pub(crate) struct Tensor {
    pub(crate) name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A tensor of finite values that depend on `seed` and the name.
pub(crate) fn bf16(name: &str, shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product::<usize>();
    let mut noise =
        blake3::Hasher::new().update(format!("{name} {seed}").as_bytes()).finalize_xof();
    let mut bytes = vec![0; 2 * count];
    noise.fill(&mut bytes);
    // Small exponents: no value is infinite or no number.
    bytes.iter_mut().skip(1).step_by(2).for_each(|high| *high = *high & 0x81 | 0x3c);
    Tensor { name: name.to_owned(), shape: shape.to_vec(), bytes }
}

impl TierSpec {
    pub(crate) fn new(
        id: &str,
        layers: &[u32],
        groups: &[u32],
        hidden: usize,
        inner: usize,
    ) -> Self {
        let (layers, groups) = (layers.to_vec(), groups.to_vec());
        Self { id: id.to_owned(), layers, groups, hidden, inner, seed: 0 }
    }

    /// The tensors, experts numbered through all groups.
    pub(crate) fn tensors(&self) -> Vec<Tensor> {
        let Self { id, hidden, inner, seed, .. } = self;
        let mut tensors = Vec::new();
        for layer in &self.layers {
            let prefix = format!("tpad_tiers.{id}.layers.{layer}");
            let mut number = 0;
            for (group, experts) in self.groups.iter().enumerate() {
                for _ in 0..*experts {
                    let expert = format!("{prefix}.groups.{group}.experts.{number}");
                    for (part, shape) in [
                        ("gate_proj", [*inner, *hidden]),
                        ("up_proj", [*inner, *hidden]),
                        ("down_proj", [*hidden, *inner]),
                    ] {
                        tensors.push(bf16(&format!("{expert}.{part}.weight"), &shape, *seed));
                    }
                    number += 1;
                }
            }
            tensors.push(bf16(&format!("{prefix}.router.weight"), &[number, *hidden], *seed));
        }
        tensors
    }

    /// A checkpoint of one shard and nothing else.
    pub(crate) fn write(&self) -> TempDir {
        self.write_with(|_| {})
    }

    /// The same after `edit`.
    pub(crate) fn write_with(&self, edit: impl FnOnce(&mut Vec<Tensor>)) -> TempDir {
        let directory = tempfile::tempdir().expect("scratch");
        let mut tensors = self.tensors();
        edit(&mut tensors);
        save(&tensors, &directory.path().join("model.safetensors"));
        directory
    }

    /// The tensors as one shard.
    pub(crate) fn write_into(&self, path: &Path) {
        save(&self.tensors(), path);
    }
}

fn save(tensors: &[Tensor], path: &Path) {
    let views = tensors.iter().map(|Tensor { name, shape, bytes }| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("its size is right"))
    });
    safetensors::serialize_to_file(views, None, path).expect("written");
}

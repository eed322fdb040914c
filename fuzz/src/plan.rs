//! A plan is refused, or it puts no expert of a checkpoint into two places.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use crate::bounded;
use serde_json::json;
use tpad_manifest::Dtype;
use tpad_publish::{Checkpoint, Plan, ShardTensor, map, recognise};

const LAYERS: u32 = 2;
const EXPERTS: u32 = 8;

/// A checkpoint as Mixtral's are laid out, without bytes.
static CHECKPOINT: LazyLock<Checkpoint> = LazyLock::new(|| {
    let config = json!({
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": LAYERS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
        "hidden_size": 4, "intermediate_size": 2,
    });
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: [u64; 2]| {
        let bytes = shape[0] * shape[1] * 2;
        let offset = tensors.last().map_or(8, |last: &ShardTensor| last.offset + last.bytes);
        let (dtype, object) = (Dtype::from("BF16"), Arc::from("x.safetensors"));
        let (name, shape) = (name.into(), shape.to_vec());
        tensors.push(ShardTensor { name, dtype, shape, object, offset, bytes });
    };
    for layer in 0..LAYERS {
        let moe = format!("model.layers.{layer}.block_sparse_moe");
        add(format!("{moe}.gate.weight"), [EXPERTS.into(), 4]);
        for expert in 0..EXPERTS {
            add(format!("{moe}.experts.{expert}.w1.weight"), [2, 4]);
            add(format!("{moe}.experts.{expert}.w2.weight"), [4, 2]);
            add(format!("{moe}.experts.{expert}.w3.weight"), [2, 4]);
        }
    }
    recognise(&tensors, &config).expect("a checkpoint of a known layout")
});

/// Reads an input: whether it is accepted.
///
/// # Panics
/// When it is neither refused nor right.
pub fn plan(input: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(input) else { return false };
    let checkpoint = &*CHECKPOINT;
    let plan = match bounded(input, || Plan::parse(text)) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "refused without a word");
            return false;
        }
    };
    assert_eq!(Plan::parse(text).ok().as_ref(), Some(&plan), "the same text is another plan");
    let Ok(mapping) = bounded(input, || map(checkpoint, Some(&plan))) else { return false };
    let mut placed = BTreeSet::new();
    for tier in &mapping.tiers {
        for layer in &tier.layers {
            for block in layer.groups.iter().flatten() {
                let source = block.source.expect("an expert has a source");
                assert!(source.expert < EXPERTS, "expert {} of {EXPERTS}", source.expert);
                assert!(placed.insert((layer.layer, source.expert)), "an expert in two places");
            }
        }
    }
    true
}

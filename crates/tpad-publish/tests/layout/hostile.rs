//! Any list of tensors is recognised or refused; what is recognised stays
//! within its tensors.

use proptest::prelude::*;
use tpad_publish::{ShardTensor, map, recognise};

const NAMES: &[&str] = &[
    "experts.0.w1.weight",
    "experts.0.w2.weight",
    "experts.0.w3.weight",
    "experts.1.w1.weight",
    "experts.4294967295.w1.weight",
    "experts.4294967296.w1.weight",
    "experts.0.w1.weight_scale",
    "experts.0.w1.qweight",
    "experts.0.w1.scales",
    "experts.0.w1.qzeros",
    "experts.w1.0.weight",
    "experts.gate_up_proj",
    "experts.down_proj",
    "experts.up_proj",
    "experts.gate_up_proj_blocks",
    "experts.gate_up_proj_scales",
    "experts.down_proj_blocks",
    "experts.down_proj_scales",
    "experts.mlp.w1",
    "experts.mlp.v1",
    "experts.mlp.w2",
    "experts",
    "experts.",
    "experts.é.w1.weight",
    "input_linear.weight",
    "output_linear.weight",
    "gate.weight",
    "gate.bias",
    "gate.e_score_correction_bias",
    "router.layer.weight",
];

const PREFIXES: &[&str] =
    &["model.layers.0.mlp", "mtp.0.ffn", "encoder.block.1.layer.2.m", "", "h.7"];

const DTYPES: &[&str] = &["BF16", "F32", "I32", "U8", "I8", "F8_E4M3", "F4", "BOOL", "Q9"];

fn tensor() -> impl Strategy<Value = ShardTensor> {
    let dim =
        prop_oneof![Just(0u64), Just(1), Just(2), Just(4), Just(8), Just(1 << 33), any::<u64>()];
    let shape = prop::collection::vec(dim, 0..5);
    let name = (prop::sample::select(PREFIXES), prop::sample::select(NAMES));
    (name, prop::sample::select(DTYPES), shape, 0u64..4).prop_map(
        |((prefix, name), dtype, shape, offset)| {
            let dtype: tpad_manifest::Dtype = dtype.into();
            let bytes = dtype.tensor_bytes(&shape).unwrap_or(1);
            // Some begin so late that their ends cannot be counted.
            let offset = if offset == 3 { u64::MAX - bytes / 2 } else { offset };
            let name = format!("{prefix}.{name}").into();
            ShardTensor { name, dtype, shape, object: "a".into(), offset, bytes }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_tensors_are_recognised_or_refused(
        tensors in prop::collection::vec(tensor(), 0..12),
        hidden in prop_oneof![Just(None), (0u64..9).prop_map(Some)],
        experts in 0u64..4,
    ) {
        let config = serde_json::json!({
            "hidden_size": hidden, "num_experts": experts, "num_experts_per_tok": 1,
        });
        let Ok(checkpoint) = recognise(&tensors, &config) else { return Ok(()) };
        let mapping = map(&checkpoint, None).expect("one expert per token is always there");
        let layers = mapping.tiers.iter().flat_map(|tier| &tier.layers);
        let blocks = layers.flat_map(|l| l.groups.iter().flatten().chain(&l.router));
        for record in blocks.chain(&mapping.dense).flat_map(|block| &block.tensors) {
            let whole = tensors.iter().find(|t| t.name == record.name).expect("its tensor");
            let total: u64 = record.ranges.iter().map(|range| range.bytes).sum();
            prop_assert_eq!(record.bytes().ok(), Some(total));
            for range in &record.ranges {
                prop_assert!(range.offset >= whole.offset);
                prop_assert!(range.offset + range.bytes <= whole.offset + whole.bytes);
            }
        }
    }

    /// Small experts made to fit, so that the property above is not only about
    /// refusals.
    #[test]
    fn stacked_experts_of_any_size_are_cut_apart(
        experts in 1u64..6, hidden in 1u64..9, inner in 1u64..9, transposed: bool, router in 1u64..6,
    ) {
        let (a, b) = if transposed { (hidden, 2 * inner) } else { (2 * inner, hidden) };
        let (c, d) = if transposed { (inner, hidden) } else { (hidden, inner) };
        let mut offset = 0;
        let mut tensor = |name: &str, shape: &[u64]| {
            let bytes = 2 * shape.iter().product::<u64>();
            offset += bytes;
            ShardTensor {
                name: format!("model.layers.0.mlp.{name}").into(),
                dtype: "BF16".into(),
                shape: shape.to_vec(),
                object: "a".into(),
                offset: offset - bytes,
                bytes,
            }
        };
        let tensors = [
            tensor("experts.gate_up_proj", &[experts, a, b]),
            tensor("experts.down_proj", &[experts, c, d]),
            tensor("gate.weight", &[router, hidden]),
        ];
        let config = serde_json::json!({"num_experts_per_tok": 1});
        let found = recognise(&tensors, &config);
        prop_assert_eq!(found.is_ok(), router == experts, "{:?}", found.err());
        if let Ok(checkpoint) = found {
            let layer = &checkpoint.layers[0];
            prop_assert_eq!(layer.experts.len() as u64, experts);
            prop_assert_eq!(layer.size.hidden, Some(hidden));
            prop_assert_eq!(layer.size.intermediate, Some(inner));
            for (n, block) in layer.experts.iter().enumerate() {
                let parameters: u64 =
                    block.tensors.iter().map(|t| t.parameters().expect("small")).sum();
                prop_assert_eq!(parameters, 3 * hidden * inner);
                let at = 2 * a * b * n as u64;
                prop_assert_eq!(block.tensors[0].ranges[0].offset, at);
            }
        }
    }
}

//! Checkpoints as `save_pretrained` wrote them, by their real headers.

use std::path::PathBuf;

use tpad_manifest::{GateUp, LayerKind, Orientation, Projection, ScoringFunction};
use tpad_publish::{Checkpoint, ShardTensor, map, parse_header, recognise};

fn saved(name: &str) -> (Vec<ShardTensor>, Checkpoint) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    let config = std::fs::read(root.join("config.json")).expect("config.json");
    let config = serde_json::from_slice(&config).expect("JSON");
    let mut tensors = Vec::new();
    for entry in std::fs::read_dir(&root).expect("the fixture") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(&path).expect("a shard");
            let name = path.file_name().expect("a name").to_string_lossy();
            let header =
                usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")))
                    .expect("small");
            let object: std::sync::Arc<str> = (&*name).into();
            tensors.extend(
                parse_header(&object, &bytes[8..8 + header], bytes.len() as u64).expect("a header"),
            );
        }
    }
    let checkpoint = recognise(&tensors, &config).expect("a known layout");
    (tensors, checkpoint)
}

#[test]
fn saved_checkpoints_have_the_experts_that_they_were_saved_with() {
    for (name, layers, experts, hidden, inner, quantization) in [
        ("mixtral", &[0, 1][..], 8, 64, 96, None),
        ("qwen3_moe", &[0, 1], 8, 64, 48, None),
        ("deepseek_v3", &[1, 2], 8, 64, 32, None),
        ("deepseek_v3_fp8", &[1, 2], 8, 64, 32, Some("fp8_block")),
        ("gpt_oss", &[0, 1], 8, 64, 64, None),
    ] {
        let (tensors, checkpoint) = saved(name);
        let found: Vec<u32> = checkpoint.layers.iter().map(|layer| layer.layer).collect();
        assert_eq!(found, layers, "{name}");
        assert_eq!(checkpoint.quantization.as_deref(), quantization, "{name}");
        assert_eq!(checkpoint.notes, [""; 0], "{name}");
        let mut covered = 0;
        for layer in &checkpoint.layers {
            assert_eq!(layer.kind, LayerKind::Moe);
            assert_eq!(layer.experts.len(), experts, "{name}");
            assert_eq!((layer.size.hidden, layer.size.intermediate), (Some(hidden), Some(inner)));
            let blocks = layer.experts.iter().flat_map(|block| &block.tensors);
            let records = blocks.chain(layer.router.iter().map(|tensor| &tensor.record));
            covered += records.map(|record| record.bytes().expect("known")).sum::<u64>();
        }
        let dense = checkpoint.dense.iter().flat_map(|block| &block.tensors);
        covered += dense.map(|record| record.bytes().expect("known")).sum::<u64>();
        assert_eq!(covered, tensors.iter().map(|tensor| tensor.bytes).sum::<u64>(), "{name}");
        map(&checkpoint, None).expect("a default mapping");
    }
}

#[test]
fn saved_deepseek_routes_by_groups_with_a_correction_bias() {
    let (_, checkpoint) = saved("deepseek_v3");
    assert_eq!(checkpoint.scoring.function, ScoringFunction::Sigmoid);
    assert!(checkpoint.scoring.correction_bias && checkpoint.scoring.normalize);
    assert!((checkpoint.scoring.scale - 2.5).abs() < f64::EPSILON);
    assert_eq!((checkpoint.groups, checkpoint.groups_per_token), (2, 1));
    let shared = checkpoint.dense.iter().flat_map(|block| &block.tensors);
    assert_eq!(shared.filter(|tensor| tensor.name.contains("shared_experts")).count(), 6);
}

#[test]
fn saved_gpt_oss_is_stacked_in_out_and_interleaved() {
    let (_, checkpoint) = saved("gpt_oss");
    assert_eq!(checkpoint.scoring.function, ScoringFunction::SoftmaxAfterTopK);
    for tensor in checkpoint.layers.iter().flat_map(|l| &l.experts).flat_map(|b| &b.tensors) {
        assert!(tensor.sliced);
        let fused = tensor.role.projection == Projection::GateUp;
        assert_eq!(tensor.gate_up == GateUp::Interleaved, fused);
        let matrix = tensor.shape.len() == 2;
        assert_eq!(tensor.orientation == Orientation::InOut, matrix, "{}", tensor.name);
    }
}

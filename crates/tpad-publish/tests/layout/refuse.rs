//! What is incomplete or ambiguous is refused, and the refusal names it.

use serde_json::{Value, json};
use tpad_publish::{LayoutError, recognise};

use crate::fixture::Fixture;

fn refusal(fixture: &Fixture) -> LayoutError {
    recognise(&fixture.tensors, &fixture.config).expect_err("it must be refused")
}

/// Asserts that taking a tensor away is refused with its name and layer.
fn missing(fixture: &str, name: &str, layer: u32) {
    let error = refusal(&Fixture::load(fixture).without(name));
    let LayoutError::Missing { layer: at, name: found, .. } = &error else {
        unreachable!("{fixture} without {name}: {error}")
    };
    assert_eq!((found.as_str(), *at), (name, layer));
    assert!(error.to_string().contains(name), "{error}");
}

#[test]
fn a_missing_companion_is_named() {
    let expert = "model.layers.0.mlp.experts.1";
    for (fixture, member) in [
        ("fp8_block", "down_proj.weight_scale_inv"),
        ("fp8_per_channel", "gate_proj.weight_scale"),
        ("fp8_per_channel", "gate_proj.input_scale"),
        ("fp8_per_tensor", "up_proj.input_scale"),
        ("int8_packed", "down_proj.weight_scale"),
        ("int8_packed", "down_proj.weight_shape"),
        ("int8_packed", "down_proj.weight_zero_point"),
        ("int8_packed", "down_proj.weight_g_idx"),
        ("nvfp4_modelopt", "gate_proj.weight_scale"),
        ("nvfp4_modelopt", "gate_proj.weight_scale_2"),
        ("nvfp4_modelopt", "gate_proj.input_scale"),
        ("nvfp4_compressed", "gate_proj.weight_global_scale"),
        ("nvfp4_compressed", "gate_proj.input_global_scale"),
        ("gptq", "up_proj.qzeros"),
        ("gptq", "up_proj.scales"),
        ("gptq", "up_proj.g_idx"),
        ("awq", "up_proj.scales"),
    ] {
        missing(fixture, &format!("{expert}.{member}"), 0);
    }
    missing("autoround_mtp", "mtp.layers.0.mlp.experts.down_proj.1.qzeros", 1);
    missing("deepseek_v4", "layers.1.ffn.experts.0.w2.scale", 1);
    missing("nllb_moe", "model.decoder.layers.3.ffn.experts.expert_1.fc2.bias", 7);
}

#[test]
fn a_companion_that_no_sibling_has_is_still_required_by_the_scheme() {
    let without = |fixture: &str, end: &str| {
        let mut fixture = Fixture::load(fixture);
        let before = fixture.tensors.len();
        fixture.tensors.retain(|tensor| !tensor.name.ends_with(end));
        assert!(fixture.tensors.len() < before);
        refusal(&fixture).to_string()
    };
    for (fixture, end) in [
        ("fp8_block", "weight_scale_inv"),
        ("int4_packed", "weight_scale"),
        ("int4_packed", "weight_shape"),
        ("nvfp4_modelopt", "weight_scale_2"),
        ("nvfp4_compressed", "weight_global_scale"),
        ("gptq", "qzeros"),
        ("awq", "scales"),
        ("gpt_oss_mxfp4", "proj_scales"),
        ("deepseek_v4", ".scale"),
        ("qwen3_vl_moe_fp8", "_scale_inv"),
    ] {
        let error = without(fixture, end);
        assert!(error.contains(" is missing: ") && error.contains(end), "{fixture}: {error}");
    }
}

#[test]
fn a_stacked_companion_is_named_in_its_own_manner() {
    let layer = "model.layers.0.mlp.experts";
    missing("gpt_oss_mxfp4", &format!("{layer}.gate_up_proj_scales"), 0);
    missing("gpt_oss_mxfp4", &format!("{layer}.down_proj_blocks"), 0);
    missing("qwen3_vl_moe_fp8", "model.language_model.layers.0.mlp.experts.down_proj_scale_inv", 0);
}

#[test]
fn a_missing_map_is_named() {
    missing("mixtral", "model.layers.1.block_sparse_moe.experts.1.w3.weight", 1);
    missing("mixtral", "model.layers.1.block_sparse_moe.experts.0.w2.weight", 1);
    missing("grok_1", "model.layers.0.moe_block.experts.0.linear_1.weight", 0);
    missing("switch", "decoder.block.1.layer.2.mlp.experts.expert_1.wo.weight", 3);
    missing("autoround_mtp", "mtp.layers.0.mlp.experts.up_proj.1.qweight", 1);
    missing("llama4", "language_model.model.layers.1.feed_forward.experts.down_proj", 1);
    missing("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj", 0);
    missing("dbrx", "transformer.blocks.0.ffn.experts.mlp.v1", 0);
    missing("dbrx", "transformer.blocks.0.ffn.experts.mlp.w1", 0);
    missing("granitemoe", "model.layers.0.block_sparse_moe.output_linear.weight", 0);
    missing("granitemoe", "model.layers.0.block_sparse_moe.input_linear.weight", 0);
}

#[test]
fn a_missing_router_names_layer_and_module() {
    let name = "model.layers.2.mlp.gate.weight";
    let error = refusal(&Fixture::load("qwen3_moe").without(name));
    let module = "model.layers.2.mlp".to_string();
    assert_eq!(error, LayoutError::MissingRouter { layer: 2, module });
}

#[test]
fn a_gap_between_experts_is_named() {
    let mut fixture = Fixture::load("deepseek_v3");
    fixture.tensors.retain(|tensor| !tensor.name.contains("layers.2.mlp.experts.1."));
    let module = "model.layers.2.mlp".into();
    assert_eq!(
        refusal(&fixture),
        LayoutError::ExpertGap { layer: 2, module, missing: 1, highest: 3 }
    );
}

#[test]
fn a_router_that_scores_another_number_of_experts_is_refused() {
    let mut fixture = Fixture::load("deepseek_v3");
    fixture.tensors.retain(|tensor| !tensor.name.contains("layers.1.mlp.experts.3."));
    let name = "model.layers.1.mlp.gate.weight".into();
    assert_eq!(refusal(&fixture), LayoutError::RouterRows { layer: 1, name, rows: 4, experts: 3 });
    let bias = "model.layers.1.mlp.gate.e_score_correction_bias";
    let fixture = Fixture::load("deepseek_v3").reshaped(bias, &[3]);
    let error = LayoutError::RouterRows { layer: 1, name: bias.into(), rows: 3, experts: 4 };
    assert_eq!(refusal(&fixture), error);
    // LongCat's spare rows are accepted only because config.json counts them.
    let fixture = Fixture::load("longcat").set("zero_expert_num", Value::Null);
    assert!(matches!(refusal(&fixture), LayoutError::RouterRows { rows: 3, experts: 2, .. }));
}

#[test]
fn layers_with_different_numbers_of_experts_are_refused() {
    let gate = "model.layers.1.block_sparse_moe.gate.weight";
    let fixture = Fixture::load("mixtral")
        .with("model.layers.1.block_sparse_moe.experts.2.w{1,3}.weight BF16 6x4")
        .with("model.layers.1.block_sparse_moe.experts.2.w2.weight BF16 4x6")
        .reshaped(gate, &[3, 4]);
    let expected = LayoutError::ExpertCount {
        layer: 1,
        module: "model.layers.1.block_sparse_moe".into(),
        experts: 3,
        other_layer: 0,
        other_experts: 2,
    };
    assert_eq!(refusal(&fixture), expected);
}

#[test]
fn equal_names_are_refused_with_both_shards() {
    let fixture = Fixture::load("mixtral").with("model.embed_tokens.weight BF16 10x4");
    let expected = LayoutError::Duplicate {
        name: "model.embed_tokens.weight".into(),
        first: "model.safetensors".into(),
        second: "added.safetensors".into(),
    };
    assert_eq!(refusal(&fixture), expected);
}

#[test]
fn a_tensor_among_experts_whose_part_is_not_known_never_passes_as_dense() {
    for name in [
        "model.layers.0.block_sparse_moe.experts.0.w1.weight.absmax",
        "model.layers.0.block_sparse_moe.experts.0.w4.weight",
        "model.layers.0.block_sparse_moe.experts.0.w1.lora_A",
        "model.layers.0.block_sparse_moe.experts.bias",
        "model.layers.0.block_sparse_moe.experts.01.w1.weight",
        "experts.0.w1.weight",
    ] {
        let fixture = Fixture::load("mixtral").with(&format!("{name} F32 4"));
        assert_eq!(refusal(&fixture), LayoutError::UnknownPart { name: name.into() });
    }
    let name = "model.layers.0.moe.down_proj.weight_scale";
    let fixture = Fixture::load("stacked_apart").with(&format!("{name} F32 2"));
    assert_eq!(refusal(&fixture), LayoutError::UnknownPart { name: name.into() });
}

#[test]
fn two_tensors_for_one_part_are_refused() {
    for (fixture, line) in [
        ("mixtral", "model.layers.0.block_sparse_moe.experts.0.gate_proj.weight BF16 6x4"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.0.w1.qweight I32 6x4"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.down_proj BF16 2x4x6"),
        ("mixtral", "model.layers.0.block_sparse_moe.router.weight BF16 2x4"),
        ("mixtral_resaved", "model.layers.0.mlp.experts.{gate,up}_proj BF16 2x2x4"),
        ("lfm2_moe", "model.layers.1.feed_forward.gate.e_score_correction_bias F32 2"),
    ] {
        let error = refusal(&Fixture::load(fixture).with(line));
        assert!(matches!(error, LayoutError::TwoTensors { .. }), "{line}: {error}");
    }
}

#[test]
fn two_expert_sets_in_one_layer_are_refused_by_name() {
    // An MTP prefix and a layer number past the last mean the same layer.
    let fixture = Fixture::load("qwen3_next")
        .with("model.layers.2.mlp.experts.{0..1}.{gate,up}_proj.weight BF16 6x4")
        .with("model.layers.2.mlp.experts.{0..1}.down_proj.weight BF16 4x6");
    let expected = LayoutError::TwoSets {
        layer: 2,
        first: "model.layers.2.mlp".into(),
        second: "mtp.layers.0.mlp".into(),
    };
    assert_eq!(refusal(&fixture), expected);
}

#[test]
fn dbrx_needs_config_to_count_its_experts() {
    let error = refusal(&Fixture::load("dbrx").set("ffn_config", json!({"moe_top_k": 2})));
    assert!(
        matches!(&error, LayoutError::Ambiguous { key, .. } if key.contains("moe_num_experts"))
    );
    let five = json!({"moe_num_experts": 5, "moe_top_k": 2});
    let error = refusal(&Fixture::load("dbrx").set("ffn_config", five));
    assert!(matches!(error, LayoutError::Shape { .. }), "{error}");
    let three = json!({"moe_num_experts": 3, "moe_top_k": 2});
    let error = refusal(&Fixture::load("dbrx").set("ffn_config", three));
    assert!(matches!(error, LayoutError::RouterRows { rows: 2, experts: 3, .. }), "{error}");
}

#[test]
fn axes_that_shapes_leave_open_are_decided_by_config_or_refused() {
    let error = refusal(&Fixture::load("stacked_apart").set("hidden_size", Value::Null));
    assert!(matches!(&error, LayoutError::Ambiguous { key, .. } if key.contains("hidden_size")));
    let other = Fixture::load("stacked_apart").set("hidden_size", json!(6));
    let checkpoint = recognise(&other.tensors, &other.config).expect("the other reading");
    assert_eq!(checkpoint.layers[0].size.hidden, Some(6));
    assert_eq!(checkpoint.layers[0].size.intermediate, Some(4));
    let error = refusal(&Fixture::load("stacked_apart").set("hidden_size", json!(5)));
    assert!(matches!(error, LayoutError::Shape { .. }), "{error}");
    let mut square = Fixture::load("stacked_apart");
    for map in ["gate_proj", "up_proj", "down_proj"] {
        square = square.reshaped(&format!("model.layers.0.moe.{map}.weight"), &[2, 4, 4]);
    }
    assert!(matches!(refusal(&square), LayoutError::Ambiguous { .. }));
}

#[test]
fn packed_integers_need_their_bits() {
    let error = refusal(&Fixture::load("int8_packed").set("hidden_size", Value::Null));
    assert!(matches!(&error, LayoutError::Ambiguous { key, .. } if key.contains("num_bits")));
}

#[test]
fn shapes_that_do_not_fit_together_are_refused() {
    let expert = "model.layers.0.block_sparse_moe.experts";
    for (fixture, tensor, shape) in [
        ("mixtral", format!("{expert}.1.w2.weight"), &[6, 4][..]),
        ("mixtral", format!("{expert}.0.w1.weight"), &[6, 4, 1]),
        ("granitemoe", "model.layers.0.block_sparse_moe.input_linear.weight".into(), &[3, 12, 4]),
        ("gpt_oss_bf16", "model.layers.0.mlp.experts.gate_up_proj".into(), &[2, 4, 7]),
        ("gpt_oss_mxfp4", "model.layers.0.mlp.experts.down_proj_blocks".into(), &[2, 64, 16]),
        ("gptq", "model.layers.0.mlp.experts.0.up_proj.scales".into(), &[2, 9]),
        ("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.down_proj".into(), &[0, 6, 4]),
        ("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.down_proj".into(), &[2, 0, 4]),
    ] {
        let error = refusal(&Fixture::load(fixture).reshaped(&tensor, shape));
        let text = error.to_string();
        assert!(matches!(error, LayoutError::Shape { .. }), "{fixture} {tensor}: {text}");
        assert!(text.starts_with("layer 0: "), "{text}");
    }
    // Every map of one expert is larger than the first expert's.
    let fixture = Fixture::load("mixtral")
        .reshaped(&format!("{expert}.1.w1.weight"), &[8, 4])
        .reshaped(&format!("{expert}.1.w3.weight"), &[8, 4])
        .reshaped(&format!("{expert}.1.w2.weight"), &[4, 8]);
    assert!(matches!(refusal(&fixture), LayoutError::Shape { .. }));
}

#[test]
fn sizes_that_overflow_or_lie_are_refused() {
    let mut fixture = Fixture::load("mixtral");
    fixture.tensors[0].shape = vec![u64::MAX, u64::MAX];
    assert!(matches!(refusal(&fixture), LayoutError::Size { .. }));
    let mut fixture = Fixture::load("mixtral");
    fixture.tensors[0].dtype = "Q9".into();
    assert!(matches!(refusal(&fixture), LayoutError::Size { .. }));
    let mut fixture = Fixture::load("mixtral");
    fixture.tensors[0].bytes += 1;
    assert!(matches!(refusal(&fixture), LayoutError::Extent { expected: 80, .. }));
    let mut fixture = Fixture::load("mixtral");
    fixture.tensors[0].offset = u64::MAX - 1;
    assert!(matches!(refusal(&fixture), LayoutError::Extent { .. }));
}

#[test]
fn a_shape_cannot_ask_for_countless_experts() {
    let fixture = Fixture::parse(
        "config {\"hidden_size\": 4}\n\
         tensor model.layers.0.mlp.experts.gate_up_proj BF16 4294967296x0x4\n\
         tensor model.layers.0.mlp.experts.down_proj BF16 4294967296x4x0",
    );
    assert!(matches!(refusal(&fixture), LayoutError::Shape { .. }));
}

#[test]
fn experts_of_no_bytes_are_none() {
    let fixture = Fixture::parse(
        "config {\"hidden_size\": 4}\n\
         tensor model.layers.0.mlp.experts.gate_up_proj BF16 65536x0x4\n\
         tensor model.layers.0.mlp.experts.down_proj BF16 65536x4x0\n\
         tensor model.layers.0.mlp.gate.weight BF16 65536x4",
    );
    let error = refusal(&fixture);
    assert!(matches!(error, LayoutError::Shape { .. }), "{error}");
    assert!(error.to_string().contains("an expert has values"), "{error}");
}

#[test]
fn a_part_of_a_byte_is_no_expert() {
    let fixture = Fixture::parse(
        "config {\"hidden_size\": 1}\n\
         tensor model.layers.0.mlp.experts.up_proj F4 2x3x1\n\
         tensor model.layers.0.mlp.experts.up_proj_scale F8_E8M0 2x1x1\n\
         tensor model.layers.0.mlp.experts.down_proj F4 2x1x3\n\
         tensor model.layers.0.mlp.experts.down_proj_scale F8_E8M0 2x1x1",
    );
    assert!(matches!(refusal(&fixture), LayoutError::Shape { .. }));
}

#[test]
fn a_layer_number_beyond_32_bits_is_no_layer() {
    let fixture = Fixture::load("qwen3_next").set("num_hidden_layers", json!(4_294_967_295_u64));
    let module = "mtp.layers.0.mlp".to_string();
    assert!(recognise(&fixture.tensors, &fixture.config).is_ok(), "the last number there is");
    let fixture = fixture
        .with("mtp.layers.1.mlp.experts.{0..1}.{gate,up}_proj.weight BF16 6x4")
        .with("mtp.layers.1.mlp.experts.{0..1}.down_proj.weight BF16 4x6");
    let LayoutError::LayerNumber { module: found } = refusal(&fixture) else { unreachable!() };
    assert_eq!(found, module.replace('0', "1"));
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    for (key, value) in [
        ("num_experts_per_tok", json!(0)),
        ("num_experts_per_tok", json!(5)),
        ("num_experts_per_tok", json!("two")),
        ("n_group", json!(3)),
        ("n_group", json!(-1)),
        ("topk_group", json!(0)),
        ("topk_group", json!(3)),
        ("scoring_func", json!("dice")),
        ("routed_scaling_factor", json!("much")),
        ("norm_topk_prob", json!(1)),
        ("num_hidden_layers", json!(2.5)),
    ] {
        let error = refusal(&Fixture::load("deepseek_v3").set(key, value.clone()));
        let LayoutError::Config { key: named, .. } = &error else {
            unreachable!("{key} = {value}: {error}")
        };
        assert_eq!(named, key);
    }
}

#[test]
fn a_scoring_that_is_guessed_is_told_as_it_is_recorded() {
    for (name, told) in [
        ("granitemoe", "a softmax of the chosen logits is recorded"),
        ("minimax_m2", "sigmoid with a correction bias is recorded"),
        ("stacked_apart", ": softmax is recorded"),
    ] {
        let mut fixture = Fixture::load(name).set("model_type", json!("unheard_of"));
        if let Some(config) = fixture.config.as_object_mut() {
            config.remove("scoring_func");
        }
        let checkpoint = recognise(&fixture.tensors, &fixture.config).expect("recognised");
        let notes = checkpoint.notes.join(" ");
        assert!(notes.contains(told), "{name}: {notes}");
    }
}

#[test]
fn an_unrecognised_checkpoint_is_refused_with_a_bounded_sample() {
    let mut text = String::from("config {}\n");
    for n in 0..2000 {
        text.push_str(&format!(
            "tensor part{}.{}x BF16 1\n",
            "ab".repeat(n % 50 + 1),
            "y".repeat(n)
        ));
    }
    let error = refusal(&Fixture::parse(&text));
    let LayoutError::Unrecognised { tensors, sample } = &error else { unreachable!("{error}") };
    assert_eq!((*tensors, sample.len()), (2000, 12));
    assert!(error.to_string().len() < 3000);
    assert!(matches!(recognise(&[], &Value::Null), Err(LayoutError::Unrecognised { .. })));
}

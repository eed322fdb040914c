//! `config.json`, with the keys that describe the model's shape and routing.

use serde_json::{Value, json};

use super::families::{Ranks, plain};
use super::{SynthDtype, SynthFamily, SynthSpec};

pub(super) fn config(spec: &SynthSpec) -> Value {
    let mut config = json!({
        "dtype": match plain(spec.dtype).name() {
            "F16" => "float16",
            "F32" => "float32",
            _ => "bfloat16",
        },
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "max_position_embeddings": 4096,
        "num_attention_heads": spec.heads,
        "num_experts_per_tok": spec.experts_per_token,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": false,
        "vocab_size": spec.vocab,
    });
    let family = match spec.family {
        SynthFamily::Mixtral => json!({
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "head_dim": spec.head_dim,
            "intermediate_size": spec.intermediate,
            "num_local_experts": spec.experts,
        }),
        SynthFamily::Qwen3Moe => json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "decoder_sparse_step": 1,
            "head_dim": spec.head_dim,
            "intermediate_size": spec.dense_intermediate,
            "mlp_only_layers": (0..spec.dense_layers).collect::<Vec<_>>(),
            "moe_intermediate_size": spec.intermediate,
            "norm_topk_prob": true,
            "num_experts": spec.experts,
        }),
        SynthFamily::DeepseekV3 => deepseek_v3(spec),
        SynthFamily::GptOss => json!({
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": true,
            "head_dim": spec.head_dim,
            "intermediate_size": spec.intermediate,
            "num_local_experts": spec.experts,
        }),
    };
    let quantization = match spec.dtype {
        SynthDtype::Fp8 => json!({ "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }}),
        SynthDtype::Mxfp4 => json!({ "quantization_config": {
            "modules_to_not_convert":
                ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4",
        }}),
        SynthDtype::Bf16 | SynthDtype::F16 | SynthDtype::F32 => json!({}),
    };
    for part in [family, quantization] {
        if let (Some(config), Value::Object(part)) = (config.as_object_mut(), part) {
            config.extend(part);
        }
    }
    config
}

fn deepseek_v3(spec: &SynthSpec) -> Value {
    let ranks = Ranks::of(spec);
    json!({
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "first_k_dense_replace": spec.dense_layers,
        "intermediate_size": spec.dense_intermediate,
        "kv_lora_rank": ranks.key_value,
        "moe_intermediate_size": spec.intermediate,
        "moe_layer_freq": 1,
        "n_group": spec.groups,
        "n_routed_experts": spec.experts,
        "n_shared_experts": spec.shared_experts,
        "norm_topk_prob": true,
        "num_nextn_predict_layers": spec.mtp_layers,
        "q_lora_rank": ranks.query,
        "qk_nope_head_dim": spec.head_dim,
        "qk_rope_head_dim": ranks.rope,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_group": spec.groups_per_token,
        "topk_method": "noaux_tc",
        "v_head_dim": spec.head_dim,
    })
}

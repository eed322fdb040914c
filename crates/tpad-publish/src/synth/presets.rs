//! The shapes of published models, as their `config.json` files give them.

use super::{SynthDtype, SynthError, SynthFamily, SynthSpec};

/// The presets' names.
pub const PRESETS: &[&str] = &[
    "mixtral-8x7b",
    "mixtral-8x22b",
    "olmoe-1b-7b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "deepseek-v3",
    "kimi-k2",
    "gpt-oss-20b",
    "gpt-oss-120b",
];

/// Bytes of a shard: what `save_pretrained` uses.
const SHARD_BYTES: u64 = 5_000_000_000;

impl SynthSpec {
    /// The shape of a published model.
    ///
    /// # Errors
    /// When no preset has this name; the error lists those that exist.
    pub fn preset(name: &str) -> Result<Self, SynthError> {
        Ok(match name {
            "mixtral-8x7b" => mixtral(32, 4096, 14336, 32, 8, 32_000),
            "mixtral-8x22b" => mixtral(56, 6144, 16384, 48, 8, 32_768),
            "olmoe-1b-7b" => {
                Self { vocab: 50_304, heads: 16, kv_heads: 16, ..qwen3(16, 64, 8, 2048, 1024) }
            }
            "qwen3-30b-a3b" => qwen3(48, 128, 8, 2048, 768),
            "qwen3-235b-a22b" => Self { heads: 64, ..qwen3(94, 128, 8, 4096, 1536) },
            "deepseek-v3" => deepseek_v3(),
            "kimi-k2" => Self {
                dense_layers: 1,
                mtp_layers: 0,
                experts: 384,
                groups: 1,
                groups_per_token: 1,
                heads: 64,
                kv_heads: 64,
                vocab: 163_840,
                ..deepseek_v3()
            },
            "gpt-oss-20b" => gpt_oss(24, 32),
            "gpt-oss-120b" => gpt_oss(36, 128),
            _ => return Err(SynthError::UnknownPreset { name: name.to_owned() }),
        })
    }
}

fn mixtral(
    layers: u32,
    hidden: u64,
    intermediate: u64,
    heads: u64,
    kv_heads: u64,
    vocab: u64,
) -> SynthSpec {
    SynthSpec {
        family: SynthFamily::Mixtral,
        dtype: SynthDtype::Bf16,
        layers,
        dense_layers: 0,
        mtp_layers: 0,
        experts: 8,
        experts_per_token: 2,
        shared_experts: 0,
        groups: 1,
        groups_per_token: 1,
        hidden,
        intermediate,
        dense_intermediate: intermediate,
        heads,
        kv_heads,
        head_dim: 128,
        vocab,
        shard_bytes: SHARD_BYTES,
        seed: 0,
    }
}

fn qwen3(layers: u32, experts: u32, per_token: u32, hidden: u64, intermediate: u64) -> SynthSpec {
    SynthSpec {
        family: SynthFamily::Qwen3Moe,
        experts,
        experts_per_token: per_token,
        dense_intermediate: hidden * 3,
        ..mixtral(layers, hidden, intermediate, 32, 4, 151_936)
    }
}

fn deepseek_v3() -> SynthSpec {
    SynthSpec {
        family: SynthFamily::DeepseekV3,
        dtype: SynthDtype::Fp8,
        layers: 61,
        dense_layers: 3,
        mtp_layers: 1,
        experts: 256,
        experts_per_token: 8,
        shared_experts: 1,
        groups: 8,
        groups_per_token: 4,
        hidden: 7168,
        intermediate: 2048,
        dense_intermediate: 18432,
        heads: 128,
        kv_heads: 128,
        head_dim: 128,
        vocab: 129_280,
        shard_bytes: SHARD_BYTES,
        seed: 0,
    }
}

fn gpt_oss(layers: u32, experts: u32) -> SynthSpec {
    SynthSpec {
        family: SynthFamily::GptOss,
        dtype: SynthDtype::Mxfp4,
        experts,
        experts_per_token: 4,
        head_dim: 64,
        ..mixtral(layers, 2880, 2880, 64, 8, 201_088)
    }
}

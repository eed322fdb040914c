//! The tensors of each family, in the order of the model's modules.

use tpad_manifest::Dtype;

use super::fill::Fill;
use super::{Draft, SynthDtype, SynthError, SynthFamily, SynthSpec};

/// The side of an FP8 weight's blocks.
const FP8_BLOCK: u64 = 128;

/// Values that share a scale in MXFP4.
const MXFP4_BLOCK: u64 = 32;

/// All tensors of the checkpoint.
pub(super) fn drafts(spec: &SynthSpec) -> Result<Vec<Draft>, SynthError> {
    let mut drafts = Drafts { spec, plain: plain(spec.dtype), list: Vec::new() };
    drafts.weight("model.embed_tokens.weight", &[spec.vocab, spec.hidden])?;
    for layer in 0..spec.layers {
        drafts.layer(layer)?;
    }
    for layer in spec.layers..spec.layers.saturating_add(spec.mtp_layers) {
        drafts.prediction_layer(layer)?;
    }
    drafts.norm("model.norm.weight", spec.hidden)?;
    drafts.weight("lm_head.weight", &[spec.vocab, spec.hidden])?;
    Ok(drafts.list)
}

/// The type of what is never quantized.
pub(super) fn plain(dtype: SynthDtype) -> Dtype {
    Dtype::from(match dtype {
        SynthDtype::F16 => "F16",
        SynthDtype::F32 => "F32",
        SynthDtype::Bf16 | SynthDtype::Fp8 | SynthDtype::Mxfp4 => "BF16",
    })
}

struct Drafts<'a> {
    spec: &'a SynthSpec,
    plain: Dtype,
    list: Vec<Draft>,
}

impl Drafts<'_> {
    fn push(
        &mut self,
        name: impl Into<String>,
        dtype: &Dtype,
        shape: &[u64],
        fill: Fill,
    ) -> Result<(), SynthError> {
        let name = name.into();
        let bytes = dtype
            .tensor_bytes(shape)
            .map_err(|error| SynthError::Shape(format!("tensor {name}: {error}")))?;
        self.list.push(Draft { name, dtype: dtype.clone(), shape: shape.to_vec(), bytes, fill });
        Ok(())
    }

    /// A tensor that is never quantized.
    fn weight(&mut self, name: impl Into<String>, shape: &[u64]) -> Result<(), SynthError> {
        let plain = self.plain.clone();
        self.push(name, &plain, shape, Fill::weights(&plain))
    }

    fn norm(&mut self, name: impl Into<String>, width: u64) -> Result<(), SynthError> {
        let plain = self.plain.clone();
        self.push(name, &plain, &[width], Fill::ones(&plain))
    }

    /// A linear map's `weight` under `module`, with its scales if it has some.
    fn linear(&mut self, module: &str, out: u64, inner: u64) -> Result<(), SynthError> {
        let name = format!("{module}.weight");
        if self.spec.dtype != SynthDtype::Fp8 {
            return self.weight(name, &[out, inner]);
        }
        let (fp8, f32) = (Dtype::from("F8_E4M3"), Dtype::from("F32"));
        let scales = [out.div_ceil(FP8_BLOCK), inner.div_ceil(FP8_BLOCK)];
        self.push(name, &fp8, &[out, inner], Fill::weights(&fp8))?;
        self.push(format!("{module}.weight_scale_inv"), &f32, &scales, Fill::scales(&f32))
    }

    fn mlp(&mut self, module: &str, inner: u64) -> Result<(), SynthError> {
        let hidden = self.spec.hidden;
        self.linear(&format!("{module}.gate_proj"), inner, hidden)?;
        self.linear(&format!("{module}.up_proj"), inner, hidden)?;
        self.linear(&format!("{module}.down_proj"), hidden, inner)
    }

    fn layer(&mut self, layer: u32) -> Result<(), SynthError> {
        let module = format!("model.layers.{layer}");
        let hidden = self.spec.hidden;
        self.norm(format!("{module}.input_layernorm.weight"), hidden)?;
        self.attention(&format!("{module}.self_attn"))?;
        self.norm(format!("{module}.post_attention_layernorm.weight"), hidden)?;
        if layer < self.spec.dense_layers {
            return self.mlp(&format!("{module}.mlp"), self.spec.dense_intermediate);
        }
        match self.spec.family {
            SynthFamily::Mixtral => self.mixtral_experts(&module),
            SynthFamily::GptOss => self.stacked_experts(&module),
            SynthFamily::Qwen3Moe | SynthFamily::DeepseekV3 => self.named_experts(&module),
        }
    }

    /// A DeepSeek prediction layer: a layer of its own, with what joins it to
    /// the model.
    fn prediction_layer(&mut self, layer: u32) -> Result<(), SynthError> {
        let module = format!("model.layers.{layer}");
        let (hidden, vocab) = (self.spec.hidden, self.spec.vocab);
        self.norm(format!("{module}.enorm.weight"), hidden)?;
        self.norm(format!("{module}.hnorm.weight"), hidden)?;
        self.weight(format!("{module}.eh_proj.weight"), &[hidden, hidden.saturating_mul(2)])?;
        self.weight(format!("{module}.embed_tokens.weight"), &[vocab, hidden])?;
        self.layer(layer)?;
        self.norm(format!("{module}.shared_head.norm.weight"), hidden)?;
        self.weight(format!("{module}.shared_head.head.weight"), &[vocab, hidden])
    }

    fn attention(&mut self, module: &str) -> Result<(), SynthError> {
        let &SynthSpec { family, hidden, heads, kv_heads, head_dim, .. } = self.spec;
        let (all, kv) = (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim));
        if family == SynthFamily::DeepseekV3 {
            let ranks = Ranks::of(self.spec);
            let query = heads.saturating_mul(head_dim + ranks.rope);
            self.linear(&format!("{module}.q_a_proj"), ranks.query, hidden)?;
            self.norm(format!("{module}.q_a_layernorm.weight"), ranks.query)?;
            self.linear(&format!("{module}.q_b_proj"), query, ranks.query)?;
            let with_rope = ranks.key_value + ranks.rope;
            self.linear(&format!("{module}.kv_a_proj_with_mqa"), with_rope, hidden)?;
            self.norm(format!("{module}.kv_a_layernorm.weight"), ranks.key_value)?;
            let keys_and_values = all.saturating_mul(2);
            self.linear(&format!("{module}.kv_b_proj"), keys_and_values, ranks.key_value)?;
            return self.linear(&format!("{module}.o_proj"), hidden, all);
        }
        for (name, out, inner) in [
            ("q_proj", all, hidden),
            ("k_proj", kv, hidden),
            ("v_proj", kv, hidden),
            ("o_proj", hidden, all),
        ] {
            self.linear(&format!("{module}.{name}"), out, inner)?;
            if family == SynthFamily::GptOss {
                self.weight(format!("{module}.{name}.bias"), &[out])?;
            }
        }
        match family {
            SynthFamily::GptOss => self.weight(format!("{module}.sinks"), &[heads]),
            SynthFamily::Qwen3Moe => {
                self.norm(format!("{module}.q_norm.weight"), head_dim)?;
                self.norm(format!("{module}.k_norm.weight"), head_dim)
            }
            SynthFamily::Mixtral | SynthFamily::DeepseekV3 => Ok(()),
        }
    }

    fn mixtral_experts(&mut self, module: &str) -> Result<(), SynthError> {
        let &SynthSpec { experts, hidden, intermediate, .. } = self.spec;
        let module = format!("{module}.block_sparse_moe");
        self.weight(format!("{module}.gate.weight"), &[u64::from(experts), hidden])?;
        for expert in 0..experts {
            self.linear(&format!("{module}.experts.{expert}.w1"), intermediate, hidden)?;
            self.linear(&format!("{module}.experts.{expert}.w2"), hidden, intermediate)?;
            self.linear(&format!("{module}.experts.{expert}.w3"), intermediate, hidden)?;
        }
        Ok(())
    }

    fn named_experts(&mut self, module: &str) -> Result<(), SynthError> {
        let &SynthSpec { family, experts, shared_experts, hidden, intermediate, .. } = self.spec;
        let module = format!("{module}.mlp");
        self.weight(format!("{module}.gate.weight"), &[u64::from(experts), hidden])?;
        if family == SynthFamily::DeepseekV3 {
            let f32 = Dtype::from("F32");
            let name = format!("{module}.gate.e_score_correction_bias");
            self.push(name, &f32, &[u64::from(experts)], Fill::weights(&f32))?;
        }
        for expert in 0..experts {
            self.mlp(&format!("{module}.experts.{expert}"), intermediate)?;
        }
        if shared_experts == 0 {
            return Ok(());
        }
        let inner = intermediate.saturating_mul(u64::from(shared_experts));
        self.mlp(&format!("{module}.shared_experts"), inner)
    }

    fn stacked_experts(&mut self, module: &str) -> Result<(), SynthError> {
        let &SynthSpec { dtype, hidden, intermediate, .. } = self.spec;
        let experts = u64::from(self.spec.experts);
        let module = format!("{module}.mlp");
        self.weight(format!("{module}.router.weight"), &[experts, hidden])?;
        self.weight(format!("{module}.router.bias"), &[experts])?;
        let both = intermediate.saturating_mul(2);
        for (name, out, inner) in
            [("gate_up_proj", both, hidden), ("down_proj", hidden, intermediate)]
        {
            let name = format!("{module}.experts.{name}");
            if dtype == SynthDtype::Mxfp4 {
                let (u8, blocks) = (Dtype::from("U8"), inner / MXFP4_BLOCK);
                self.push(format!("{name}_blocks"), &u8, &[experts, out, blocks, 16], Fill::BITS)?;
                let scales = [experts, out, blocks];
                self.push(format!("{name}_scales"), &u8, &scales, Fill::exponents())?;
            } else {
                self.weight(name.clone(), &[experts, inner, out])?;
            }
            self.weight(format!("{name}_bias"), &[experts, out])?;
        }
        Ok(())
    }
}

/// The inner widths of DeepSeek's attention, in proportion to its hidden width
/// and its heads' width as released.
pub(super) struct Ranks {
    pub(super) query: u64,
    pub(super) key_value: u64,
    pub(super) rope: u64,
}

impl Ranks {
    pub(super) fn of(spec: &SynthSpec) -> Self {
        let share = |numerator: u64| (spec.hidden.saturating_mul(numerator) / 7168).max(8);
        Self { query: share(1536), key_value: share(512), rope: (spec.head_dim / 2).max(4) }
    }
}

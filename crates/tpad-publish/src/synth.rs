//! Synthetic checkpoints: any shape in the Hugging Face layout, with random
//! values that are the same for the same seed wherever and however they are
//! written.

mod config;
mod error;
mod families;
mod fill;
mod presets;
mod write;

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use tpad_manifest::Dtype;

pub use error::SynthError;
pub use presets::PRESETS;

use crate::Progress;
use fill::Fill;

/// The most experts of all layers: eighty times those of the largest preset. It
/// bounds the list of tensors, which is in memory as a whole.
const MAX_EXPERTS: u64 = 1 << 21;

/// The names and the arrangement of a published family's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynthFamily {
    /// `block_sparse_moe.experts.E.w1`, a softmax router.
    Mixtral,
    /// `mlp.experts.E.gate_proj`, a softmax router.
    Qwen3Moe,
    /// As Qwen3 with shared experts, dense first layers, grouped sigmoid
    /// routing with a correction bias, and a prediction layer.
    DeepseekV3,
    /// Experts stacked in one tensor, with biases.
    GptOss,
}

/// How the experts' weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynthDtype {
    /// BF16.
    Bf16,
    /// F16.
    F16,
    /// F32.
    F32,
    /// F8_E4M3 with an F32 scale for every 128 x 128 block.
    Fp8,
    /// FP4 in U8 with an E8M0 scale for every 32 values; gpt-oss alone.
    Mxfp4,
}

/// A checkpoint to make. All sizes count elements unless they say bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct SynthSpec {
    /// The naming and arrangement.
    pub family: SynthFamily,
    /// How experts are stored.
    pub dtype: SynthDtype,
    /// Transformer layers, prediction layers not counted.
    pub layers: u32,
    /// Of those, how many at the start have a plain MLP instead of experts.
    pub dense_layers: u32,
    /// Multi-token prediction layers after the others.
    pub mtp_layers: u32,
    /// Experts of each MoE layer.
    pub experts: u32,
    /// Experts that a token uses.
    pub experts_per_token: u32,
    /// Experts that every token uses, fused into one MLP.
    pub shared_experts: u32,
    /// Router groups.
    pub groups: u32,
    /// Router groups that a token uses.
    pub groups_per_token: u32,
    /// The model's width.
    pub hidden: u64,
    /// An expert's inner width.
    pub intermediate: u64,
    /// A plain MLP's inner width.
    pub dense_intermediate: u64,
    /// Attention heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// A head's width.
    pub head_dim: u64,
    /// Tokens.
    pub vocab: u64,
    /// The most bytes of tensors in a shard; a larger tensor has its own.
    pub shard_bytes: u64,
    /// Chooses the values.
    pub seed: u64,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synthesized {
    /// The checkpoint's directory.
    pub path: PathBuf,
    /// How many shards it has.
    pub shards: usize,
    /// How many tensors.
    pub tensors: usize,
    /// Bytes of all tensors together.
    pub tensor_bytes: u64,
}

/// A tensor to make.
struct Draft {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: u64,
    fill: Fill,
}

/// Makes the checkpoint in the directory `out`, which must not exist or be
/// empty. Blocks the thread, and uses one thread for each processor.
///
/// Everything is written to a hidden directory beside `out` and renamed at the
/// end: when `stop` is cancelled or anything fails, nothing is left.
///
/// # Errors
/// A shape that no model could have, too little space, or a file that cannot be
/// written.
pub fn synthesize(
    spec: &SynthSpec,
    out: &Path,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Synthesized, SynthError> {
    spec.check()?;
    let drafts = families::drafts(spec)?;
    write::write(spec, drafts, out, progress, stop)
}

impl SynthSpec {
    /// Bytes of all tensors together.
    ///
    /// # Errors
    /// A shape that no model could have.
    pub fn tensor_bytes(&self) -> Result<u64, SynthError> {
        self.check()?;
        let drafts = families::drafts(self)?;
        Ok(drafts.iter().map(|draft| draft.bytes).sum())
    }

    /// The same shape with about `scale` times the parameters: widths and
    /// vocabulary shrink by its square root, while layers, experts and heads
    /// keep their number. Widths stay multiples of 32, and do not go below it.
    #[must_use]
    pub fn scaled(mut self, scale: f64) -> Self {
        let factor = scale.max(0.0).sqrt();
        for width in [
            &mut self.hidden,
            &mut self.intermediate,
            &mut self.dense_intermediate,
            &mut self.vocab,
        ] {
            *width = scale_width(*width, factor, 32);
        }
        self.head_dim = scale_width(self.head_dim, factor, 8);
        self
    }

    /// Whether some model could have this shape.
    fn check(&self) -> Result<(), SynthError> {
        let refuse = |message: String| Err(SynthError::Shape(message));
        let positive = [
            ("layers", u64::from(self.layers)),
            ("experts", u64::from(self.experts)),
            ("experts per token", u64::from(self.experts_per_token)),
            ("groups", u64::from(self.groups)),
            ("groups per token", u64::from(self.groups_per_token)),
            ("hidden", self.hidden),
            ("intermediate", self.intermediate),
            ("dense intermediate", self.dense_intermediate),
            ("heads", self.heads),
            ("kv heads", self.kv_heads),
            ("head dim", self.head_dim),
            ("vocab", self.vocab),
            ("shard bytes", self.shard_bytes),
        ];
        if let Some((what, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return refuse(format!("{what} may not be 0"));
        }
        let layers = u64::from(self.layers) + u64::from(self.mtp_layers);
        // Attention and norms take as much room in the list as some experts do.
        if layers.saturating_mul(u64::from(self.experts) + 8) > MAX_EXPERTS {
            return refuse(format!(
                "{layers} layers of {} experts have more tensors than can be listed",
                self.experts
            ));
        }
        if self.experts_per_token > self.experts {
            return refuse(format!(
                "a token cannot use {} of {} experts",
                self.experts_per_token, self.experts
            ));
        }
        if self.groups_per_token > self.groups || !self.experts.is_multiple_of(self.groups) {
            return refuse(format!(
                "{} experts cannot form {} groups of which a token uses {}",
                self.experts, self.groups, self.groups_per_token
            ));
        }
        if self.dense_layers >= self.layers {
            return refuse(format!("{} layers leave none with experts", self.layers));
        }
        let stacked = self.family == SynthFamily::GptOss;
        if self.dtype == SynthDtype::Mxfp4 && !stacked {
            return refuse("only gpt-oss stores experts as MXFP4".to_owned());
        }
        if self.dtype == SynthDtype::Fp8 && stacked {
            return refuse("gpt-oss does not store experts as FP8".to_owned());
        }
        let blocks = |width: u64| width.is_multiple_of(32);
        if self.dtype == SynthDtype::Mxfp4 && !(blocks(self.hidden) && blocks(self.intermediate)) {
            return refuse("MXFP4 needs widths that are multiples of 32".to_owned());
        }
        Ok(())
    }
}

fn scale_width(width: u64, factor: f64, step: u64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a width is far below 2^52, and the cast saturates"
    )]
    let steps = (width as f64 * factor / step as f64).round() as u64;
    steps.max(1).saturating_mul(step)
}

//! `tpactl synth`.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tpad_publish::{
    PRESETS, SynthDtype, SynthError, SynthFamily, SynthSpec, Synthesized, synthesize,
};

use crate::bar::Bar;
use crate::failure::{Exit, Failure};
use crate::output::{Output, human_bytes};
use crate::size::size;

/// Make a random, reproducible checkpoint in the Hugging Face layout
///
/// A preset has the names, shapes and files of a published model. --scale shrinks its widths and
/// vocabulary and keeps the number of layers, experts and heads; every number can be set by
/// itself. The same seed gives the same values on every machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl synth --preset qwen3-30b-a3b --scale 0.01 ./checkpoint
  tpactl synth --preset mixtral-8x7b --layers 2 --experts 4 --dtype f16 --shard-size 1GiB ./checkpoint")]
pub(crate) struct Args {
    /// The directory to make; it must not exist, or be empty
    out: PathBuf,

    /// The published model to imitate
    #[arg(long, value_name = "NAME", default_value = "qwen3-30b-a3b", value_parser = PRESETS.to_vec())]
    preset: String,

    /// Parameters, as a fraction of the preset's
    #[arg(long, value_name = "FRACTION", default_value_t = 1.0, value_parser = fraction)]
    scale: f64,

    /// Transformer layers
    #[arg(long, value_name = "N")]
    layers: Option<u32>,

    /// Layers at the start that have no experts
    #[arg(long, value_name = "N")]
    dense_layers: Option<u32>,

    /// Experts of each layer
    #[arg(long, value_name = "N")]
    experts: Option<u32>,

    /// Experts that a token uses
    #[arg(long, value_name = "N")]
    experts_per_token: Option<u32>,

    /// Groups of the router
    #[arg(long, value_name = "N")]
    groups: Option<u32>,

    /// The model's width
    #[arg(long, value_name = "N")]
    hidden: Option<u64>,

    /// An expert's inner width
    #[arg(long, value_name = "N")]
    intermediate: Option<u64>,

    /// Tokens in the vocabulary
    #[arg(long, value_name = "N")]
    vocab: Option<u64>,

    /// How experts are stored
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Stored>,

    /// The most tensor bytes in a shard, such as 512MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shard_size: Option<u64>,

    /// Chooses the values
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Say how large the checkpoint would be, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// How experts are stored.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Stored {
    Bf16,
    F16,
    F32,
    /// F8_E4M3 with a scale for every 128 x 128 block
    Fp8,
    /// FP4 with a scale for every 32 values (gpt-oss)
    Mxfp4,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    out: String,
    shards: Option<usize>,
    tensors: Option<usize>,
    tensor_bytes: u64,
    dry_run: bool,
}

pub(crate) async fn run(
    args: Args,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let spec = args.spec()?;
    let out = args.out.display().to_string();
    if args.dry_run {
        let tensor_bytes = spec.tensor_bytes()?;
        if output.is_json() {
            let report = Report { out, shards: None, tensors: None, tensor_bytes, dry_run: true };
            return output.json(&report);
        }
        return output.text(format_args!("{out} would take {}", human_bytes(tensor_bytes)));
    }
    let (path, stop, bar) = (args.out, stop.clone(), Bar::new());
    let made = tokio::task::spawn_blocking(move || synthesize(&spec, &path, &bar, &stop)).await;
    let made = made.map_err(|error| Failure::new(Exit::Internal, error))??;
    let Synthesized { path: _, shards, tensors, tensor_bytes } = made;
    if output.is_json() {
        return output.json(&Report {
            out,
            shards: Some(shards),
            tensors: Some(tensors),
            tensor_bytes,
            dry_run: false,
        });
    }
    let size = human_bytes(tensor_bytes);
    output.text(format_args!("{out}: {tensors} tensors, {size}, in {shards} shards"))
}

impl Args {
    fn spec(&self) -> Result<SynthSpec, Failure> {
        let mut spec = SynthSpec::preset(&self.preset)?.scaled(self.scale);
        let set = |field: &mut u32, value: Option<u32>| *field = value.unwrap_or(*field);
        set(&mut spec.layers, self.layers);
        set(&mut spec.dense_layers, self.dense_layers);
        set(&mut spec.experts, self.experts);
        set(&mut spec.experts_per_token, self.experts_per_token);
        set(&mut spec.groups, self.groups);
        let set = |field: &mut u64, value: Option<u64>| *field = value.unwrap_or(*field);
        set(&mut spec.hidden, self.hidden);
        set(&mut spec.intermediate, self.intermediate);
        set(&mut spec.vocab, self.vocab);
        set(&mut spec.shard_bytes, self.shard_size);
        spec.seed = self.seed;
        // A preset's own choice gives way to a smaller model's numbers; what was
        // asked for by name does not.
        if self.dense_layers.is_none() {
            spec.dense_layers = spec.dense_layers.min(spec.layers.saturating_sub(1));
        }
        if self.experts_per_token.is_none() {
            spec.experts_per_token = spec.experts_per_token.min(spec.experts);
        }
        if self.groups.is_none() && !spec.experts.is_multiple_of(spec.groups) {
            spec.groups = 1;
        }
        spec.groups_per_token = spec.groups_per_token.min(spec.groups);
        if spec.family == SynthFamily::Mixtral {
            spec.dense_intermediate = spec.intermediate;
        }
        if let Some(dtype) = self.dtype {
            spec.dtype = match dtype {
                Stored::Bf16 => SynthDtype::Bf16,
                Stored::F16 => SynthDtype::F16,
                Stored::F32 => SynthDtype::F32,
                Stored::Fp8 => SynthDtype::Fp8,
                Stored::Mxfp4 => SynthDtype::Mxfp4,
            };
        }
        Ok(spec)
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale > 0.0 && scale <= 100.0 => Ok(scale),
        _ => Err("a number above 0 and up to 100 is expected".to_owned()),
    }
}

impl From<SynthError> for Failure {
    fn from(error: SynthError) -> Self {
        let exit = match &error {
            SynthError::UnknownPreset { .. } | SynthError::Shape(_) => Exit::Usage,
            SynthError::Occupied(_) => Exit::FailedPrecondition,
            SynthError::Space { .. } | SynthError::Io { .. } => Exit::Local,
            SynthError::Cancelled => Exit::Interrupted,
        };
        Self::new(exit, error)
    }
}

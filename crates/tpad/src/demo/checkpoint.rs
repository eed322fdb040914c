//! The demo's checkpoint: made, and imported as three tiers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tpad_publish::{
    ImportOptions, Plan, Silent, SynthDtype, SynthFamily, SynthSpec, import, synthesize,
};
use tpad_store::{ObjectOrigin, OriginOptions};

use super::{DemoError, MODEL};

/// Qwen3's arrangement, scaled down to 55 MB: 64 experts of 192 KiB in four
/// layers, in several shards.
const SPEC: SynthSpec = SynthSpec {
    family: SynthFamily::Qwen3Moe,
    dtype: SynthDtype::Bf16,
    layers: 4,
    dense_layers: 0,
    mtp_layers: 0,
    experts: 64,
    experts_per_token: 4,
    shared_experts: 0,
    groups: 1,
    groups_per_token: 1,
    hidden: 256,
    intermediate: 128,
    dense_intermediate: 512,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    vocab: 2048,
    shard_bytes: 16 << 20,
    seed: 1,
};

/// Its three tiers.
const PLAN: &str = include_str!("plan.toml");

/// A checkpoint with a revision.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) path: PathBuf,
    pub(super) shards: usize,
    pub(super) synthesized_in: Duration,
    pub(super) imported_in: Duration,
}

/// Makes the checkpoint in `path` and imports it there. Ends early, with an
/// error, when `stop` is cancelled; nothing writes to `path` after it returned.
pub(super) async fn make(path: &Path, stop: &CancellationToken) -> Result<Checkpoint, DemoError> {
    let began = Instant::now();
    let (directory, stopped) = (path.to_owned(), stop.clone());
    let synthesizing =
        tokio::task::spawn_blocking(move || synthesize(&SPEC, &directory, &Silent, &stopped));
    let synthesized = synthesizing.await.map_err(std::io::Error::other)??;
    let synthesized_in = began.elapsed();

    let began = Instant::now();
    let root = ObjectOrigin::open(&path.to_string_lossy(), &OriginOptions::default())?;
    let options = ImportOptions {
        model: MODEL.to_owned(),
        plan: Some(Plan::parse(PLAN)?),
        dry_run: false,
        ledger: None,
        now: Timestamp::now(),
    };
    import(&root, None, &options, &Silent, stop).await?;
    Ok(Checkpoint {
        path: synthesized.path,
        shards: synthesized.shards,
        synthesized_in,
        imported_in: began.elapsed(),
    })
}

//! `tpactl fetch`: blocks of a served model into a safetensors file.

mod file;
mod shard;

use std::path::PathBuf;

use clap::ArgGroup;
use serde::Serialize;
use tpad_client::{
    BlockStream, Client, FetchDense, FetchExperts, FetchRouters, FetchedBlock, StreamStart,
};
use tpad_manifest::{BlockKey, ExpertKey, TierId};

use crate::failure::{Exit, Failure};
use crate::output::{Output, human_bytes};
use crate::progress;

/// Fetch experts, routers, dense tensors or files and write them to a file
///
/// Tensors are written as safetensors under the names that they have in the checkpoint; one
/// expert's slice of a stacked tensor has lost the expert axis. Every byte is checked against its
/// digest, and FILE appears only when it is complete.
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("what").required(true).args(["expert", "router", "dense", "file"]),
    after_help = "\
Examples:
  tpactl fetch --model m --tier tier_1b --group 0 --expert 3 --layer 5 --out e3.safetensors
  tpactl fetch --model m --tier tier_1b --router --out routers.safetensors
  tpactl fetch --model m --dense model.embed_tokens.weight --out embed.safetensors
  tpactl fetch --model m --file config.json --out config.json"
)]
pub(crate) struct Args {
    /// The model's name
    #[arg(long, value_name = "M")]
    model: String,

    /// The tier's id; for --router, all tiers of the default tier set when left out
    #[arg(long, value_name = "T", conflicts_with_all = ["dense", "file"])]
    tier: Option<TierId>,

    /// The group, from 0 within its tier
    #[arg(long, value_name = "G", requires = "expert")]
    group: Option<u32>,

    /// The expert, from 0 within its group
    #[arg(long, value_name = "E", requires = "tier", requires = "group")]
    expert: Option<u32>,

    /// Router heads
    #[arg(long)]
    router: bool,

    /// A dense tensor, by its name in the checkpoint; may be repeated
    #[arg(long, value_name = "NAME")]
    dense: Vec<String>,

    /// One of the checkpoint's small files, such as config.json
    #[arg(long, value_name = "NAME")]
    file: Option<String>,

    /// A layer, by its number in the checkpoint; may be repeated [default: every layer]
    #[arg(long = "layer", value_name = "L", conflicts_with_all = ["dense", "file"])]
    layers: Vec<u32>,

    /// Where to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What `--json` prints for tensors.
#[derive(Serialize)]
struct Report<'a> {
    out: String,
    model: &'a str,
    revision: u64,
    generation: u64,
    bytes: u64,
    blocks: Vec<BlockReport>,
}

#[derive(Serialize)]
struct BlockReport {
    key: KeyReport,
    block_id: String,
    medium: &'static str,
    image_bytes: usize,
    source_expert: Option<u32>,
    router_column: Option<u32>,
    tensors: Vec<TensorReport>,
}

#[derive(Serialize)]
struct TensorReport {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    bytes: usize,
}

/// A block's key in JSON.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum KeyReport {
    Expert { tier: String, group: u32, expert: u32, layer: u32 },
    Router { tier: String, layer: u32 },
    Dense { name: String },
}

impl From<&BlockKey> for KeyReport {
    fn from(key: &BlockKey) -> Self {
        match key {
            BlockKey::Expert { key, layer } => Self::Expert {
                tier: key.tier.to_string(),
                group: key.group,
                expert: key.expert,
                layer: *layer,
            },
            BlockKey::Router { tier, layer } => {
                Self::Router { tier: tier.to_string(), layer: *layer }
            }
            BlockKey::Dense { name } => Self::Dense { name: name.to_string() },
        }
    }
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    if let Some(name) = &args.file {
        return fetch_file(&args, name, client, output).await;
    }
    let what = args.to_string();
    let context = |failure: Failure| failure.about(&what);
    let stream = args.open(client).await.map_err(|error| context(error.into()))?;
    let start = stream.start().clone();
    let mut blocks = collect(stream).await.map_err(context)?;
    // Blocks come in any order; the file and the report should not.
    blocks.sort_by(|left, right| left.key.cmp(&right.key));
    let report = report(&args, &start, &blocks);
    let out = args.out.clone();
    let metadata = [("format", "pt".to_owned()), ("tpad.model", start.model.clone())]
        .into_iter()
        .chain([("tpad.revision", start.revision.to_string())]);
    let shard = shard::Shard::of(&blocks, metadata).map_err(context)?;
    blocking(move || file::write(&out, |file| shard.write(file))).await?;
    show(output, &report)
}

impl std::fmt::Display for Args {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.tier, self.group, self.expert) {
            (Some(tier), Some(group), Some(expert)) => write!(f, "expert {tier}/{group}/{expert}")?,
            (Some(tier), ..) => write!(f, "router of tier {tier}")?,
            _ if self.router => write!(f, "routers")?,
            _ => write!(f, "dense {}", self.dense.join(", "))?,
        }
        if let [layer] = self.layers[..] {
            write!(f, " at layer {layer}")?;
        } else if !self.layers.is_empty() {
            write!(f, " at layers {:?}", self.layers)?;
        }
        write!(f, " of model {}", self.model)
    }
}

impl Args {
    async fn open(&self, client: &Client) -> Result<BlockStream, tpad_client::Error> {
        let model = self.model.clone();
        let layers = self.layers.clone();
        match (&self.tier, self.group, self.expert) {
            (Some(tier), Some(group), Some(expert)) => {
                let keys = vec![ExpertKey { tier: tier.clone(), group, expert }];
                let request = FetchExperts { model, keys, layers, ..FetchExperts::default() };
                client.fetch_experts(request).await
            }
            (tier, ..) if self.router => {
                let tiers = tier.iter().map(ToString::to_string).collect();
                client.fetch_routers(FetchRouters { model, tiers, layers }).await
            }
            _ => client.fetch_dense(FetchDense { model, names: self.dense.clone() }).await,
        }
    }
}

async fn collect(mut stream: BlockStream) -> Result<Vec<FetchedBlock>, Failure> {
    let bar = progress::bytes("fetch", Some(stream.start().bytes));
    let mut blocks = Vec::new();
    while let Some(block) = stream.next().await {
        let block = block?;
        bar.inc(block.image.len() as u64);
        blocks.push(block);
    }
    bar.finish_and_clear();
    Ok(blocks)
}

fn report<'a>(args: &Args, start: &'a StreamStart, blocks: &[FetchedBlock]) -> Report<'a> {
    Report {
        out: args.out.display().to_string(),
        model: &start.model,
        revision: start.revision,
        generation: start.generation,
        bytes: start.bytes,
        blocks: blocks.iter().map(block_report).collect(),
    }
}

fn block_report(block: &FetchedBlock) -> BlockReport {
    BlockReport {
        key: (&block.key).into(),
        block_id: block.id.to_string(),
        medium: block.medium.as_str(),
        image_bytes: block.image.len(),
        source_expert: block.source.map(|source| source.expert),
        router_column: block.source.map(|source| source.column),
        tensors: block
            .tensors
            .iter()
            .map(|tensor| TensorReport {
                name: tensor.name.to_string(),
                dtype: tensor.dtype.to_string(),
                shape: tensor.shape.clone(),
                bytes: tensor.bytes.len(),
            })
            .collect(),
    }
}

fn show(output: &Output, report: &Report<'_>) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(report);
    }
    let blocks = report.blocks.iter();
    let rows: Vec<Vec<String>> = blocks
        .flat_map(|block| {
            block.tensors.iter().map(|tensor| {
                vec![
                    tensor.name.clone(),
                    tensor.dtype.clone(),
                    format!("{:?}", tensor.shape),
                    human_bytes(tensor.bytes as u64),
                    block.medium.to_owned(),
                ]
            })
        })
        .collect();
    output.text(output.table(&["TENSOR", "DTYPE", "SHAPE", "SIZE", "FROM"], &rows))?;
    output.text(format_args!(
        "{} of model {} at revision {}: {} in {}",
        plural(report.blocks.len(), "block"),
        report.model,
        report.revision,
        human_bytes(report.bytes),
        report.out,
    ))
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

async fn fetch_file(
    args: &Args,
    name: &str,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let what = format!("file {name} of model {}", args.model);
    let fetched = client
        .fetch_file(&args.model, name)
        .await
        .map_err(|error| Failure::from(error).about(&what))?;
    let (out, bytes) = (args.out.clone(), fetched.bytes.clone());
    blocking(move || file::write(&out, |file| std::io::Write::write_all(file, &bytes))).await?;
    let out = args.out.display();
    if output.is_json() {
        return output.json(&serde_json::json!({
            "out": out.to_string(),
            "model": args.model,
            "name": fetched.name,
            "revision": fetched.revision,
            "generation": fetched.generation,
            "bytes": fetched.bytes.len(),
            "digest": fetched.digest,
        }));
    }
    output.text(format_args!("{what}: {} in {out}", human_bytes(fetched.bytes.len() as u64)))
}

/// Runs file work where it holds nobody up.
async fn blocking(
    work: impl FnOnce() -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::new(Exit::Internal, error)))
}

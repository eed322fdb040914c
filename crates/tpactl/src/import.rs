//! `tpactl import`.

use std::path::PathBuf;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Manifest, TierRecord};
use tpad_publish::{ImportError, ImportOptions, ImportOutcome, Imported, Plan, import};
use tpad_store::{ErrorKind, ObjectOrigin, OriginError};

use crate::bar::Bar;
use crate::failure::{Exit, Failure};
use crate::output::{Output, human_bytes, printable};
use crate::surroundings::{StoreArgs, Surroundings};

/// Publish a revision that points into the shards of an existing checkpoint
///
/// Reads every byte once to know its digest, and rewrites none. The layout is recognised by tensor
/// names and shapes. Interrupted, it leaves no revision; run again, it goes on where it stopped.
/// A checkpoint that the newest revision describes already is left as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl import ./Mixtral-8x7B-v0.1 --model mixtral
  tpactl import s3://models/qwen3-30b-a3b --model qwen3 --plan tiers.toml
  tpactl import s3://read-only/model --model m --out s3://mine/model
  tpactl import ./checkpoint --model m --dry-run")]
pub(crate) struct Args {
    /// The checkpoint: a directory (a Hugging Face snapshot will do) or an object-store prefix
    root: String,

    /// The model's name: up to 256 bytes without white space
    #[arg(long, value_name = "NAME", value_parser = name)]
    model: String,

    /// How experts are sorted into tiers and groups (TOML); without it there is one tier
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,

    /// Where to write the manifest, if not to the checkpoint itself
    #[arg(long, value_name = "ROOT2")]
    out: Option<String>,

    /// Read headers only, say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Where an interrupted import keeps its digests [default: tpad/import in the user's cache
    /// directory]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    #[command(flatten)]
    store: StoreArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    outcome: &'static str,
    url: String,
    revision: u64,
    model: &'a str,
    layout: &'a str,
    blocks: u64,
    image_bytes: u64,
    resumed_blocks: u64,
    parameters: &'a [u64],
    notes: &'a [String],
    manifest: &'a Manifest,
}

pub(crate) async fn run(
    args: Args,
    surroundings: &Surroundings,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let plan = args.plan.as_deref().map(read_plan).transpose()?;
    let stores = surroundings.stores(&args.store);
    let root = ObjectOrigin::open(&args.root, &stores)?;
    let out = args.out.as_deref().map(|out| ObjectOrigin::open(out, &stores)).transpose()?;
    let in_cache = || surroundings.cache.as_ref().map(|cache| cache.join("tpad").join("import"));
    let options = ImportOptions {
        model: args.model,
        plan,
        dry_run: args.dry_run,
        ledger: args.state_dir.or_else(in_cache),
        now: jiff::Timestamp::now(),
    };
    let bar = Bar::new();
    let imported = import(&root, out.as_ref(), &options, &bar, stop).await?;
    drop(bar);
    if output.is_json() {
        return output.json(&report(&imported));
    }
    for note in &imported.notes {
        output.note(format_args!("note: {}", printable(note)));
    }
    output.text(summary(&imported))?;
    output.text(tiers(output, &imported))
}

/// A name by the rule that a daemon's configuration has for models.
fn name(text: &str) -> Result<String, String> {
    let odd = |c: char| c.is_control() || c.is_whitespace();
    if (1..=256).contains(&text.len()) && !text.chars().any(odd) {
        return Ok(text.to_owned());
    }
    Err("1 to 256 bytes without white space and control characters are expected".to_owned())
}

/// A plan from a file.
pub(crate) fn read_plan(path: &std::path::Path) -> Result<Plan, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::local(format!("{shown}: {error}")))?;
    Plan::parse(&text)
        .map_err(|error| Failure::new(Exit::InvalidArgument, format!("{shown}: {error}")))
}

fn report(imported: &Imported) -> Report<'_> {
    Report {
        outcome: match imported.outcome {
            ImportOutcome::Written => "written",
            ImportOutcome::Unchanged => "unchanged",
            ImportOutcome::DryRun => "dry_run",
        },
        url: imported.url(),
        revision: imported.manifest.revision,
        model: &imported.manifest.model,
        layout: imported.family,
        blocks: imported.blocks,
        image_bytes: imported.image_bytes,
        resumed_blocks: imported.resumed,
        parameters: &imported.parameters,
        notes: &imported.notes,
        manifest: &imported.manifest,
    }
}

fn summary(imported: &Imported) -> String {
    let Imported { blocks, image_bytes, family, .. } = imported;
    let (url, size) = (printable(&imported.url()), human_bytes(*image_bytes));
    let what = match imported.outcome {
        ImportOutcome::Written => "published",
        ImportOutcome::Unchanged => "unchanged: this revision says the same",
        ImportOutcome::DryRun => "would be published",
    };
    let resumed = match imported.resumed {
        0 => String::new(),
        resumed => format!(", {resumed} of them digested before an interruption"),
    };
    format!("{url}: {what}\n{family}: {blocks} blocks, {size}{resumed}")
}

fn tiers(output: &Output, imported: &Imported) -> String {
    let row = |(tier, parameters): (&TierRecord, &u64)| {
        let experts: u64 = tier.groups.iter().map(|group| u64::from(group.experts)).sum();
        vec![
            tier.id.to_string(),
            tier.groups.len().to_string(),
            experts.to_string(),
            format!("{}/{}/{}", tier.routing.k_tier, tier.routing.k_group, tier.routing.k_expert),
            parameters.to_string(),
            tier.parameter_budget.to_string(),
            tier.placement.as_str().to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> =
        imported.manifest.tiers.iter().zip(&imported.parameters).map(row).collect();
    let headings = ["TIER", "GROUPS", "EXPERTS", "K", "PARAMETERS", "BUDGET", "PLACEMENT"];
    output.table(&headings, &rows)
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        let failure = Self::new(error.kind().into(), &error);
        match &error {
            ImportError::Origin(error) => origin(error),
            ImportError::Cancelled => failure.remedy("run it again: it goes on where it stopped"),
            ImportError::Layout(_) => failure.remedy(
                "layouts are recognised by tensor names and shapes; --plan only sorts what was \
                 recognised",
            ),
            _ => failure,
        }
    }
}

impl From<OriginError> for Failure {
    fn from(error: OriginError) -> Self {
        origin(&error)
    }
}

fn origin(error: &OriginError) -> Failure {
    let failure = Failure::new(error.kind().into(), error);
    match (error, error.kind()) {
        (OriginError::Unsupported { .. }, _) => {
            failure.remedy("write the manifest to a directory or an object store with --out")
        }
        (
            OriginError::Denied { object, .. } | OriginError::Io { object, .. },
            ErrorKind::Denied,
        ) if !object.contains("://") => failure.remedy(
            "check the permissions; a checkpoint that cannot be written to is imported with \
                 --out",
        ),
        (_, ErrorKind::Denied) => failure.remedy(
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or what your store's own tools read, \
             or give --instance-credentials",
        ),
        _ => failure,
    }
}

//! `tpactl tier add`.

use std::path::PathBuf;

use jiff::SignedDuration;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Manifest, Placement, Routing, TierId};
use tpad_publish::{GrowOptions, GrowOutcome, Grown, add_tier};
use tpad_store::ObjectOrigin;

use crate::bar::Bar;
use crate::failure::Failure;
use crate::import::read_plan;
use crate::manifest::diff;
use crate::output::{Output, human_bytes, printable};
use crate::publish::outcome;
use crate::surroundings::{StoreArgs, Surroundings};

/// Add a tier to the newest revision, and touch nothing that exists
///
/// Takes the new experts and a routing head for every MoE layer from a checkpoint in the Hugging
/// Face layout, or from one whose tensors are named for the tier (docs/tiers.md). What the
/// checkpoint holds of the model besides must equal it byte for byte. Interrupted, it leaves no
/// revision; run again, it uploads only what is missing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl tier add s3://models/m --id tier_10b --from ./tier_10b --budget 10B --placement nvme \\
    --k-group 1 --k-expert 2
  tpactl tier add ./m --id 2 --from ./grown --plan new.toml --budget 3B --placement dram \\
    --k-expert 4 --dry-run")]
pub(super) struct Args {
    /// The model's root: a directory or an object-store prefix with a revision
    root: String,

    /// The new tier's id, which no tier of the model has
    #[arg(long, value_name = "ID", value_parser = super::tier_id)]
    id: TierId,

    /// The checkpoint with the new tier's tensors: a directory or an object-store prefix
    #[arg(long, value_name = "CHECKPOINT")]
    from: String,

    /// Which of the checkpoint's experts are the tier's and how they are grouped (TOML); what it
    /// calls unused is the model's own
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,

    /// The most logical parameters that the tier's experts may have: 10B, 700M
    #[arg(long, value_name = "N", value_parser = super::parameters)]
    budget: u64,

    /// The tier's home: hbm, dram, nvme or object_store
    #[arg(long, value_name = "P", value_parser = super::placement)]
    placement: Placement,

    /// How many tiers a token may use while this one is active; of several active tiers the largest
    /// counts
    #[arg(long, value_name = "K", default_value_t = 1)]
    k_tier: u32,

    /// How many of the tier's groups a token uses
    #[arg(long, value_name = "K", default_value_t = 1)]
    k_group: u32,

    /// How many of the tier's experts a token uses
    #[arg(long, value_name = "K")]
    k_expert: u32,

    /// Days after which the store's clean-up may take objects that no revision names: uploads of an
    /// earlier run are written again once they are half as old
    #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    retention: u16,

    /// Read headers only, say what would change and how much budget is left, and write nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    store: StoreArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    outcome: &'static str,
    url: String,
    revision: u64,
    model_version: String,
    tier: String,
    layout: &'a str,
    blocks: u64,
    image_bytes: u64,
    parameters: u64,
    parameter_budget: u64,
    headroom: u64,
    compared_blocks: u64,
    reused_bytes: u64,
    diff: diff::Report,
    notes: &'a [String],
    manifest: &'a Manifest,
}

pub(super) async fn run(
    args: Args,
    surroundings: &Surroundings,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let plan = args.plan.as_deref().map(read_plan).transpose()?;
    let stores = surroundings.stores(&args.store);
    let root = ObjectOrigin::open(&args.root, &stores)?;
    let from = ObjectOrigin::open(&args.from, &stores)?;
    let options = GrowOptions {
        id: args.id,
        plan,
        budget: args.budget,
        placement: args.placement,
        routing: Routing { k_tier: args.k_tier, k_group: args.k_group, k_expert: args.k_expert },
        dry_run: args.dry_run,
        retention: SignedDuration::from_hours(i64::from(args.retention) * 24),
        now: jiff::Timestamp::now(),
    };
    let bar = Bar::new();
    let grown = add_tier(&root, &from, &options, &bar, stop).await?;
    drop(bar);
    if output.is_json() {
        return output.json(&report(&grown, &options));
    }
    for note in &grown.notes {
        output.note(format_args!("note: {}", printable(note)));
    }
    output.text(summary(&grown, &options))?;
    output.text(diff::text(&grown.changes, output))
}

fn report<'a>(grown: &'a Grown, options: &GrowOptions) -> Report<'a> {
    Report {
        outcome: outcome(grown.outcome),
        url: grown.url(),
        revision: grown.manifest.revision,
        model_version: grown.manifest.model_version.to_string(),
        tier: options.id.to_string(),
        layout: grown.family,
        blocks: grown.blocks,
        image_bytes: grown.image_bytes,
        parameters: grown.parameters,
        parameter_budget: grown.budget,
        headroom: grown.budget.saturating_sub(grown.parameters),
        compared_blocks: grown.compared,
        reused_bytes: grown.reused_bytes,
        diff: diff::report(&grown.changes),
        notes: &grown.notes,
        manifest: &grown.manifest,
    }
}

fn summary(grown: &Grown, options: &GrowOptions) -> String {
    let Grown { blocks, image_bytes, family, parameters, budget, compared, .. } = grown;
    let (url, size) = (printable(&grown.url()), human_bytes(*image_bytes));
    let version = grown.manifest.model_version;
    let what = match grown.outcome {
        GrowOutcome::Written => "published",
        GrowOutcome::Unchanged => "unchanged: it has this tier already",
        GrowOutcome::DryRun => "would be published",
    };
    let left = budget.saturating_sub(*parameters);
    let mut text = format!(
        "{url}: {what}, model_version {version}\n\
         tier {}: {family}: {blocks} blocks, {size}\n\
         {parameters} parameters of a budget of {budget}: {left} are left",
        printable(&options.id.to_string())
    );
    if *compared > 0 {
        let how = match grown.outcome {
            GrowOutcome::DryRun => "would be compared with the model",
            GrowOutcome::Written | GrowOutcome::Unchanged => "are equal to the model's",
        };
        text.push_str(&format!("\n{compared} blocks of the checkpoint are old and {how}"));
    }
    if grown.reused_bytes > 0 {
        let reused = human_bytes(grown.reused_bytes);
        text.push_str(&format!("\n{reused} had been uploaded before"));
    }
    text
}

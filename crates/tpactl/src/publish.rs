//! `tpactl publish`.

use std::path::PathBuf;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Effect, Manifest};
use tpad_publish::{AmendOptions, Amended, Amendment, GrowOutcome, amend};
use tpad_store::ObjectOrigin;

use crate::failure::Failure;
use crate::manifest::diff;
use crate::output::{Output, printable};
use crate::surroundings::{StoreArgs, Surroundings};

/// Publish an edited manifest as the next revision
///
/// Takes the document that `tpactl manifest show` printed, as it was edited: revision, parent,
/// model_version and created_at are set here. What breaks workers of the newest revision (other k
/// values, a tier that is gone, other weights, another default_tier_set) is refused with every
/// violation; with --major it becomes the next major version, which daemons that serve the newest
/// one take without comparing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl manifest show ./m > m.json; $EDITOR m.json; tpactl publish ./m m.json --dry-run
  tpactl publish s3://models/m m.json --major")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,

    /// The edited document
    #[arg(value_name = "FILE")]
    document: PathBuf,

    /// Make the next major version if something breaks
    #[arg(long)]
    major: bool,
}

/// Where a revision is made.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The model's root: a directory or an object-store prefix with a revision
    root: String,

    /// Say what would change, and write nothing
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
    previous_version: String,
    diff: diff::Report,
    manifest: &'a Manifest,
}

pub(crate) async fn run(
    args: Args,
    surroundings: &Surroundings,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let Args { target, document, major } = args;
    let text = std::fs::read(&document)
        .map_err(|error| Failure::local(format!("{}: {error}", document.display())))?;
    let amendment = Amendment::Document { text: text.into() };
    amend_and_report(target, &amendment, major, surroundings, output, stop).await
}

/// Makes the revision and says what changed.
pub(crate) async fn amend_and_report(
    target: Target,
    amendment: &Amendment,
    major: bool,
    surroundings: &Surroundings,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let root = ObjectOrigin::open(&target.root, &surroundings.stores(&target.store))?;
    let options = AmendOptions { major, dry_run: target.dry_run, now: jiff::Timestamp::now() };
    let amended = stop.run_until_cancelled(amend(&root, amendment, &options)).await;
    let amended = amended.ok_or_else(Failure::interrupted)??;
    if output.is_json() {
        return output.json(&Report {
            outcome: outcome(amended.outcome),
            url: amended.url(),
            revision: amended.manifest.revision,
            model_version: amended.manifest.model_version.to_string(),
            previous_version: amended.from.to_string(),
            diff: diff::report(&amended.changes),
            manifest: &amended.manifest,
        });
    }
    output.text(summary(&amended))?;
    output.text(diff::text(&amended.changes, output))?;
    if major && amended.changes.effect() != Some(Effect::Breaking) {
        output.note("note: nothing breaks, so the major version stays");
    }
    Ok(())
}

/// The word for what became of a revision.
pub(crate) fn outcome(outcome: GrowOutcome) -> &'static str {
    match outcome {
        GrowOutcome::Written => "written",
        GrowOutcome::Unchanged => "unchanged",
        GrowOutcome::DryRun => "dry_run",
    }
}

fn summary(amended: &Amended) -> String {
    let url = printable(&amended.url());
    let what = match amended.outcome {
        GrowOutcome::Written => "published",
        GrowOutcome::Unchanged => return format!("{url}: unchanged: it says the same"),
        GrowOutcome::DryRun => "would be published",
    };
    let (from, to) = (amended.from, amended.manifest.model_version);
    let version = match (from.major == to.major, from == to) {
        (_, true) => format!("model_version stays {to}"),
        (true, false) => format!("model_version {from} becomes {to}"),
        (false, false) => {
            format!("model_version {from} becomes {to}: workers of {from} break with it")
        }
    };
    format!("{url}: {what}, {version}")
}

//! `tpactl manifest`.

mod blocks;
pub(crate) mod diff;

use clap::Subcommand;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tpad_manifest::Problem;
use tpad_publish::{CheckError, Checked, Revision, RevisionError, check};

use crate::bar::Bar;
use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, human_bytes, printable};
use crate::surroundings::{StoreArgs, Surroundings};

/// Show, check or compare published revisions
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(Show),
    Check(Check),
    Diff(diff::Args),
}

/// Print a revision's document, or the blocks that its indexes list
///
/// Without options the document is printed as it is stored. With --index, --tier, --layer or
/// --dense the blocks are printed instead, one JSON document per line.
#[derive(Debug, clap::Args)]
struct Show {
    /// A checkpoint's root, whose highest revision is meant, or the URL of a revision's document
    url: String,

    /// The blocks of every tier, and the dense ones
    #[arg(long)]
    index: bool,

    /// The blocks of this tier
    #[arg(long, value_name = "T")]
    tier: Option<String>,

    /// The blocks at this layer
    #[arg(long, value_name = "L")]
    layer: Option<u32>,

    /// The dense blocks
    #[arg(long, conflicts_with_all = ["tier", "layer"])]
    dense: bool,

    #[command(flatten)]
    store: StoreArgs,
}

/// Read every byte that a revision names and compare digests
///
/// Reports every problem, and exits with 1 if there is one. Tiers that this version cannot serve
/// are listed and not checked.
#[derive(Debug, clap::Args)]
struct Check {
    /// A checkpoint's root, whose highest revision is meant, or the URL of a revision's document
    url: String,

    #[command(flatten)]
    store: StoreArgs,
}

pub(crate) async fn run(
    args: Args,
    surroundings: &Surroundings,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    match args.command {
        Command::Show(args) => {
            let work = run_show(&args, surroundings, output);
            stop.run_until_cancelled(work).await.unwrap_or_else(|| Err(Failure::interrupted()))
        }
        Command::Diff(args) => {
            let work = diff::run(&args, surroundings, output);
            stop.run_until_cancelled(work).await.unwrap_or_else(|| Err(Failure::interrupted()))
        }
        Command::Check(args) => run_check(&args, surroundings, output, stop).await,
    }
}

async fn run_show(
    args: &Show,
    surroundings: &Surroundings,
    output: &Output,
) -> Result<(), Failure> {
    let revision = Revision::open(&args.url, &surroundings.stores(&args.store)).await?;
    if args.index || args.dense || args.tier.is_some() || args.layer.is_some() {
        return blocks::show(args, &revision, output).await;
    }
    let document = String::from_utf8_lossy(revision.document());
    // As it is stored, which may be anything when it is refused.
    match revision.manifest() {
        Ok(_) => output.text(document.trim_end()),
        Err(rejected) => {
            for problem in &rejected.0 {
                output.note(format_args!("problem: {}", printable(&problem.to_string())));
            }
            output.text(printable(document.trim_end()))
        }
    }
}

/// What `--json` prints for a check.
#[derive(Serialize)]
struct Report<'a> {
    url: &'a str,
    model: &'a str,
    ok: bool,
    blocks: u64,
    image_bytes: u64,
    files: u64,
    skipped: Vec<SkippedReport<'a>>,
    warnings: Vec<ProblemReport<'a>>,
    problems: Vec<ProblemReport<'a>>,
}

#[derive(Serialize)]
struct SkippedReport<'a> {
    tier: String,
    reason: &'a str,
}

#[derive(Serialize)]
struct ProblemReport<'a> {
    place: &'a str,
    message: &'a str,
}

impl<'a> From<&'a Problem> for ProblemReport<'a> {
    fn from(Problem { place, message }: &'a Problem) -> Self {
        Self { place, message }
    }
}

async fn run_check(
    args: &Check,
    surroundings: &Surroundings,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let stores = surroundings.stores(&args.store);
    let open = Revision::open(&args.url, &stores);
    let revision = stop.run_until_cancelled(open).await.ok_or_else(Failure::interrupted)??;
    let bar = Bar::new();
    let checked = check(&revision, &bar, stop).await?;
    drop(bar);
    if output.is_json() {
        output.json(&report(&checked))?;
    } else {
        print(&checked, output)?;
    }
    match checked.problems.len() {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::CheckFailed, "1 problem was found")),
        n => Err(Failure::new(Exit::CheckFailed, format!("{n} problems were found"))),
    }
}

fn report(checked: &Checked) -> Report<'_> {
    Report {
        url: &checked.url,
        model: &checked.model,
        ok: checked.problems.is_empty(),
        blocks: checked.blocks,
        image_bytes: checked.image_bytes,
        files: checked.files,
        skipped: checked
            .skipped
            .iter()
            .map(|(tier, reason)| SkippedReport { tier: tier.to_string(), reason })
            .collect(),
        warnings: checked.warnings.iter().map(ProblemReport::from).collect(),
        problems: checked.problems.iter().map(ProblemReport::from).collect(),
    }
}

fn print(checked: &Checked, output: &Output) -> Result<(), Failure> {
    for (tier, reason) in &checked.skipped {
        output.note(format_args!("skipped: tier {tier}: {}", printable(reason)));
    }
    for warning in &checked.warnings {
        output.note(format_args!("warning: {}", printable(&warning.to_string())));
    }
    let Checked { url, model, blocks, files, .. } = checked;
    let size = human_bytes(checked.image_bytes);
    output.text(format_args!(
        "{}: model {}, {blocks} blocks, {size}, {files} files",
        printable(url),
        printable(model)
    ))?;
    for problem in &checked.problems {
        let mark = output.tone(Tone::Bad, "problem:");
        output.text(format_args!("{mark} {}", printable(&problem.to_string())))?;
    }
    if checked.problems.is_empty() {
        let verdict = output.tone(Tone::Good, "every byte is what the revision says");
        output.text(verdict)?;
    }
    Ok(())
}

impl From<RevisionError> for Failure {
    fn from(error: RevisionError) -> Self {
        match error {
            RevisionError::Origin(error) => error.into(),
            error => Self::new(error.kind().into(), error),
        }
    }
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Origin(error) => error.into(),
            CheckError::Cancelled => Self::interrupted(),
        }
    }
}

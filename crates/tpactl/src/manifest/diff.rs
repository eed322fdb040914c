//! `tpactl manifest diff`.

use serde::Serialize;
use tpad_manifest::{Change, Changes, Effect, Manifest};
use tpad_publish::{Revision, changes};

use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, printable};
use crate::surroundings::{StoreArgs, Surroundings};

/// Say what changed between two revisions, and what it means for workers of the first
///
/// Exits with 1 when something breaks them and the second revision's model_version does not
/// announce it with another major: a daemon that serves the first would refuse the second.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl manifest diff /models/m/tpad/revisions/3.json /models/m
  tpactl manifest diff s3://b/m/tpad/revisions/1.json s3://b/m/tpad/revisions/2.json --json")]
pub(crate) struct Args {
    /// The earlier revision: its document's URL, or a root, whose highest revision is meant
    old: String,

    /// The later one
    new: String,

    #[command(flatten)]
    store: StoreArgs,
}

/// What `--json` prints of changes, here and wherever a revision is made.
#[derive(Serialize)]
pub(crate) struct Report {
    effect: Option<&'static str>,
    omitted: u64,
    changes: Vec<ChangeReport>,
}

#[derive(Serialize)]
struct ChangeReport {
    kind: &'static str,
    effect: &'static str,
    place: String,
    message: String,
}

#[derive(Serialize)]
struct DiffReport<'a> {
    old: &'a str,
    new: &'a str,
    old_version: String,
    new_version: String,
    announced: bool,
    #[serde(flatten)]
    changes: Report,
}

pub(crate) async fn run(
    args: &Args,
    surroundings: &Surroundings,
    output: &Output,
) -> Result<(), Failure> {
    let stores = surroundings.stores(&args.store);
    let old = Revision::open(&args.old, &stores).await?;
    let new = Revision::open(&args.new, &stores).await?;
    let changes = changes(&old, &new).await?;
    let (before, after) = (old.accepted()?, new.accepted()?);
    let broken = changes.unannounced(before, after);
    if output.is_json() {
        output.json(&DiffReport {
            old: &old.url(),
            new: &new.url(),
            old_version: before.model_version.to_string(),
            new_version: after.model_version.to_string(),
            announced: broken.is_empty(),
            changes: report(&changes),
        })?;
    } else {
        output.text(text(&changes, output))?;
        output.text(versions(before, after))?;
    }
    if broken.is_empty() {
        return Ok(());
    }
    let failure = Failure::new(
        Exit::CheckFailed,
        format!("workers of {} would break, and the major version is the same", old.url()),
    );
    Err(failure.remedy("publish it with `tpactl publish --major`, or undo what breaks"))
}

fn versions(old: &Manifest, new: &Manifest) -> String {
    format!("model_version {} -> {}", old.model_version, new.model_version)
}

/// The changes as JSON has them.
pub(crate) fn report(changes: &Changes) -> Report {
    let change = |change: &Change| ChangeReport {
        kind: change.kind(),
        effect: change.effect().as_str(),
        place: change.place(),
        message: change.to_string(),
    };
    Report {
        effect: changes.effect().map(Effect::as_str),
        omitted: changes.omitted(),
        changes: changes.list().iter().map(change).collect(),
    }
}

/// The changes for people, one a line.
pub(crate) fn text(changes: &Changes, output: &Output) -> String {
    let line = |change: &Change| {
        let effect = change.effect();
        let tone = if effect == Effect::Breaking { Tone::Bad } else { Tone::Good };
        // Padded before it is coloured: colours have no width.
        let effect = output.tone(tone, format!("{:<8}", effect.as_str()));
        printable_change(&effect, change)
    };
    let mut lines: Vec<String> = changes.list().iter().map(line).collect();
    match changes.omitted() {
        0 => {}
        more => lines.push(format!("and {more} more")),
    }
    if lines.is_empty() {
        return "nothing changed".to_owned();
    }
    lines.join("\n")
}

fn printable_change(effect: &str, change: &Change) -> String {
    format!("{effect}  {}: {}", printable(&change.place()), printable(&change.to_string()))
}

//! `tpactl revisions`: what a root has, and what of it is active.

use serde::Serialize;
use tpad_publish::{History, history};

use super::Recorded;
use crate::failure::Failure;
use crate::output::{Output, printable};
use crate::surroundings::{StoreArgs, Surroundings};

/// List a root's revisions, and the activations that chose among them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl revisions s3://models/mixtral
  tpactl revisions /models/mixtral --json | jq .active")]
pub(crate) struct Args {
    /// The checkpoint's root
    root: String,

    #[command(flatten)]
    store: StoreArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    revisions: Vec<Line>,
    activations: Vec<Recorded>,
    active: Option<u64>,
}

#[derive(Serialize)]
struct Line {
    revision: u64,
    active: bool,
    model_version: Option<String>,
    created_at: Option<String>,
    tiers: Vec<String>,
    /// Why daemons refuse it.
    refused: Option<String>,
}

pub(crate) async fn run(
    args: Args,
    surroundings: &Surroundings,
    output: &Output,
) -> Result<(), Failure> {
    let found = history(&args.root, &surroundings.stores(&args.store)).await?;
    let report = Report::of(&found);
    if output.is_json() { output.json(&report) } else { output.text(report.show(output)) }
}

impl Report {
    fn of(found: &History) -> Self {
        let revisions = found.revisions.iter().map(|revision| {
            let manifest = revision.manifest.as_ref();
            let known = manifest.ok();
            Line {
                revision: revision.number,
                active: found.active == Some(revision.number),
                model_version: known.map(|manifest| manifest.model_version.to_string()),
                created_at: known.and_then(|manifest| Some(manifest.created_at?.to_string())),
                tiers: known.map_or_else(Vec::new, |manifest| {
                    manifest.tiers.iter().map(|tier| tier.id.to_string()).collect()
                }),
                refused: manifest.err().map(ToString::to_string),
            }
        });
        Self {
            revisions: revisions.collect(),
            activations: found.activations.iter().map(Recorded::from).collect(),
            active: found.active,
        }
    }

    fn show(&self, output: &Output) -> String {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let rows: Vec<Vec<String>> = self
            .revisions
            .iter()
            .map(|line| {
                let refused = line.refused.as_ref().map(|why| format!("refused: {why}"));
                vec![
                    line.revision.to_string(),
                    if line.active { "active".to_owned() } else { String::new() },
                    text(&line.model_version),
                    text(&line.created_at),
                    refused.unwrap_or_else(|| line.tiers.join(" ")),
                ]
            })
            .collect();
        let revisions = output.table(&["REVISION", "", "VERSION", "CREATED", "TIERS"], &rows);
        if self.activations.is_empty() {
            return format!("{revisions}\n\nno activation: daemons follow the highest revision");
        }
        let rows: Vec<Vec<String>> = self
            .activations
            .iter()
            .map(|record| {
                let tiers = record.default_tier_set.as_ref().map(|tiers| tiers.join(" "));
                vec![
                    record.activation.to_string(),
                    record.revision.to_string(),
                    tiers.unwrap_or_else(|| "the manifest's".to_owned()),
                    text(&record.created_at),
                    printable(&text(&record.reason)),
                ]
            })
            .collect();
        let headings = ["ACTIVATION", "REVISION", "DEFAULT TIERS", "CREATED", "REASON"];
        format!("{revisions}\n\n{}", output.table(&headings, &rows))
    }
}

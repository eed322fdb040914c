//! `tpactl activate`: one decision for all daemons of a root.

use tpad_manifest::TierId;
use tpad_publish::{Activate, DefaultTiers, activate};

use super::report;
use crate::failure::Failure;
use crate::output::Output;
use crate::surroundings::{StoreArgs, Surroundings};

/// Have the daemons of a root serve a revision
///
/// Writes an activation record, which every daemon given the root follows from then on; without
/// any they follow the highest revision. Records are never changed: `tpactl rollback` writes
/// another. The tiers of requests that name none change with --tiers alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl activate s3://models/mixtral --revision 4
  tpactl activate /models/mixtral --tiers tier_1b,tier_10b --reason 'tier_10b passed its evals'")]
pub(crate) struct Args {
    /// The checkpoint's root
    root: String,

    /// The revision; the highest by default
    #[arg(long, value_name = "N")]
    revision: Option<u64>,

    /// The tiers of requests that name none, from now on
    #[arg(long, value_name = "A,B", value_delimiter = ',', num_args = 1..)]
    tiers: Vec<TierId>,

    /// The manifest's own tiers for them again
    #[arg(long, conflicts_with = "tiers")]
    manifest_tiers: bool,

    /// Why, for whoever reads `tpactl revisions`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    #[command(flatten)]
    store: StoreArgs,
}

pub(crate) async fn run(
    args: Args,
    surroundings: &Surroundings,
    output: &Output,
) -> Result<(), Failure> {
    let Args { root, revision, tiers, manifest_tiers, reason, store } = args;
    let tiers = match (tiers.is_empty(), manifest_tiers) {
        (_, true) => DefaultTiers::Manifest,
        (true, false) => DefaultTiers::Unchanged,
        (false, false) => DefaultTiers::These(tiers),
    };
    let wish = Activate { revision, tiers, reason };
    report(&activate(&root, &surroundings.stores(&store), wish).await?, output)
}

//! `tpactl rollback`: back to what was served before the last decision.

use tpad_publish::rollback;

use super::report;
use crate::failure::Failure;
use crate::output::Output;
use crate::surroundings::{StoreArgs, Surroundings};

/// Have the daemons of a root serve again what they served before the last activation
///
/// Writes one more activation record, with the revision and tiers of the one before the last. Done
/// twice, it comes back.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl rollback s3://models/mixtral --reason 'tier_10b is slow'")]
pub(crate) struct Args {
    /// The checkpoint's root
    root: String,

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
    let Args { root, reason, store } = args;
    report(&rollback(&root, &surroundings.stores(&store), reason).await?, output)
}

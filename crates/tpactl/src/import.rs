//! `tpactl import`.

use tokio_util::sync::CancellationToken;

use crate::failure::{Exit, Failure};
use crate::output::Output;

/// Point a manifest into the shards of an existing checkpoint
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The checkpoint: a directory or an object-store prefix
    root: String,
}

pub(crate) async fn run(
    args: Args,
    _output: &Output,
    _stop: &CancellationToken,
) -> Result<(), Failure> {
    Err(Failure::new(Exit::Internal, format!("import is being built: {args:?}")))
}

//! `tpactl manifest`.

use tokio_util::sync::CancellationToken;

use crate::failure::{Exit, Failure};
use crate::output::Output;

/// Show or check a manifest
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The checkpoint's root, or the URL of one revision
    root: String,
}

pub(crate) async fn run(
    args: Args,
    _output: &Output,
    _stop: &CancellationToken,
) -> Result<(), Failure> {
    Err(Failure::new(Exit::Internal, format!("manifest is being built: {args:?}")))
}

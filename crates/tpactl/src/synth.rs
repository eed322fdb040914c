//! `tpactl synth`.

use tokio_util::sync::CancellationToken;

use crate::failure::{Exit, Failure};
use crate::output::Output;

/// Make a random, reproducible checkpoint in the Hugging Face layout
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory to make
    out: std::path::PathBuf,
}

pub(crate) async fn run(
    args: Args,
    _output: &Output,
    _stop: &CancellationToken,
) -> Result<(), Failure> {
    Err(Failure::new(Exit::Internal, format!("synth is being built: {args:?}")))
}

//! `tpactl unpin`: pins end before their time.

use tpad_client::{Client, Unpinned};

use super::scope::ScopeArgs;
use crate::failure::Failure;
use crate::output::{Output, human_bytes};

/// End an owner's pins of a model: the one of exactly this scope, or all
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl unpin --model mixtral --owner router
  tpactl unpin --model mixtral --owner router --tier tier_1b")]
pub(crate) struct Args {
    /// The model
    #[arg(long, value_name = "M")]
    model: String,

    /// Whose pins
    #[arg(long, value_name = "NAME")]
    owner: String,

    #[command(flatten)]
    scope: ScopeArgs,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let Args { model, owner, scope } = args;
    let unpinned = client.admin().unpin(&model, &owner, scope.scope()).await?;
    if output.is_json() {
        return output.json(&unpinned);
    }
    let Unpinned { pins, held } = unpinned;
    let (blocks, bytes) = (held.blocks, human_bytes(held.bytes));
    output.text(format_args!("{pins} pins ended: {blocks} blocks, {bytes}"))
}

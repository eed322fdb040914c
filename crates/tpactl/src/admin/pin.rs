//! `tpactl pin`: a daemon keeps blocks in memory.

use std::time::Duration;

use tpad_client::{Client, Pinned};

use super::scope::ScopeArgs;
use crate::failure::{Exit, Failure};
use crate::output::{Output, human_bytes};
use crate::remote::seconds;

/// Keep blocks in the daemon's memory, for an owner and a time
///
/// Ends when the blocks are there. The same owner's pin of the same scope is renewed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl pin --model mixtral --owner router --ttl 3600 --tier tier_1b
  tpactl pin --model mixtral --owner router --ttl 60 --expert tier_1b/0/3 --layer 5")]
pub(crate) struct Args {
    /// The model
    #[arg(long, value_name = "M")]
    model: String,

    /// Who wants it
    #[arg(long, value_name = "NAME")]
    owner: String,

    /// When it ends by itself
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    ttl: Duration,

    #[command(flatten)]
    what: What,
}

/// A scope that names something.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true, args = ["tier", "group", "expert"])]
pub(super) struct What {
    #[command(flatten)]
    pub(super) scope: ScopeArgs,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let Args { model, owner, ttl, what } = args;
    let nothing = || Failure::new(Exit::Usage, "name tiers, groups or experts");
    let scope = what.scope.scope().ok_or_else(nothing)?;
    let pinned = client.admin().pin(&model, &owner, scope, ttl).await?;
    if output.is_json() {
        return output.json(&pinned);
    }
    let Pinned { held, revision, renewed } = pinned;
    let done = if renewed { "renewed" } else { "pinned" };
    let (blocks, bytes, time) = (held.blocks, human_bytes(held.bytes), ttl.as_secs_f64());
    output
        .text(format_args!("{done}: {blocks} blocks of revision {revision}, {bytes}, for {time} s"))
}

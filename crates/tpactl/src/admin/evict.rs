//! `tpactl evict`: a daemon's levels forget blocks.

use tpad_client::{Client, EvictLevel, Evicted};

use super::pin::What;
use crate::failure::{Exit, Failure};
use crate::output::{Output, human_bytes};

/// Make the daemon's memory and disk forget blocks
///
/// Pinned blocks stay, and streams keep what they read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl evict --model mixtral --tier tier_10b
  tpactl evict --model mixtral --group tier_10b/0 --level dram")]
pub(crate) struct Args {
    /// The model
    #[arg(long, value_name = "M")]
    model: String,

    /// One level alone
    #[arg(long, value_name = "LEVEL", value_enum)]
    level: Option<Level>,

    #[command(flatten)]
    what: What,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Level {
    Hbm,
    Dram,
    Nvme,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let Args { model, level, what } = args;
    let nothing = || Failure::new(Exit::Usage, "name tiers, groups or experts");
    let scope = what.scope.scope().ok_or_else(nothing)?;
    let level = level.map(|level| match level {
        Level::Hbm => EvictLevel::Hbm,
        Level::Dram => EvictLevel::Dram,
        Level::Nvme => EvictLevel::Nvme,
    });
    let evicted = client.admin().evict(&model, scope, level).await?;
    if output.is_json() {
        return output.json(&evicted);
    }
    let Evicted { hbm, dram, nvme, pinned } = evicted;
    for (what, amount) in [("hbm", hbm), ("dram", dram), ("nvme", nvme), ("pinned, kept", pinned)] {
        let (blocks, bytes) = (amount.blocks, human_bytes(amount.bytes));
        output.text(format_args!("{what:<14} {blocks} blocks, {bytes}"))?;
    }
    Ok(())
}

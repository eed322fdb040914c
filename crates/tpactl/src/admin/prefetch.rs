//! `tpactl prefetch`: a daemon reads blocks before they are asked for.

use tpad_client::Client;

use super::pin::What;
use crate::failure::{Exit, Failure};
use crate::output::{Output, human_bytes};
use crate::progress;

/// Bring blocks to the daemon's memory before they are asked for
///
/// After all requests that wait, and without pushing out tiers that have a budget. Ends when all
/// was tried; Ctrl-C ends it early, and what has arrived stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl prefetch --model mixtral --tier tier_10b
  tpactl prefetch --model mixtral --group tier_10b/0 --layer 5")]
pub(crate) struct Args {
    /// The model
    #[arg(long, value_name = "M")]
    model: String,

    #[command(flatten)]
    what: What,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let Args { model, what } = args;
    let nothing = || Failure::new(Exit::Usage, "name tiers, groups or experts");
    let scope = what.scope.scope().ok_or_else(nothing)?;
    let mut prefetch = client.prefetch(&model, scope).await?;
    let mut bar = None;
    let mut done = tpad_client::Prefetched::default();
    while let Some(news) = prefetch.next().await {
        done = news?;
        let bar = bar.get_or_insert_with(|| progress::bytes("prefetch", Some(done.asked.bytes)));
        let parts = [done.there, done.fetched, done.no_room, done.failed];
        bar.set_position(parts.iter().map(|part| part.bytes).sum());
    }
    drop(bar);
    if output.is_json() {
        return output.json(&done);
    }
    let parts = [("there", done.there), ("fetched", done.fetched), ("no room", done.no_room)];
    for (what, amount) in parts {
        let (blocks, bytes) = (amount.blocks, human_bytes(amount.bytes));
        output.text(format_args!("{what:<8} {blocks} blocks, {bytes}"))?;
    }
    Ok(())
}

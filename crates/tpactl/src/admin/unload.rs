//! `tpactl unload`: a daemon serves a model no more.

use serde::Serialize;
use tpad_client::{Client, UnloadedModel};

use crate::failure::Failure;
use crate::output::{Output, printable};

/// Make the daemon serve a model no more
///
/// New requests do not find it. Streams that read it read on; its blocks stay where they are until
/// others need the room. The next start of the daemon has the configuration's models again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl unload mixtral")]
pub(crate) struct Args {
    /// The model
    #[arg(value_name = "MODEL")]
    model: String,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    #[serde(flatten)]
    unloaded: UnloadedModel,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let Args { model } = args;
    let unloaded = client.admin().unload_model(&model).await?;
    if output.is_json() {
        return output.json(&Report { model, unloaded });
    }
    let model = printable(&model);
    match unloaded.revision {
        0 => output.text(format_args!("{model} is not tried any more; it was never loaded")),
        revision => {
            output.text(format_args!("{model} is not served any more: it had revision {revision}"))
        }
    }
}

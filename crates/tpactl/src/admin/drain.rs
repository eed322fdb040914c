//! `tpactl drain`: a daemon stops when its requests are answered.

use tpad_client::Client;

use crate::failure::Failure;
use crate::output::Output;

/// Stop the daemon when its requests in progress are answered
///
/// As SIGTERM does: the daemon is not ready when this command ends, takes no new connections, and
/// ends when its requests are answered, at the latest after its drain deadline. What started it
/// may start it again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl drain
  tpactl --addr unix:///run/tpad/tpad.sock drain")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let seconds = client.admin().drain().await?.as_secs_f64();
    if output.is_json() {
        return output.json(&serde_json::json!({ "deadline_seconds": seconds }));
    }
    output.text(format_args!("the daemon drains and ends within {seconds} s"))
}

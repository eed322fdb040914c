//! `tpad demo`: the whole path on one machine, with nothing prepared.
//!
//! Makes a small checkpoint, imports it as three tiers, serves it on loopback,
//! fetches every block through the client and holds it against the shards.

mod checkpoint;
mod report;
mod shards;
mod survey;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tpad_client::{Client, ModelDescription, ModelState};
use tpad_manifest::BlockKey;

use self::checkpoint::Checkpoint;
use self::report::Report;
use self::shards::Shards;
use crate::config::{Config, ConfigError, Surroundings, UnixSocket};
use crate::{Daemon, StartError};

/// The model's name.
const MODEL: &str = "demo";

/// Holds the checkpoint several times over, and little of the machine.
const DRAM_BYTES: u64 = 256 << 20;

/// The daemon reads four small objects from a local directory to load the
/// model: far less than this.
const LOAD_DEADLINE: Duration = Duration::from_secs(30);
const LOAD_POLL: Duration = Duration::from_millis(10);

/// Make a small checkpoint, import it, serve it, fetch and check every byte
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Exit after the report instead of serving until Ctrl-C
    #[arg(long)]
    pub once: bool,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// A file in the temporary directory, or standard output.
    #[error("the demo cannot read or write: {0}")]
    Io(#[from] io::Error),
    /// The checkpoint could not be made.
    #[error("cannot make the demo's checkpoint: {0}")]
    Synth(#[from] tpad_publish::SynthError),
    /// The plan does not fit the checkpoint.
    #[error("the demo's plan is wrong: {0}")]
    Plan(#[from] tpad_publish::PlanError),
    /// The checkpoint could not be imported.
    #[error("cannot import the demo's checkpoint: {0}")]
    Import(#[from] tpad_publish::ImportError),
    /// The checkpoint's directory cannot be opened as an origin.
    #[error("cannot open the demo's checkpoint: {0}")]
    Origin(#[from] tpad_store::OriginError),
    /// The configuration was refused.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The daemon did not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// A call failed.
    #[error("{0}")]
    Client(#[from] tpad_client::Error),
    /// The daemon did not load the model.
    #[error("the daemon does not serve the demo's model: {0}")]
    NotServed(String),
    /// Bytes that were fetched are not those of the shard.
    #[error("{key}: tensor {tensor} is not what the shard holds")]
    Mismatch {
        /// The block.
        key: BlockKey,
        /// The tensor in it.
        tensor: String,
    },
}

/// Runs the demo until `stop` is cancelled, or to its report with `once`. The
/// daemon is drained and the temporary directory removed in every case.
///
/// # Errors
/// The first step that failed.
pub async fn run(
    args: &Args,
    surroundings: &Surroundings,
    stop: &CancellationToken,
) -> Result<(), DemoError> {
    let directory = tempfile::Builder::new().prefix("tpad-demo-").tempdir()?;
    say(format_args!("tpad {} demo in {}", env!("CARGO_PKG_VERSION"), directory.path().display()))?;
    // Watches `stop` itself: nothing may write to the directory any more when
    // it is removed.
    let made = checkpoint::make(&directory.path().join(MODEL), stop).await;
    if stop.is_cancelled() {
        return Ok(directory.close()?);
    }
    let checkpoint = made?;
    let daemon = start(config(directory.path(), &checkpoint, surroundings)?).await?;
    let shown = stop.run_until_cancelled(show(&daemon, directory.path(), checkpoint)).await;
    if let Some(Ok(())) = shown
        && !args.once
    {
        say("\nCtrl-C ends the demo and removes its files")?;
        stop.cancelled().await;
    }
    daemon.drain().await;
    directory.close()?;
    shown.unwrap_or(Ok(()))
}

async fn show(daemon: &Daemon, directory: &Path, checkpoint: Checkpoint) -> Result<(), DemoError> {
    let grpc = daemon.grpc_addr();
    let address = grpc.map_or_else(
        || format!("unix://{}", directory.join("tpad.sock").display()),
        |address| format!("http://{address}"),
    );
    let client = Client::connect(&address).await?;
    let model = served(&client).await?;
    let shards = Arc::new(Shards::open(&checkpoint.path)?);
    let cold = survey::survey(&client, &model, &shards).await?;
    let warm = survey::survey(&client, &model, &shards).await?;
    say(Report {
        directory: directory.to_owned(),
        model,
        shards: checkpoint.shards,
        tensors: shards.len(),
        synthesized_in: checkpoint.synthesized_in,
        imported_in: checkpoint.imported_in,
        cold,
        warm,
        grpc,
        uds: daemon.uds_path().map(Path::to_owned),
        http: daemon.http_addr(),
    })
}

/// Waits until the daemon has loaded the model.
async fn served(client: &Client) -> Result<ModelDescription, DemoError> {
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(LOAD_POLL);
    loop {
        ticks.tick().await;
        let models = client.list_models().await?;
        match models.into_iter().find(|model| model.name == MODEL) {
            Some(model) if model.state == ModelState::Serving => {
                return Ok(client.describe_model(MODEL).await?);
            }
            Some(model) if model.state == ModelState::Failed => {
                return Err(DemoError::NotServed(model.reason));
            }
            _ if begun.elapsed() > LOAD_DEADLINE => {
                return Err(DemoError::NotServed(format!("not within {LOAD_DEADLINE:?}")));
            }
            _ => {}
        }
    }
}

/// The defaults, with little memory and the sockets in the demo's directory.
fn config(
    directory: &Path,
    checkpoint: &Checkpoint,
    surroundings: &Surroundings,
) -> Result<Config, DemoError> {
    let root = checkpoint.path.to_string_lossy();
    let mut config = Config::for_root(&root, Some(MODEL), surroundings)?;
    config.dram.capacity_bytes = config.dram.capacity_bytes.min(DRAM_BYTES);
    let uds = directory.join("tpad.sock");
    if let Some(handoff) = &mut config.handoff {
        handoff.socket.path = tpad_client::handoff_socket(&uds);
        handoff.lease_bytes = handoff.lease_bytes.min(config.dram.capacity_bytes);
        handoff.worker_lease_bytes = handoff.worker_lease_bytes.min(handoff.lease_bytes);
    }
    config.listen.uds = Some(UnixSocket { path: uds, mode: 0o600 });
    Ok(config)
}

/// Starts on the usual ports, or on free ones where somebody has those.
async fn start(config: Config) -> Result<Daemon, StartError> {
    let any = |_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut elsewhere = config.clone();
    elsewhere.listen.grpc = config.listen.grpc.map(any);
    elsewhere.listen.http = config.listen.http.map(any);
    match Daemon::start(config).await {
        Err(StartError::Bind(_)) => Daemon::start(elsewhere).await,
        started => started,
    }
}

fn say(text: impl std::fmt::Display) -> Result<(), DemoError> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

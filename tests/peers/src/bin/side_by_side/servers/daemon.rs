//! tpad's daemon, with models of one tier each.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{START, Server};
use crate::children::on;
use crate::place::{Place, free_address};
use crate::values::Size;

/// The tier that an import without a plan makes.
const TIER: &str = "base";

/// Models and where they come from.
#[derive(Debug, Default)]
pub(crate) struct Tiers {
    /// Each model's size and root.
    pub(crate) models: Vec<(Size, String)>,
    /// Host memory for blocks.
    pub(crate) dram: &'static str,
    /// Where workers of this machine connect, if they may.
    pub(crate) handoff: Option<PathBuf>,
    /// A directory on disk.
    pub(crate) nvme: Option<PathBuf>,
    /// Lines of `[models.origin]`.
    pub(crate) origin: String,
    /// Whether it keeps to the servers' processors.
    pub(crate) pinned: bool,
}

/// Starts it and brings all models to its memory.
pub(crate) fn daemon(place: &Place, name: &str, tiers: &Tiers) -> Result<Server> {
    let address = free_address()?;
    let mut config = format!(
        "follow_interval = \"0s\"\n\
         [listen]\ngrpc = \"{address}\"\nuds = \"off\"\nhttp = \"127.0.0.1:0\"\n\
         [levels.dram]\ncapacity = \"{}\"\n",
        tiers.dram
    );
    // Writing to a String cannot fail.
    if let Some(path) = &tiers.handoff {
        let _infallible = writeln!(config, "[handoff]\nsocket = \"{}\"", path.display());
    }
    if let Some(path) = &tiers.nvme {
        let _infallible = writeln!(config, "[levels.nvme]\npath = \"{}\"", path.display());
    }
    for (size, root) in &tiers.models {
        let model = size.model();
        let _infallible = writeln!(config, "[[models]]\nname = \"{model}\"\nroot = \"{root}\"");
        if !tiers.origin.is_empty() {
            let _infallible = writeln!(config, "[models.origin]\n{}", tiers.origin);
        }
    }
    let file = place.memory.join(format!("{name}.toml"));
    std::fs::write(&file, config)?;
    let processors = if tiers.pinned { &place.server } else { &place.all };
    let mut command = on(processors, place.program("tpad")?);
    command.args(["serve", "--config"]).arg(&file);
    let server = Server::start(place, name, &mut command, address)?;
    for (size, _) in &tiers.models {
        server.warm(place, *size)?;
    }
    Ok(server)
}

impl Server {
    /// A command of `tpactl` to this daemon.
    pub(crate) fn tpactl(&self, place: &Place, processors: &str) -> Result<std::process::Command> {
        let mut command = on(processors, place.program("tpactl")?);
        command.arg("--addr").arg(format!("http://{}", self.address));
        Ok(command)
    }

    /// Brings a model to host memory, as soon as it is loaded.
    pub(crate) fn warm(&self, place: &Place, size: Size) -> Result<()> {
        let until = Instant::now() + START;
        loop {
            let mut command = self.tpactl(place, &place.client)?;
            command.args(["prefetch", "--model", &size.model(), "--tier", TIER]);
            match place.prepare(&mut command) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error).context("warming up"),
                // The model is still loading.
                Err(_) if !crate::children::stopped() => {
                    std::thread::park_timeout(Duration::from_millis(100));
                }
                Err(_) => bail!("interrupted"),
            }
        }
    }
}

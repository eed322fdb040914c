//! tpad side by side with what one would use instead: starts every server and every
//! client, runs them in turn, and writes rounds, tables and a chart.

mod chart;
mod children;
mod cold;
mod contest;
mod figures;
mod handoff;
mod latency;
mod machine;
mod objects;
mod place;
mod servers;
mod table;
mod values;
mod wire;
mod workers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};

use figures::{Part, Row};
use place::Place;

/// Rounds below this are too few for figures to keep.
const ROUNDS: usize = 5;

/// Compare tpad with what one would use instead: the same fetches, side by side
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// A smoke test: 16 MiB x 4 alone, two rounds; shown, not kept
    #[arg(long)]
    quick: bool,

    /// One part alone; may be repeated [default: all]
    #[arg(long, value_name = "PART")]
    only: Vec<Which>,

    /// Peers whose names hold this text alone, and the limit; shown, not kept
    #[arg(long, value_name = "TEXT")]
    peers: Vec<String>,

    /// How often every peer runs at each size; of fewer than 5 nothing is kept
    #[arg(long, value_name = "N", default_value_t = ROUNDS)]
    rounds: usize,

    /// Write tables and chart from the rounds that are kept, and run nothing
    #[arg(long)]
    render: bool,
}

impl Arguments {
    /// Whether the figures are for the document.
    fn kept(&self) -> bool {
        self.render || (!self.quick && self.peers.is_empty() && self.rounds >= ROUNDS)
    }
}

/// A part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Which {
    /// Values in memory over TCP
    Wire,
    /// Many processes of grpcio at a server with one processor
    Workers,
    /// Small requests, idle and beside bulk reads
    Latency,
    /// Blocks in place, on the daemon's node
    Handoff,
    /// From disk
    Cold,
    /// From an S3 server
    S3,
}

/// All parts, in the order of the document.
pub(crate) const PARTS: [Which; 6] =
    [Which::Wire, Which::Workers, Which::Latency, Which::Handoff, Which::Cold, Which::S3];

/// What is run of it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    peers: Vec<String>,
}

impl Plan {
    /// Whether a peer takes part; the limit always does.
    pub(crate) fn wants(&self, name: &str, limit: &str) -> bool {
        name == limit || self.peers.is_empty() || self.peers.iter().any(|text| name.contains(text))
    }
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Workers => "workers",
            Self::Latency => "latency",
            Self::Handoff => "handoff",
            Self::Cold => "cold",
            Self::S3 => "s3",
        }
    }

    fn limit(self) -> &'static str {
        match self {
            Self::Wire => wire::LIMIT,
            Self::Workers => workers::LIMIT,
            Self::Latency => latency::LIMIT,
            Self::Handoff => handoff::LIMIT,
            Self::Cold => cold::LIMIT,
            Self::S3 => objects::LIMIT,
        }
    }

    fn run(self, place: &Place, plan: &Plan) -> Result<Vec<Row>> {
        match self {
            Self::Wire => wire::run(place, plan),
            Self::Workers => workers::run(place, plan),
            Self::Latency => latency::run(place, plan),
            Self::Handoff => handoff::run(place, plan),
            Self::Cold => cold::run(place, plan),
            Self::S3 => objects::run(place, plan),
        }
    }

    /// Where its rounds are kept.
    fn file(self, root: &Path) -> PathBuf {
        root.join(format!("docs/performance/peers-{}.json", self.name()))
    }

    fn kept(self, root: &Path) -> Result<Option<Part>> {
        let file = self.file(root);
        let Ok(text) = std::fs::read_to_string(&file) else { return Ok(None) };
        let part = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        Ok(Some(part))
    }
}

/// Says something to whoever runs this.
#[expect(clippy::print_stderr, reason = "a terminal program, and this is its one voice")]
pub(crate) fn say(message: &str) {
    eprintln!("{message}");
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if children::stopped() => {
            say("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().context("the checkout is gone")?;
    if !arguments.render {
        catch_signals()?;
        measure(arguments, &root)?;
    }
    if !arguments.kept() {
        say("shown, not kept");
        return Ok(());
    }
    let mut parts = Vec::new();
    for which in PARTS {
        parts.extend(which.kept(&root)?.map(|part| (which, part)));
    }
    table::write(&root.join("docs/performance.md"), &parts)?;
    if let Some((_, wire)) = parts.iter().find(|(which, _)| *which == Which::Wire) {
        let file = root.join("docs/performance/peers.svg");
        std::fs::write(&file, chart::draw(wire)).with_context(|| file.display().to_string())?;
    }
    say("written: docs/performance.md, docs/performance/");
    Ok(())
}

fn measure(arguments: &Arguments, root: &Path) -> Result<()> {
    let rounds = if arguments.quick { arguments.rounds.min(2) } else { arguments.rounds };
    if rounds == 0 {
        bail!("at least one round");
    }
    let plan = Plan { quick: arguments.quick, rounds, peers: arguments.peers.clone() };
    for which in PARTS {
        if !arguments.only.is_empty() && !arguments.only.contains(&which) {
            continue;
        }
        // Each part begins with nothing of the one before.
        let place = Place::new(root.to_owned())?;
        let rows = which.run(&place, &plan)?;
        let part = Part {
            date: jiff::Zoned::now().strftime("%Y-%m-%d").to_string(),
            commit: machine::commit(&place)?,
            machine: machine::describe()?,
            versions: machine::versions(&place),
            rounds,
            limit: which.limit().to_owned(),
            rows,
        };
        say(&table::of(which, &part));
        if arguments.kept() {
            let file = which.file(root);
            std::fs::create_dir_all(root.join("docs/performance"))?;
            std::fs::write(&file, figures::json(&part)?)
                .with_context(|| file.display().to_string())?;
        }
    }
    Ok(())
}

/// Ctrl-C and SIGTERM have everything that waits give up, which ends what was started.
fn catch_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            children::stop();
        });
    })?;
    Ok(())
}

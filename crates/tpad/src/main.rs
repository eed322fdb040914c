//! The daemon's binary: reads the command line and the environment, builds the configuration, runs the daemon.

mod cli;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tpad::config::{Config, Log, LogFormat, Origin, Surroundings};
use tpad::memory::MemoryLimit;
use tpad::{Daemon, demo, descriptors, log};
use tpad_client::SocketPaths;

use self::cli::{Cli, Command, Serve};

/// glibc gives large buffers back to the kernel after each use, and their page
/// faults cost more than the copies: measured, a maintained allocator halves the
/// CPU time of replies that are encoded.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// It could not start.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong; clap's own code for the former.
const MISUSED: u8 = 2;

fn main() -> ExitCode {
    // First of all: with two providers in the process rustls would not know which to take.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return fail(FAILED, "another TLS provider is installed already");
    }
    descriptors::raise_limit();
    match Cli::parse().command {
        Command::Serve(arguments) => serve(&arguments),
        Command::Demo(arguments) => demonstrate(&arguments),
    }
}

fn demonstrate(arguments: &demo::Args) -> ExitCode {
    let log = Log { level: "warn".to_owned(), format: LogFormat::Text };
    run(&log, async move |signals| {
        let (stop, surroundings) = (CancellationToken::new(), surroundings());
        let demo = demo::run(arguments, &surroundings, &stop);
        tokio::pin!(demo);
        tokio::select! {
            done = &mut demo => return Ok(done?),
            _ = signals.next() => stop.cancel(),
        }
        tokio::select! {
            done = demo => Ok(done?),
            signal = signals.next() => Err(Stopped(signal).into()),
        }
    })
}

fn serve(arguments: &Serve) -> ExitCode {
    let (config, source) = match configuration(arguments) {
        Ok(found) => found,
        Err(error) => return fail(MISUSED, &format!("{error:#}")),
    };
    if arguments.check_config {
        for warning in &config.warnings {
            warn(warning);
        }
        return match writeln!(io::stdout(), "{source} is valid") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(FAILED),
        };
    }
    let log = config.log.clone();
    run(&log, async move |signals| {
        let daemon = Daemon::start(config).await?;
        tokio::select! {
            signal = signals.next() => tracing::info!(signal = signal.name, "draining"),
            () = daemon.drain_asked() => tracing::info!("draining: a client asked for it"),
        }
        let drain = daemon.drain();
        tokio::select! {
            report = drain => {
                let seconds = report.took.as_secs_f64();
                if report.aborted_connections > 0 {
                    let connections = report.aborted_connections;
                    tracing::warn!(connections, seconds, "stopped; connections still busy at drain.deadline were cut");
                } else {
                    tracing::info!(seconds, "stopped");
                }
                Ok(())
            }
            signal = signals.next() => Err(Stopped(signal).into()),
        }
    })
}

/// The configuration and what to call its source.
fn configuration(arguments: &Serve) -> anyhow::Result<(Config, String)> {
    let (overrides, surroundings) = (arguments.overrides(), surroundings());
    if let Some(root) = &arguments.root {
        let name = arguments.name.as_deref();
        let config = Config::for_root_with(root, name, overrides, &surroundings)?;
        return Ok((config, "the command line".to_owned()));
    }
    // clap asks for one of the two.
    let file = arguments.config.as_deref().unwrap_or(Path::new("tpad.toml"));
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let config = Config::from_toml_with(&text, overrides, &surroundings)
        .map_err(|error| anyhow::anyhow!("{shown} is not a valid configuration:\n{error}"))?;
    Ok((config, shown))
}

/// What the process's environment says: the only place where it is read.
fn surroundings() -> Surroundings {
    Surroundings {
        memory: MemoryLimit::detect(),
        socket: SocketPaths::new(std::env::var_os("XDG_RUNTIME_DIR").as_deref()).to_listen(),
        origin: Origin::from_env(),
        disk_bytes: tpad::disk_bytes,
    }
}

/// A second signal: nothing more is waited for.
#[derive(Debug, thiserror::Error)]
#[error("stopped by a second {} before the drain was over", .0.name)]
struct Stopped(Caught);

#[derive(Clone, Copy, Debug)]
struct Caught {
    name: &'static str,
    /// What shells report for a process that the signal ended.
    exit: u8,
}

/// The signals that stop the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.terminate.recv() => Caught { name: "SIGTERM", exit: 143 },
            _ = self.interrupt.recv() => Caught { name: "SIGINT", exit: 130 },
        }
    }
}

/// Runs `work` on the runtime with the log installed; its failure is the exit code.
fn run(log: &Log, work: impl AsyncFnOnce(&mut Signals) -> anyhow::Result<()>) -> ExitCode {
    if let Err(error) = log::install(log) {
        return fail(FAILED, &format!("cannot install the log: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format!("cannot start threads: {error}")),
    };
    let done = runtime.block_on(async {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        work(&mut signals).await
    });
    // A read of the disk that hangs must not outlast the drain.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Stopped>() {
            Some(Stopped(signal)) => fail(signal.exit, &error.to_string()),
            None => fail(FAILED, &format!("{error:#}")),
        },
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    // With stderr gone the code alone has to do.
    let _ = writeln!(io::stderr(), "tpad: {message}");
    ExitCode::from(code)
}

fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "tpad: warning: {message}");
}

//! `tpactl`: the operator's and publisher's command line.
//!
//! Only this file reads arguments and the environment and decides how the
//! process ends; every command is a module with its `Args` and a `run` that
//! reports through [`output::Output`] and fails with a [`failure::Failure`].

mod activation;
mod admin;
mod bar;
mod bench;
mod cli;
mod completions;
mod failure;
mod fetch;
mod import;
mod leases;
mod manifest;
mod mask;
mod models;
mod output;
mod plan;
mod progress;
mod publish;
mod remote;
mod size;
mod status;
mod surroundings;
mod synth;
mod tier;

use std::process::ExitCode;

use clap::Parser as _;
use tokio_util::sync::CancellationToken;
use tpad_client::SocketPaths;

use crate::cli::{Cli, Command};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::surroundings::Surroundings;

/// As in the daemon: glibc's allocator was an eighth of the client's own time in a fetch.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misread(&error),
    };
    let output = Output::for_terminal(cli.json, std::env::var_os("NO_COLOR").as_deref());
    match start(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.failure(&failure),
    }
}

/// Arguments that make no sense, or a request for help. The option that asks for
/// JSON is looked for by itself: what it stands in could not be read.
fn misread(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || !std::env::args_os().any(|argument| argument == "--json") {
        error.exit();
    }
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what: Vec<&str> = what.trim_start_matches("error: ").split_whitespace().collect();
    let failure = Failure::new(Exit::Usage, what.join(" "));
    Output::for_terminal(true, None).failure(&failure)
}

fn start(cli: Cli, output: &Output) -> Result<(), Failure> {
    tpad_store::install_tls();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("cannot start worker threads: {error}")))?;
    let sockets = SocketPaths::new(std::env::var_os("XDG_RUNTIME_DIR").as_deref());
    let surroundings = Surroundings::of(|name| std::env::var_os(name));
    runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::select! {
            // Polled first, so that Ctrl-C is caught before there is anything
            // to tidy up.
            biased;
            () = interrupted_twice(&stop) => Err(Failure::interrupted()),
            result = run(cli, &sockets, &surroundings, output, &stop) => result,
        }
    })
}

async fn run(
    cli: Cli,
    sockets: &SocketPaths,
    surroundings: &Surroundings,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let Cli { json: _, remote, command } = cli;
    match command {
        // These tidy up when `stop` is cancelled.
        Command::Import(args) => import::run(args, surroundings, output, stop).await,
        Command::Synth(args) => synth::run(args, output, stop).await,
        Command::Tier(args) => tier::run(args, surroundings, output, stop).await,
        Command::Publish(args) => publish::run(args, surroundings, output, stop).await,
        Command::Manifest(args) => manifest::run(args, surroundings, output, stop).await,
        Command::Plan(args) => until(stop, plan::run(args, surroundings, output)).await,
        Command::Activate(args) => {
            until(stop, activation::activate::run(args, surroundings, output)).await
        }
        Command::Rollback(args) => {
            until(stop, activation::rollback::run(args, surroundings, output)).await
        }
        Command::Revisions(args) => {
            until(stop, activation::revisions::run(args, surroundings, output)).await
        }
        Command::Completions(args) => completions::run(args, output),
        // It prints what it has when it is stopped.
        Command::Bench(args) => bench::run(args, &remote, sockets, output, stop).await,
        // These leave nothing behind when they are dropped.
        Command::Fetch(args) => {
            until(stop, async { fetch::run(args, &remote.connect(sockets).await?, output).await })
                .await
        }
        Command::Models(args) => {
            until(stop, async { models::run(args, &remote.connect(sockets).await?, output).await })
                .await
        }
        Command::Mask(args) => {
            until(stop, async { mask::run(args, &remote.connect(sockets).await?, output).await })
                .await
        }
        Command::Status(args) => {
            until(stop, async { status::run(args, &remote.connect(sockets).await?, output).await })
                .await
        }
        Command::Load(args) => {
            until(stop, async {
                admin::load::run(args, &remote.connect(sockets).await?, output).await
            })
            .await
        }
        Command::Unload(args) => {
            until(stop, async {
                admin::unload::run(args, &remote.connect(sockets).await?, output).await
            })
            .await
        }
        Command::Pin(args) => {
            until(stop, async {
                admin::pin::run(args, &remote.connect(sockets).await?, output).await
            })
            .await
        }
        Command::Leases(args) => {
            until(stop, async { leases::run(args, &remote.connect(sockets).await?, output).await })
                .await
        }
        Command::Unpin(args) => {
            until(stop, async {
                admin::unpin::run(args, &remote.connect(sockets).await?, output).await
            })
            .await
        }
        Command::Evict(args) => {
            until(stop, async {
                admin::evict::run(args, &remote.connect(sockets).await?, output).await
            })
            .await
        }
        Command::Prefetch(args) => {
            until(stop, async {
                admin::prefetch::run(args, &remote.connect(sockets).await?, output).await
            })
            .await
        }
        Command::Drain(args) => {
            until(stop, async {
                admin::drain::run(args, &remote.connect(sockets).await?, output).await
            })
            .await
        }
    }
}

/// What `command` says, unless Ctrl-C comes first.
async fn until(
    stop: &CancellationToken,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    stop.run_until_cancelled(command).await.unwrap_or_else(|| Err(Failure::interrupted()))
}

/// Cancels `stop` at the first Ctrl-C and completes at the second, or never
/// when signals cannot be watched: Ctrl-C then ends the process by itself.
async fn interrupted_twice(stop: &CancellationToken) {
    for _ in 0..2 {
        if tokio::signal::ctrl_c().await.is_err() {
            return std::future::pending().await;
        }
        stop.cancel();
    }
}

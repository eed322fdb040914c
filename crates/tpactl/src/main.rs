//! `tpactl`: the operator's and publisher's command line.
//!
//! Only this file reads arguments and the environment and decides how the
//! process ends; every command is a module with its `Args` and a `run` that
//! reports through [`output::Output`] and fails with a [`failure::Failure`].

mod cli;
mod completions;
mod failure;
mod import;
mod manifest;
mod output;
mod progress;
mod synth;

use std::process::ExitCode;

use clap::Parser as _;
use tokio_util::sync::CancellationToken;

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::for_terminal(cli.json, std::env::var_os("NO_COLOR").as_deref());
    match start(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.failure(&failure),
    }
}

fn start(cli: Cli, output: &Output) -> Result<(), Failure> {
    // Object stores are read over TLS with rustls, which wants its provider
    // before the first connection; an error means that one is set already.
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("cannot start worker threads: {error}")))?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::select! {
            // Commands that must tidy up watch `stop`; the rest is dropped.
            result = run(cli, output, &stop) => result,
            () = interrupted_twice(&stop) => Err(Failure::interrupted()),
        }
    })
}

async fn run(cli: Cli, output: &Output, stop: &CancellationToken) -> Result<(), Failure> {
    match cli.command {
        Command::Import(args) => import::run(args, output, stop).await,
        Command::Synth(args) => synth::run(args, output, stop).await,
        Command::Manifest(args) => manifest::run(args, output, stop).await,
        Command::Completions(args) => completions::run(args, output),
    }
}

/// Cancels `stop` at the first Ctrl-C and completes at the second, or at once
/// when signals cannot be watched.
async fn interrupted_twice(stop: &CancellationToken) {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler Ctrl-C ends the process by itself.
        return std::future::pending().await;
    }
    stop.cancel();
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

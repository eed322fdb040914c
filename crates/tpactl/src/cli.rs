//! The command line's shape.

use clap::{Parser, Subcommand};

use crate::{completions, import, manifest, synth};

const AFTER_HELP: &str = "\
Exit codes:
  0 done                    7 not in this state (tier skipped, model loading)
  1 a check found problems  8 a limit was reached
  2 wrong usage             9 the deadline passed
  3 unavailable            10 denied
  4 not found              11 a local file cannot be read or written
  5 data loss              12 the other side broke its own rules
  6 refused as malformed  130 interrupted";

/// Publish Mixture-of-Experts checkpoints for tpad and look at what a tpad
/// daemon serves
#[derive(Debug, Parser)]
#[command(name = "tpactl", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    /// Write results as JSON to standard output, errors as JSON to standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A command and its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Import(import::Args),
    Synth(synth::Args),
    Manifest(manifest::Args),
    Completions(completions::Args),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}

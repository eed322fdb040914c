//! The command line of `tpad`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tpad::config::Overrides;
use tpad::demo;

/// Serve the parameters of Mixture-of-Experts models to inference workers
///
/// One daemon on each node keeps experts in host memory, verified, and hands
/// them to every worker on that node over gRPC. Checkpoints are imported once
/// with `tpactl import`, which rewrites no weights.
#[derive(Debug, Parser)]
#[command(name = "tpad", version, max_term_width = 100, after_long_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    stopped by SIGTERM or SIGINT, after its drain; or the configuration is valid
  1    could not start: an address, the Unix socket, memory
  2    the command line or the configuration is wrong
  130  a second SIGINT during the drain (143: SIGTERM): ended at once";

const SERVE_HELP: &str = "\
Examples:
  tpad serve /models/mixtral                    one model, defaults for all else
  tpad serve s3://bucket/mixtral --name mix     from S3; AWS_* variables say how to reach it
  tpad serve --config /etc/tpad.toml            everything from a file
  tpad serve --config tpad.toml --check-config  only check the file: all problems at once

Precedence, for every setting: command line, file, environment, default.
config/tpad.toml in the source shows every key with its default and why.

Environment:
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
  AWS_ENDPOINT_URL, AWS_ALLOW_HTTP    how to reach s3:// roots, where the file does not say
  XDG_RUNTIME_DIR                     where the Unix socket is made by default

Signals:
  SIGTERM, SIGINT   drain: refuse new requests, finish what has begun, exit within drain.deadline
  a second one      exit at once";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve models until SIGTERM or Ctrl-C
    #[command(after_long_help = SERVE_HELP)]
    Serve(Box<Serve>),
    Demo(demo::Args),
}

/// `tpad serve`
#[derive(Debug, Args)]
#[command(override_usage = "tpad serve ROOT [OPTIONS]
       tpad serve --config FILE [OPTIONS]")]
pub(crate) struct Serve {
    /// The checkpoint to serve: a directory or a URL such as s3://bucket/prefix
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    pub(crate) root: Option<String>,

    /// The configuration's file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// What requests call the model [default: the last path component of ROOT]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub(crate) name: Option<String>,

    /// Check the configuration, print every problem, and exit
    #[arg(long)]
    pub(crate) check_config: bool,

    /// gRPC over TCP, or "off" [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) grpc: Option<String>,

    /// gRPC over a Unix socket, or "off" [default: $XDG_RUNTIME_DIR/tpad/tpad.sock]
    #[arg(long, value_name = "PATH")]
    pub(crate) uds: Option<String>,

    /// /livez, /readyz, /metrics and /status, or "off" [default: 127.0.0.1:7071]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) http: Option<String>,

    /// All host memory for blocks, such as 16GiB [default: a quarter of what there is]
    #[arg(long, value_name = "SIZE")]
    pub(crate) dram: Option<String>,

    /// error, warn, info, debug or trace, or entries such as info,tpad_store=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,

    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
}

impl Serve {
    /// The settings that win over the file's.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            grpc: self.grpc.clone(),
            uds: self.uds.clone(),
            http: self.http.clone(),
            dram_capacity: self.dram.clone(),
            log_level: self.log_level.clone(),
            log_format: self.log_format.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_takes_a_root_or_a_file_and_not_both() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["tpad", "serve"], words].concat());
        assert!(parse(&["/m"]).is_ok());
        assert!(parse(&["/m", "--name", "n", "--grpc", "127.0.0.1:0"]).is_ok());
        assert!(parse(&["--config", "f", "--check-config"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["/m", "--config", "f"]).is_err());
        assert!(parse(&["--config", "f", "--name", "n"]).is_err());
    }
}

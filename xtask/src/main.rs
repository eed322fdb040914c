//! The project's own commands.
//!
//! Everything that a contributor or CI runs goes through here, so that both run
//! the same thing. It depends on next to nothing and builds in seconds.

mod bench;
mod boundary;
mod ci;
mod compat;
mod coverage;
mod fuzz;
mod house;
mod image;
mod loom;
mod python;
mod run;
mod test;
mod tools;

use std::process::ExitCode;

use run::say;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup   install the tools that tests and checks need into .tools/ (pinned; once)
  test    setup, then every test of the workspace and of the Python package; ARGS go to `cargo test`, without the latter
  python  the Python package's wheel, and its tests; ARGS go to pytest
  wheel   the Python package, optimised, into dist/
  fuzz    every fuzz target for a minute; [--seconds N] [TARGET...]
  loom    the protocol of handoff in every order of events; about a minute
  bench   tpad side by side with its peers; [--quick] [--only wire|latency|handoff|cold|s3] [--rounds N]
  compat  serve what is written now with the program of an early commit
  image   build the container image and run it as the manifests deploy it (as root)
  ci      test, fuzz, loom, image, compat, format, lints, docs, licences, proto, crate boundaries, house rules

needs: Rust (rustup), python3 3.11 or newer with venv, node 18 or newer with npm, and a C compiler; fuzz: a C++ compiler";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    let done = match (command, rest) {
        ("setup", []) => tools::setup().map(drop),
        ("test", extra) => test::test(extra),
        ("python", extra) => python::python(extra),
        ("wheel", []) => python::wheel(),
        ("bench", arguments) => bench::bench(arguments),
        ("fuzz", arguments) => fuzz::fuzz(arguments),
        ("loom", []) => loom::loom(),
        ("image", []) => image::image(),
        ("compat", []) => compat::compat(),
        ("ci", []) => ci::ci(),
        ("help" | "--help" | "-h", _) => {
            say(USAGE);
            return ExitCode::SUCCESS;
        }
        _ => {
            say(USAGE);
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("xtask {command}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

//! `tpactl tier`.

mod add;
mod metadata;

use clap::Subcommand;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Placement, TierId};
use tpad_publish::GrowError;

use crate::failure::Failure;
use crate::output::Output;
use crate::surroundings::Surroundings;

/// Grow a published model by a tier, or change what a tier's record says
///
/// Every command writes one new revision and leaves all others as they are; of two who publish at
/// once one succeeds and the other is told to run the command again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(add::Args),
    SetPlacement(metadata::SetPlacement),
    SetBudget(metadata::SetBudget),
}

pub(crate) async fn run(
    args: Args,
    surroundings: &Surroundings,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    match args.command {
        Command::Add(args) => add::run(args, surroundings, output, stop).await,
        Command::SetPlacement(args) => args.run(surroundings, output, stop).await,
        Command::SetBudget(args) => args.run(surroundings, output, stop).await,
    }
}

/// A tier's id: a number where it can be one.
fn tier_id(text: &str) -> Result<TierId, String> {
    let id: TierId = text.parse().map_err(|error| format!("{error}"))?;
    id.check().map_err(|error| error.to_string())?;
    Ok(id)
}

fn placement(text: &str) -> Result<Placement, String> {
    let expected = || "hbm, dram, nvme or object_store is expected".to_owned();
    let known = [Placement::Hbm, Placement::Dram, Placement::Nvme, Placement::ObjectStore];
    known.into_iter().find(|placement| placement.as_str() == text).ok_or_else(expected)
}

/// Parameters: a whole number, alone or in thousands, millions, billions or
/// trillions.
fn parameters(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" => 1,
        "K" => 1_000,
        "M" => 1_000_000,
        "B" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return Err("a number with K, M, B, T or nothing is expected, such as 10B".to_owned()),
    };
    let parameters = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    parameters.ok_or_else(|| "a number of parameters such as 10B is expected".to_owned())
}

impl From<GrowError> for Failure {
    fn from(error: GrowError) -> Self {
        let failure = Self::new(error.kind().into(), &error);
        match error {
            GrowError::Import(error) => error.into(),
            GrowError::Parent(error) => error.into(),
            GrowError::Cancelled => failure.remedy("run it again: what was uploaded is used again"),
            GrowError::Differs { .. } => failure.remedy(
                "train the new tier with everything else frozen, or leave what is old out of the \
                 checkpoint",
            ),
            GrowError::Breaking { .. } => failure.remedy(
                "undo it, or publish the next major version with --major: workers of this one must \
                 then be moved by hand",
            ),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted_in_powers_of_a_thousand() {
        assert_eq!(parameters("10B"), Ok(10_000_000_000));
        assert_eq!(parameters("768"), Ok(768));
        assert_eq!(parameters("3K"), Ok(3_000));
        assert_eq!(parameters("0"), Ok(0));
        for text in ["", "B", "10GB", "1.5B", "-1", "99999999T", "10 B", "10b"] {
            assert!(parameters(text).is_err(), "{text}");
        }
    }

    #[test]
    fn placements_are_spelled_as_in_manifests() {
        assert_eq!(placement("object_store"), Ok(Placement::ObjectStore));
        assert!(placement("ssd").is_err());
    }
}

//! The command line's shape.

use clap::{Parser, Subcommand};

use crate::remote::Remote;
use crate::{
    activation, admin, bench, completions, fetch, import, leases, manifest, mask, models, plan,
    publish, status, synth, tier,
};

const AFTER_HELP: &str = "\
Examples:
  tpactl import /models/mixtral --model mixtral
  tpactl manifest check /models/mixtral
  tpactl models
  tpactl fetch --model mixtral --tier tier_1b --group 0 --expert 3 --out expert.safetensors

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

    /// Which daemon
    #[command(flatten)]
    pub(crate) remote: Remote,

    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A command and its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Import(import::Args),
    Tier(tier::Args),
    Publish(publish::Args),
    Synth(synth::Args),
    Manifest(manifest::Args),
    Plan(plan::Args),
    Activate(activation::activate::Args),
    Rollback(activation::rollback::Args),
    Revisions(activation::revisions::Args),
    Fetch(fetch::Args),
    Models(models::Args),
    Mask(mask::Args),
    Status(status::Args),
    Leases(leases::Args),
    Load(admin::load::Args),
    Unload(admin::unload::Args),
    Drain(admin::drain::Args),
    Pin(admin::pin::Args),
    Unpin(admin::unpin::Args),
    Evict(admin::evict::Args),
    Prefetch(admin::prefetch::Args),
    Bench(bench::Args),
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

    fn accepts(line: &str) -> bool {
        Cli::try_parse_from(line.split_whitespace()).is_ok()
    }

    #[test]
    fn the_lines_that_scripts_rely_on_are_accepted() {
        for line in [
            "tpactl --addr http://h:1 fetch --model m --tier t --group 0 --expert 1 --out f",
            "tpactl --addr http://h:1 fetch --model m --tier t --group 0 --expert 1 --layer 2 --out f",
            "tpactl --addr unix:///s fetch --model m --router --out f",
            "tpactl fetch --model m --router --tier 1 --layer 0 --layer 1 --out f --json",
            "tpactl fetch --model m --dense a --dense b --out f",
            "tpactl fetch --model m --file config.json --out f",
            "tpactl --addr http://h:1 status --json",
            "tpactl models --timeout 2.5",
            "tpactl models m --blocks --tier t",
            "tpactl mask --model m",
            "tpactl mask --model m --tiers A,B --json",
            "tpactl mask --model m --named small --watch",
            "tpactl mask --model m --up-to A --resident object_store --layers 0,2",
            "tpactl plan /models/m --json",
            "tpactl plan s3://b/m --dram 64GiB --hbm 80GiB --nvme 2TB --origin-rate 2GB/s",
            "tpactl tier add s3://b/m --id 10 --from f --budget 10B --placement nvme --k-expert 2",
            "tpactl tier add m --id t --from f --plan p --budget 1K --placement dram --k-tier 2 \
             --k-group 1 --k-expert 2 --retention 30 --dry-run --json",
            "tpactl tier set-placement m t hbm",
            "tpactl tier set-budget m t 12B --dry-run",
            "tpactl publish m m.json --major --json",
            "tpactl manifest diff /m/tpad/revisions/1.json /m --json",
            "tpactl load m /models/m --json",
            "tpactl load m s3://b/m --origin-of n --allow-base s3://b/base",
            "tpactl load m",
            "tpactl unload m",
            "tpactl drain --json",
            "tpactl pin --model m --owner w --ttl 60 --tier a --group b/0 --expert c/0/1 --layer 3",
            "tpactl unpin --model m --owner w",
            "tpactl unpin --model m --owner w --tier a",
            "tpactl evict --model m --tier a --level dram",
            "tpactl activate /m --revision 3 --tiers a,b --reason x",
            "tpactl rollback /m",
            "tpactl revisions /m --json",
            "tpactl prefetch --model m --tier a --layer 3",
            "tpactl bench fetch --model m --keys zipf:1.1 --rate 100 --concurrency 8 --plot p.svg",
            "tpactl bench mask --model m --duration 2.5 --json",
            "tpactl bench cold --model m --tier t --level dram --rounds 5",
            "tpactl completions zsh",
        ] {
            assert!(accepts(line), "{line}");
        }
    }

    #[test]
    fn lines_without_a_meaning_are_refused() {
        for line in [
            "tpactl fetch --model m --out f",
            "tpactl fetch --model m --tier t --out f",
            "tpactl fetch --model m --tier t --group 0 --out f",
            "tpactl fetch --model m --tier t --expert 0 --out f",
            "tpactl fetch --model m --router --group 0 --out f",
            "tpactl fetch --model m --router --dense d --out f",
            "tpactl fetch --model m --file config.json --layer 1 --out f",
            "tpactl fetch --model m --dense d --tier t --out f",
            "tpactl --addr localhost:1 status",
            "tpactl models --blocks",
            "tpactl mask --tiers A",
            "tpactl mask --model m --tiers A --named small",
            "tpactl mask --model m --up-to A --named small",
            "tpactl mask --model m --layers 1",
            "tpactl mask --model m --resident unavailable",
            "tpactl mask --model m --resident dram --watch",
            "tpactl tier add m --from f --budget 10B --placement nvme --k-expert 2",
            "tpactl tier add m --id t --from f --placement nvme --k-expert 2",
            "tpactl tier add m --id t --from f --budget 10B --k-expert 2",
            "tpactl tier add m --id t --from f --budget 10GB --placement nvme --k-expert 2",
            "tpactl tier set-placement m t ssd",
            "tpactl publish m",
            "tpactl manifest diff /m",
            "tpactl load",
            "tpactl pin --model m --owner w --ttl 60",
            "tpactl pin --model m --owner w --ttl 60 --group a",
            "tpactl pin --model m --owner w --tier a",
            "tpactl evict --model m",
            "tpactl activate /m --tiers a --manifest-tiers",
            "tpactl prefetch --model m",
            "tpactl evict --model m --tier a --level ssd",
            "tpactl load m --origin-of n",
            "tpactl load m /r --revision 1",
            "tpactl load m --revision 1 --follow",
            "tpactl bench",
            "tpactl bench fetch --model m --concurrency 0",
            "tpactl bench cold --model m",
        ] {
            assert!(!accepts(line), "{line}");
        }
    }
}

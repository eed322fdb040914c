//! `tpactl mask`: which experts a router may pick.

mod report;
mod table;

use clap::ValueEnum;
use tpad_client::{Client, FetchedMask, GetMask, MaskEvent, Residency, WatchMask};
use tpad_manifest::{CostClass, RoutingMask, TierSet};

use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, printable};

/// Show which experts a model's router may pick
///
/// Without --tiers, --named or --up-to the tiers of the manifest's default_tier_set are active.
/// Tiers that the model does not have are listed as masked. Asking changes nothing in the daemon's
/// caches.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl mask --model mixtral
  tpactl mask --model mixtral --tiers tier_1b,tier_10b --json
  tpactl mask --model mixtral --named small --watch --json
  tpactl mask --model mixtral --up-to tier_10b --resident dram --layers 0,1")]
pub(crate) struct Args {
    /// The model
    #[arg(long, value_name = "M")]
    model: String,

    /// These tiers are active
    #[arg(long, value_name = "A,B", value_delimiter = ',', group = "set")]
    tiers: Vec<String>,

    /// The tiers of this set are active: the daemon's configuration's, else the manifest's
    #[arg(long, value_name = "NAME", group = "set")]
    named: Option<String>,

    /// This tier and all before it in the manifest are active
    #[arg(long, value_name = "T", group = "set")]
    up_to: Option<String>,

    /// Show by layer where experts are, and mask those in slower places than this
    #[arg(long, value_name = "LEVEL")]
    resident: Option<Level>,

    /// Ask for these layers alone [default: every MoE layer]
    #[arg(long, value_name = "L,L", value_delimiter = ',', requires = "resident")]
    layers: Vec<u32>,

    /// Go on, and show the mask again whenever it changes; with --json one document per line
    #[arg(long, conflicts_with = "resident")]
    watch: bool,
}

/// The slowest place that counts as resident.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Level {
    Hbm,
    Dram,
    Nvme,
    ObjectStore,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let Args { model, tiers, named, up_to, resident, layers, watch } = args;
    let tier_set = match (named, up_to) {
        (Some(name), _) => TierSet::Named(name),
        (None, Some(last)) => TierSet::UpTo(last),
        (None, None) if tiers.is_empty() => TierSet::Default,
        (None, None) => TierSet::Tiers(tiers),
    };
    if watch {
        return follow(&model, tier_set, client, output).await;
    }
    let resident = resident.map(|level| Residency { level: level.into(), layers });
    // Nothing of the sources is shown.
    let request = GetMask { omit_sources: true, resident, ..GetMask::of(&model, tier_set) };
    let mask = content(client.routing_mask(request).await?)?;
    if output.is_json() {
        output.json(&report::Report::of(&mask))
    } else {
        output.text(table::text(&mask, output))
    }
}

/// Shows masks until the daemon ends the watch.
async fn follow(
    model: &str,
    tier_set: TierSet,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let request = WatchMask { omit_sources: true, ..WatchMask::of(model, tier_set) };
    let mut watch = client.watch_routing_mask(request).await?;
    let mut first = true;
    while let Some(event) = watch.next().await {
        let event = event?;
        if !output.is_json() && !std::mem::take(&mut first) {
            output.text("")?;
        }
        match event {
            MaskEvent::Mask(mask) => {
                let mask = content(mask)?;
                if output.is_json() {
                    output.json_line(&report::Report::of(&mask))?;
                } else {
                    output.text(table::text(&mask, output))?;
                }
            }
            MaskEvent::None { reason, message } if output.is_json() => {
                let none = serde_json::json!({ "none": { "reason": reason, "message": message } });
                output.json_line(&none)?;
            }
            MaskEvent::None { message, .. } => {
                let message = format!("no mask: {}", printable(&message));
                output.text(output.tone(Tone::Bad, message))?;
            }
            _ => {}
        }
    }
    Err(Failure::new(Exit::Unavailable, "the daemon ended the watch"))
}

/// The mask itself: no etag was sent that it could be equal to.
fn content(fetched: FetchedMask) -> Result<RoutingMask, Failure> {
    let missing = || Failure::new(Exit::Internal, "the daemon left the mask's content out");
    fetched.mask.ok_or_else(missing)
}

impl From<Level> for CostClass {
    fn from(level: Level) -> Self {
        match level {
            Level::Hbm => Self::Hbm,
            Level::Dram => Self::Dram,
            Level::Nvme => Self::Nvme,
            Level::ObjectStore => Self::ObjectStore,
        }
    }
}

/// Two tiers, of which one has two groups, and what was masked.
#[cfg(test)]
fn example() -> RoutingMask {
    use tpad_manifest::{
        ExpertBits, LayerGroup, LayerMask, LayerTier, MaskReason, MaskedTier, ResidentMask,
        SetOrigin, TierMask,
    };
    let tier = |tier: &str, groups: &[u32]| TierMask {
        tier: tier.to_owned(),
        k_group: 1,
        k_expert: 2,
        groups: groups.iter().map(|experts| ExpertBits::all(*experts)).collect(),
        indexed: true,
        sources: Vec::new(),
    };
    let level = CostClass::Dram;
    let group = |costs: &[CostClass]| LayerGroup::of(level, costs.to_vec());
    let tiers = vec![
        LayerTier { groups: vec![group(&[CostClass::Dram, CostClass::ObjectStore])] },
        LayerTier {
            groups: vec![
                group(&[CostClass::Hbm]),
                group(&[CostClass::Nvme, CostClass::Dram, CostClass::Unavailable]),
            ],
        },
    ];
    let masked =
        |tier: &str, reason| MaskedTier { tier: tier.to_owned(), reason, detail: "why".to_owned() };
    RoutingMask {
        revision: 4,
        origin: SetOrigin::Tiers,
        tiers: vec![tier("a", &[2]), tier("7", &[1, 3])],
        k_tier: 2,
        masked: vec![masked("b", MaskReason::NotInTierSet), masked("c", MaskReason::UnknownTier)],
        resident: Some(ResidentMask { level, layers: vec![LayerMask { layer: 5, tiers }] }),
    }
}

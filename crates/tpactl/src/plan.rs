//! `tpactl plan`: where a checkpoint's tiers would lie, and what bringing them
//! there would cost. Reads the manifest and the indexes' headers, no weight.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tpad_manifest::{
    Catalog, Problem, Rejected, Room, TierFit, fit, token_cycle_bytes, token_cycle_warning,
};
use tpad_publish::Revision;
use tpad_store::memory::MemoryLimit;
use tpad_store::{DramConfig, Footprint, HierarchyConfig, NvmeConfig, NvmeIo};

use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, human_bytes, printable};
use crate::size::{rate, size};
use crate::surroundings::{StoreArgs, Surroundings};

/// Show which tiers of a checkpoint fit where, and what that would cost
///
/// For this machine, or for the sizes given: --dram is levels.dram.capacity and by default what a
/// daemon here would take, --nvme is levels.nvme.capacity and by default none, --hbm is the GPU
/// memory for blocks and by default none. A tier fills its home first and what is slower after it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl plan /models/mixtral
  tpactl plan s3://models/mixtral --dram 64GiB --nvme 2TB --origin-rate 2GB/s
  tpactl plan /models/mixtral --json | jq '.warnings[]'")]
pub(crate) struct Args {
    /// A checkpoint's root, whose highest revision is meant, or the URL of a revision's document
    #[arg(value_name = "ROOT")]
    root: String,

    /// The host-memory level's capacity
    #[arg(long, value_name = "SIZE", value_parser = size)]
    dram: Option<u64>,

    /// GPU memory for blocks
    #[arg(long, value_name = "SIZE", value_parser = size)]
    hbm: Option<u64>,

    /// The disk level's capacity
    #[arg(long, value_name = "SIZE", value_parser = size)]
    nvme: Option<u64>,

    /// What the object store delivers in a second; without it no time is estimated
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    origin_rate: Option<u64>,

    #[command(flatten)]
    store: StoreArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Plan {
    url: String,
    model: String,
    revision: u64,
    room: RoomReport,
    tiers: Vec<TierFit>,
    skipped: Vec<Skipped>,
    dense_bytes: u64,
    cost: Cost,
    /// What one token reads at most.
    token_cycle_bytes: u64,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct RoomReport {
    #[serde(flatten)]
    room: Room,
    dram_capacity: u64,
    /// Who says so.
    dram_source: String,
}

#[derive(Serialize)]
struct Skipped {
    tier: String,
    reason: String,
}

/// What bringing the tiers to their homes costs.
#[derive(Serialize)]
struct Cost {
    /// Read from the object store once the model is loaded.
    warm_bytes: u64,
    /// Left to be read when it is asked for.
    on_demand_bytes: u64,
    /// For the former, at the rate given.
    warm_seconds: Option<f64>,
}

pub(crate) async fn run(
    args: Args,
    surroundings: &Surroundings,
    output: &Output,
) -> Result<(), Failure> {
    let revision = Revision::open(&args.root, &surroundings.stores(&args.store)).await?;
    let catalog = catalog(&revision).await?;
    let plan = Plan::new(&args, &revision, &catalog);
    if output.is_json() {
        return output.json(&plan);
    }
    output.text(plan.describe(output))
}

/// The manifest with the headers of what this version serves.
async fn catalog(revision: &Revision) -> Result<Catalog, Failure> {
    let url = revision.url();
    let mut loaded =
        revision.manifest().clone().map_err(|Rejected(problems)| refuse(&url, &problems))?;
    let mut tiers = BTreeMap::new();
    for tier in &loaded.manifest.tiers {
        let index = tier.index.as_ref().filter(|_| !loaded.skipped.contains_key(&tier.id));
        let Some(index) = index else { continue };
        match revision.header(index).await {
            Ok(header) => {
                tiers.insert(tier.id.clone(), Arc::new(header));
            }
            Err(error) if error.is_newer() => {
                loaded.skipped.insert(tier.id.clone(), error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    let dense = match &loaded.manifest.dense {
        Some(index) => Some(Arc::new(revision.header(index).await?)),
        None => None,
    };
    Catalog::new(loaded, tiers, dense).map_err(|problems| refuse(&url, &problems))
}

fn refuse(url: &str, problems: &[Problem]) -> Failure {
    let first = problems.first().map(ToString::to_string).unwrap_or_default();
    let count = problems.len();
    let message = format!("{url} is refused: {first} (of {count} problems)");
    Failure::new(Exit::FailedPrecondition, message).remedy("`tpactl manifest show` lists all")
}

impl Plan {
    fn new(args: &Args, revision: &Revision, catalog: &Catalog) -> Self {
        let (dram_capacity, dram_source) = match args.dram {
            Some(bytes) => (bytes, "--dram".to_owned()),
            None => {
                let limit = MemoryLimit::detect();
                (limit.default_dram_bytes(), format!("a quarter of {}", limit.source))
            }
        };
        let HierarchyConfig { dram, .. } = HierarchyConfig::new(dram_capacity);
        let nvme = args.nvme.map(|capacity_bytes| {
            let path = std::path::PathBuf::new();
            let io = NvmeIo::Auto;
            NvmeConfig { path, capacity_bytes, free_floor_bytes: 0, io }.block_bytes()
        });
        let room = Room { hbm: args.hbm, dram: DramConfig::home_bytes(&dram), nvme };
        let manifest = catalog.manifest();
        let (mut needs, mut images, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        for tier in &manifest.tiers {
            let id = tier.id.to_string();
            match catalog.tier(&id) {
                Ok((tier, header)) => {
                    needs.push(Footprint::of(tier, header).need(tier, None));
                    images.push(header.image_bytes());
                }
                Err(why) => skipped.push(Skipped { tier: id, reason: why.to_string() }),
            }
        }
        let mut tiers = fit(&needs, &room);
        let cycle = token_cycle_bytes(catalog);
        let mut warnings: Vec<String> = tiers.iter().filter_map(TierFit::warning).collect();
        warnings.extend(token_cycle_warning(cycle, room.dram));
        // From here on in bytes that are read, not in those that they take.
        for (tier, images) in tiers.iter_mut().zip(images) {
            tier.spread = tier.spread.of_images(images, tier.bytes);
            tier.bytes = images;
        }
        let sum = |of: fn(&TierFit) -> u64| tiers.iter().map(of).fold(0, u64::saturating_add);
        let warm_bytes = sum(|tier| tier.spread.brought());
        let cost = Cost {
            warm_bytes,
            on_demand_bytes: sum(|tier| tier.spread.object_store),
            warm_seconds: args.origin_rate.map(|rate| seconds(warm_bytes, rate)),
        };
        Self {
            url: revision.url(),
            model: manifest.model.clone(),
            revision: manifest.revision,
            room: RoomReport { room, dram_capacity, dram_source },
            dense_bytes: catalog.dense().map_or(0, |header| header.image_bytes()),
            tiers,
            skipped,
            cost,
            token_cycle_bytes: cycle,
            warnings,
        }
    }

    fn describe(&self, output: &Output) -> String {
        let RoomReport { room, dram_capacity, dram_source } = &self.room;
        let medium = |bytes: Option<u64>| bytes.map_or_else(|| "none".to_owned(), human_bytes);
        let (model, url) = (printable(&self.model), printable(&self.url));
        let mut lines = vec![
            format!("{model}  {url}"),
            format!("hbm            {}", medium(room.hbm)),
            format!(
                "dram           {} for tiers of {} ({})",
                human_bytes(room.dram),
                human_bytes(*dram_capacity),
                printable(dram_source)
            ),
            format!("nvme           {}", medium(room.nvme)),
            String::new(),
        ];
        let bytes = |bytes: u64| if bytes == 0 { "-".to_owned() } else { human_bytes(bytes) };
        let rows: Vec<Vec<String>> = self
            .tiers
            .iter()
            .map(|tier| {
                let spread = &tier.spread;
                vec![
                    tier.tier.clone(),
                    tier.placement.as_str().to_owned(),
                    tier.home.as_str().to_owned(),
                    human_bytes(tier.bytes),
                    bytes(spread.hbm),
                    bytes(spread.dram),
                    bytes(spread.nvme),
                    bytes(spread.object_store),
                    tier.home_reason.unwrap_or_default().to_owned(),
                ]
            })
            .collect();
        let headings =
            ["TIER", "PLACEMENT", "HOME", "SIZE", "HBM", "DRAM", "NVME", "ON DEMAND", "REASON"];
        lines.push(output.table(&headings, &rows));
        for Skipped { tier, reason } in &self.skipped {
            lines.push(format!("skipped: {}: {}", printable(tier), printable(reason)));
        }
        let Cost { warm_bytes, on_demand_bytes, warm_seconds } = &self.cost;
        let time = warm_seconds.map(|time| format!(", {time:.1} s at the rate given"));
        lines.extend([
            String::new(),
            format!("warming reads  {}{}", human_bytes(*warm_bytes), time.unwrap_or_default()),
            format!("on demand      {}", human_bytes(*on_demand_bytes)),
            format!("dense          {}", human_bytes(self.dense_bytes)),
            format!("token cycle    at most {}", human_bytes(self.token_cycle_bytes)),
        ]);
        for warning in &self.warnings {
            let mark = output.tone(Tone::Bad, "warning:");
            lines.push(format!("{mark} {}", printable(warning)));
        }
        lines.join("\n")
    }
}

/// How long `bytes` take at `rate` bytes a second.
#[expect(clippy::cast_precision_loss, reason = "an estimate that is shown with one decimal")]
fn seconds(bytes: u64, rate: u64) -> f64 {
    bytes as f64 / rate.max(1) as f64
}

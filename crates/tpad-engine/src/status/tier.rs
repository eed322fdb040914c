//! What the engine says of one tier.

use serde::Serialize;
use tpad_manifest::Placement;
use tpad_store::{CacheClass, Lookups, Medium};

use crate::Generation;
use crate::placement::Levels;

/// One tier.
#[derive(Clone, Debug, Serialize)]
pub struct TierStatus {
    /// Its id, as text.
    pub id: String,
    /// Its home, as the manifest names it.
    pub placement: Placement,
    /// Its home here: the medium that this daemon keeps it on.
    pub home: Medium,
    /// Why that is another one than the manifest names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home_reason: Option<String>,
    /// Blocks, routers included.
    pub blocks: u64,
    /// The sum of their images.
    pub bytes: u64,
    /// What is kept of it now.
    pub resident_bytes: ResidentBytes,
    /// What its home, and whatever is faster, does not hold of it; 0 when its
    /// home is the object store.
    pub missing_bytes: u64,
    /// How far it was brought to its home.
    pub warm: WarmStatus,
    /// Where this generation's reads for requests found its blocks.
    pub reads: TierReads,
    /// Logical parameters of its experts.
    pub parameters: u64,
    /// The most that it may have.
    pub parameter_budget: u64,
    /// Why it is not served, though it is in the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// Bytes that each level keeps of a tier, as counted by class: models whose
/// tiers share a name share the count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResidentBytes {
    /// In GPU memory, on the device that has the least of it.
    pub hbm: u64,
    /// In host memory.
    pub dram: u64,
    /// On disk.
    pub nvme: u64,
}

/// How far a tier was brought to its home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WarmStatus {
    /// Whether it is being brought there.
    pub state: WarmState,
    /// Bytes that were looked at and are there, or do not fit.
    pub done_bytes: u64,
    /// The sum of its images.
    pub total_bytes: u64,
    /// Why blocks are not there that would fit: the latest reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether a tier is being brought to its home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmState {
    /// It is fetched when it is asked for.
    OnDemand,
    /// Others go first.
    Waiting,
    /// Under way.
    Warming,
    /// Over: what fits is there.
    Warm,
    /// Given up; what is missing is fetched when it is asked for.
    Failed,
}

/// Where reads for requests found a tier's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TierReads {
    /// In GPU memory.
    pub hbm: u64,
    /// In host memory.
    pub dram: u64,
    /// On disk.
    pub nvme: u64,
    /// Nowhere but in the object store.
    pub object_store: u64,
    /// Reads that no level could answer count as misses.
    #[serde(flatten)]
    pub lookups: Lookups,
}

impl WarmStatus {
    /// Of a tier that nobody brings anywhere.
    #[must_use]
    pub const fn on_demand() -> Self {
        Self { state: WarmState::OnDemand, done_bytes: 0, total_bytes: 0, problem: None }
    }
}

/// How far a tier of a revision that is about to be served was brought home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComingTier {
    /// Its id, as text.
    pub id: String,
    /// Its home here.
    pub home: Medium,
    /// How far it was brought there.
    pub warm: WarmStatus,
}

/// The tiers of a generation that is about to be served and was placed, in
/// manifest order.
pub(super) fn coming(generation: &Generation) -> Vec<ComingTier> {
    let ids = generation.manifest().tiers.iter().map(|tier| tier.id.to_string());
    let placed = ids.filter_map(|id| {
        let place = generation.places().get(&id)?;
        Some(ComingTier { id, home: place.home, warm: place.warm })
    });
    placed.collect()
}

/// The tiers of a generation, in manifest order.
pub(super) fn tiers(generation: &Generation, levels: &Levels) -> Vec<TierStatus> {
    let tiers = generation.manifest().tiers.iter();
    let status = tiers.map(|tier| {
        let served = generation.catalog().tier(&tier.id.to_string());
        let header = served.as_ref().ok().map(|(_, header)| header);
        let bytes = header.map_or(0, |header| header.image_bytes());
        let class = CacheClass::from(tier.id.to_string());
        let kept = |medium| levels.kept_of(medium, &class);
        let place = generation.places().get(&tier.id.to_string());
        let missing_bytes = place.as_ref().map_or(0, |place| place.missing(bytes, kept));
        let home = place.as_ref().map_or(Medium::ObjectStore, |place| place.home);
        let home_reason = place.as_ref().and_then(|place| place.home_reason);
        TierStatus {
            id: tier.id.to_string(),
            placement: tier.placement,
            home,
            home_reason: home_reason.map(str::to_owned),
            blocks: header.map_or(0, |header| header.blocks()),
            bytes,
            resident_bytes: ResidentBytes {
                hbm: kept(Medium::Hbm),
                dram: kept(Medium::Dram),
                nvme: kept(Medium::Nvme),
            },
            missing_bytes,
            warm: place.map_or_else(WarmStatus::on_demand, |place| place.warm),
            reads: generation.reads(&class),
            parameters: header.map_or(0, |header| header.parameters()),
            parameter_budget: tier.parameter_budget,
            skipped: generation.catalog().skipped(&tier.id).map(str::to_owned),
        }
    });
    status.collect()
}

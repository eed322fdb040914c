//! Why a request for parameters fails, and what its caller can do.

use std::sync::Arc;

use tpad_index::IndexError;
use tpad_manifest::{BlockKey, Digest, MaskError, SizeError, TierError};
use tpad_store::{ErrorKind, OriginError, ReadError};

use crate::LeaseHolder;

/// Names listed in an error at most, so that its text stays readable.
const NAMES_SHOWN: usize = 16;

/// Why a request for parameters failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// No model of that name is configured.
    #[error("model {model:?} is not configured; configured are {}", listed(.known))]
    UnknownModel {
        /// The name asked for.
        model: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// The model's manifest is being read for the first time.
    #[error("model {model:?} is still loading")]
    ModelLoading {
        /// The model.
        model: String,
    },
    /// The model could not be loaded and is tried again.
    #[error("model {model:?} could not be loaded, and is tried again: {reason}")]
    ModelFailed {
        /// The model.
        model: String,
        /// What went wrong last time.
        reason: String,
    },
    /// The model was to be loaded and could not be.
    #[error("model {model:?} cannot be loaded: {reason}")]
    Load {
        /// The model.
        model: String,
        /// What the caller can do.
        kind: ErrorKind,
        /// Why.
        reason: String,
    },
    /// A model was to be added whose name is taken.
    #[error("there is a model {model:?} already, of root {root}: unload it first")]
    ModelExists {
        /// The model.
        model: String,
        /// The root that it has.
        root: String,
    },
    /// One more model was to be added.
    #[error("there are {limit} models, the most that a daemon takes: unload one first")]
    TooManyModels {
        /// The bound.
        limit: usize,
    },
    /// The tier is unknown or not served.
    #[error("model {model:?}: {source}")]
    Tier {
        /// The model.
        model: String,
        /// Which and why.
        source: TierError,
    },
    /// The tier has no such group.
    #[error("tier {tier} has no group {group}; it has groups 0 to {}", .groups.saturating_sub(1))]
    UnknownGroup {
        /// The tier.
        tier: String,
        /// The group asked for.
        group: u32,
        /// How many there are.
        groups: usize,
    },
    /// The group has no such expert.
    #[error("group {group} of tier {tier} has no expert {expert}; it has experts 0 to {}", .experts.saturating_sub(1))]
    UnknownExpert {
        /// The tier.
        tier: String,
        /// The group.
        group: u32,
        /// The expert asked for.
        expert: u32,
        /// How many there are.
        experts: u32,
    },
    /// The tier has nothing at that layer.
    #[error("tier {tier} has no layer {layer}; it has {layers}")]
    UnknownLayer {
        /// The tier.
        tier: String,
        /// The layer asked for.
        layer: u32,
        /// The layers that exist.
        layers: String,
    },
    /// The tier has no router there.
    #[error("tier {tier} has no router at {place}")]
    NoRouter {
        /// The tier.
        tier: String,
        /// Which layer, or any.
        place: String,
    },
    /// There is no dense tensor of that name.
    #[error("model {model:?} has no dense tensor {name:?}{}", similar(.close))]
    UnknownDense {
        /// The model.
        model: String,
        /// The name asked for.
        name: String,
        /// Names like it.
        close: Vec<String>,
    },
    /// The manifest lists no such file.
    #[error("model {model:?} has no file {name:?}; it has {}", listed(.known))]
    UnknownFile {
        /// The model.
        model: String,
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// There is no routing mask for the request's TierSet.
    #[error("model {model:?}: {source}")]
    Mask {
        /// The model.
        model: String,
        /// Why.
        source: MaskError,
    },
    /// The request names nothing.
    #[error("nothing was asked for: name keys, blocks or tiers")]
    NothingSelected,
    /// The request selects more than one request may.
    #[error(
        "the request selects {count} blocks, one request may select {limit}: ask layer by layer"
    )]
    TooManyBlocks {
        /// How many at the least.
        count: u64,
        /// How many it may be.
        limit: usize,
    },
    /// All requests together have selected more than they may.
    #[error(
        "requests in progress have selected too many blocks for {count} more: try again later, or ask for fewer"
    )]
    SelectionsBusy {
        /// How many this one wants.
        count: usize,
    },
    /// An index segment could not be used.
    #[error("{place}: {source}")]
    Index {
        /// The index and layer.
        place: String,
        /// Why.
        source: Arc<IndexProblem>,
    },
    /// A block's record has no size.
    #[error("{key}: {source}")]
    BlockSize {
        /// The block.
        key: BlockKey,
        /// Why.
        source: SizeError,
    },
    /// A block could not be read.
    #[error("{key}: {source}")]
    Block {
        /// The block.
        key: BlockKey,
        /// Why.
        source: Arc<ReadError>,
    },
    /// A file could not be read.
    #[error("file {name}: {source}")]
    File {
        /// The file.
        name: String,
        /// Why.
        source: Arc<FileProblem>,
    },
    /// A page token that this daemon did not make for this request.
    #[error("page_token is not one that this request was answered with")]
    PageToken,
    /// A page token from before a swap.
    #[error(
        "page_token belongs to generation {found}, generation {current} is served now: list again from the start"
    )]
    StalePage {
        /// The token's.
        found: u64,
        /// The one being read.
        current: u64,
    },
    /// A pin asks for more memory than pins may hold.
    #[error(
        "{asked} bytes were to be pinned and {held} are; pins may hold {limit} bytes, half of what the dram level keeps: pin less, unpin something, or raise levels.dram.capacity"
    )]
    PinCapacity {
        /// What this pin adds.
        asked: u64,
        /// What pins hold.
        held: u64,
        /// What they may hold.
        limit: u64,
    },
    /// One more pin was to be made.
    #[error("there are {limit} pins, the most that a daemon takes: unpin something first")]
    TooManyPins {
        /// The bound.
        limit: usize,
    },
    /// A pinned block found no room.
    #[error(
        "{key} could not be pinned: slabs of memory with pinned blocks would be more than half of levels.dram.capacity; pin less, unpin something, or raise it"
    )]
    PinRefused {
        /// The block.
        key: BlockKey,
    },
    /// There is no such pin.
    #[error("{owner:?} has no such pin")]
    UnknownPin {
        /// The owner.
        owner: String,
    },
    /// Leases would hold more memory than they may.
    #[error(
        "leases of {holder} would hold {wanted} bytes of host memory, and {limit} is the most: release some, lease fewer at a time, or raise {}", .holder.setting()
    )]
    LeasesFull {
        /// What they would hold.
        wanted: u64,
        /// What they may hold.
        limit: u64,
        /// Of whom.
        holder: LeaseHolder,
    },
    /// A worker holds more leases than a daemon keeps of one.
    #[error("a worker holds at most {limit} leases: release some")]
    TooManyLeases {
        /// How many it may hold.
        limit: usize,
    },
    /// Blocks are asked for on a device that the daemon has not.
    #[error(
        "there is no device {device:?} here: {reason}; acquire blocks in host memory, or name one of these"
    )]
    NoDevice {
        /// As it was named.
        device: String,
        /// What there is.
        reason: String,
    },
    /// A device has no room for a block.
    #[error(
        "{key} has no room on device {device}: release leases there, lease fewer at a time, or raise levels.hbm.capacity"
    )]
    DeviceFull {
        /// The block.
        key: BlockKey,
        /// Its index.
        device: u32,
    },
    /// A block could not be copied to a device.
    #[error("{key} was not copied: {source}; acquire it in host memory")]
    Device {
        /// The block.
        key: BlockKey,
        /// What the level says.
        source: tpad_hbm::HbmError,
    },
    /// The caller's deadline passed.
    #[error("the deadline passed while {what}")]
    Deadline {
        /// What was going on.
        what: String,
    },
    /// The engine is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// Why an index segment could not be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexProblem {
    /// Its bytes could not be had.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// Its bytes are not what the manifest promised.
    #[error(transparent)]
    Content(#[from] IndexError),
    /// The check did not finish: the daemon is stopping, or it has a defect.
    #[error("the check of its bytes did not finish")]
    Interrupted,
}

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// Its bytes could not be had.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// Its bytes are not what the manifest promised.
    #[error("the digest of {object} is {found}, the manifest promises {expected}")]
    Content {
        /// The object.
        object: String,
        /// The digest of its bytes.
        found: Digest,
        /// The digest in the manifest.
        expected: Digest,
    },
    /// It is too large to be served as a file.
    #[error("{bytes} bytes, at most {limit} are served as a file")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// The check did not finish: the daemon is stopping, or it has a defect.
    #[error("the check of its bytes did not finish")]
    Interrupted,
}

impl EngineError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownModel { .. }
            | Self::Tier { source: TierError::Unknown { .. }, .. }
            | Self::UnknownGroup { .. }
            | Self::UnknownExpert { .. }
            | Self::UnknownLayer { .. }
            | Self::NoRouter { .. }
            | Self::UnknownDense { .. }
            | Self::UnknownFile { .. }
            | Self::UnknownPin { .. }
            | Self::Mask { source: MaskError::UnknownSet { .. }, .. } => ErrorKind::NotFound,
            Self::Tier {
                source: TierError::Skipped { .. } | TierError::NoIndex { .. }, ..
            }
            | Self::Mask { source: MaskError::Empty { .. }, .. }
            | Self::ModelExists { .. }
            | Self::TooManyModels { .. }
            | Self::StalePage { .. } => ErrorKind::FailedPrecondition,
            Self::Load { kind, .. } => *kind,
            Self::Mask { source: MaskError::TooLarge { .. }, .. }
            | Self::NothingSelected
            | Self::TooManyBlocks { .. }
            | Self::PageToken => ErrorKind::InvalidArgument,
            Self::SelectionsBusy { .. }
            | Self::PinCapacity { .. }
            | Self::PinRefused { .. }
            | Self::TooManyPins { .. }
            | Self::LeasesFull { .. }
            | Self::DeviceFull { .. }
            | Self::TooManyLeases { .. } => ErrorKind::ResourceExhausted,
            Self::NoDevice { .. } => ErrorKind::FailedPrecondition,
            Self::Device { source, .. } => source.kind(),
            Self::ModelLoading { .. } | Self::ModelFailed { .. } | Self::Stopping => {
                ErrorKind::Unavailable
            }
            Self::BlockSize { .. } => ErrorKind::DataLoss,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::Index { source, .. } => match &**source {
                IndexProblem::Origin(error) => promised(error.kind()),
                IndexProblem::Content(error) if error.is_newer() => ErrorKind::FailedPrecondition,
                IndexProblem::Content(_) => ErrorKind::DataLoss,
                IndexProblem::Interrupted => ErrorKind::Internal,
            },
            Self::Block { source, .. } => promised(source.kind()),
            Self::File { source, .. } => match &**source {
                FileProblem::Origin(error) => promised(error.kind()),
                FileProblem::Content { .. } => ErrorKind::DataLoss,
                FileProblem::TooLarge { .. } => ErrorKind::FailedPrecondition,
                FileProblem::Interrupted => ErrorKind::Internal,
            },
        }
    }

    /// A constant that programs can compare, finer than the kind.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "MODEL_NOT_FOUND",
            Self::ModelLoading { .. } => "MODEL_LOADING",
            Self::ModelFailed { .. } => "MODEL_NOT_LOADED",
            Self::Load { .. } => "LOAD_FAILED",
            Self::ModelExists { .. } => "MODEL_EXISTS",
            Self::TooManyModels { .. } => "TOO_MANY_MODELS",
            Self::Tier { source, .. } => match source {
                TierError::Unknown { .. } => "TIER_NOT_FOUND",
                TierError::Skipped { .. } => "TIER_SKIPPED",
                TierError::NoIndex { .. } => "TIER_WITHOUT_INDEX",
            },
            Self::UnknownGroup { .. } => "GROUP_NOT_FOUND",
            Self::UnknownExpert { .. } => "EXPERT_NOT_FOUND",
            Self::UnknownLayer { .. } => "LAYER_NOT_FOUND",
            Self::NoRouter { .. } => "ROUTER_NOT_FOUND",
            Self::UnknownDense { .. } => "DENSE_TENSOR_NOT_FOUND",
            Self::UnknownFile { .. } => "FILE_NOT_FOUND",
            Self::Mask { source, .. } => match source {
                MaskError::UnknownSet { .. } => "TIER_SET_NOT_FOUND",
                MaskError::Empty { .. } => "MASK_EMPTY",
                MaskError::TooLarge { .. } => "MASK_TOO_LARGE",
            },
            Self::NothingSelected => "NOTHING_SELECTED",
            Self::TooManyBlocks { .. } => "TOO_MANY_BLOCKS",
            Self::SelectionsBusy { .. } => "SELECTIONS_BUSY",
            Self::Index { .. } => "INDEX_UNREADABLE",
            Self::BlockSize { .. } => "BLOCK_WITHOUT_SIZE",
            Self::Block { .. } => "BLOCK_UNREADABLE",
            Self::File { .. } => "FILE_UNREADABLE",
            Self::PinCapacity { .. } => "PIN_CAPACITY",
            Self::PinRefused { .. } => "PIN_REFUSED",
            Self::TooManyPins { .. } => "TOO_MANY_PINS",
            Self::UnknownPin { .. } => "PIN_NOT_FOUND",
            Self::LeasesFull { .. } => "LEASES_FULL",
            Self::TooManyLeases { .. } => "TOO_MANY_LEASES",
            Self::NoDevice { .. } => "DEVICE_NOT_FOUND",
            Self::DeviceFull { .. } => "DEVICE_FULL",
            Self::Device { .. } => "DEVICE_FAILED",
            Self::PageToken => "PAGE_TOKEN_INVALID",
            Self::StalePage { .. } => "PAGE_TOKEN_STALE",
            Self::Deadline { .. } => "DEADLINE_EXCEEDED",
            Self::Stopping => "STOPPING",
        }
    }
}

/// The kind of a failure to read what the manifest promises. That it is missing
/// is no fault of the caller, who asked for something that exists.
fn promised(kind: ErrorKind) -> ErrorKind {
    match kind {
        ErrorKind::NotFound => ErrorKind::DataLoss,
        ErrorKind::InvalidArgument => ErrorKind::Internal,
        other => other,
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    let shown = names.iter().take(NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMES_SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

fn similar(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    format!("; similar are {}", listed(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_bounded() {
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        assert_eq!(listed(&[]), "none");
        assert_eq!(listed(&names[..2]), "0, 1");
        assert!(listed(&names[..16]).ends_with("14, 15"));
        assert!(listed(&names).ends_with("15 and 4 more"));
    }

    #[test]
    fn what_the_manifest_promises_is_never_not_found() {
        assert_eq!(promised(ErrorKind::NotFound), ErrorKind::DataLoss);
        assert_eq!(promised(ErrorKind::Unavailable), ErrorKind::Unavailable);
    }
}

//! The write side: checkpoints in the Hugging Face layout are read, mapped to
//! tiers and published as revisions that point into their shards; published
//! revisions are checked byte by byte; synthetic checkpoints are made.
//!
//! An import writes no weight: it reads every byte once, to know its digest, and
//! writes indexes and one small document. A tier that is added is copied to the
//! model's root, in shards of its own; nothing that is there is written again.

mod activation;
mod blocking;
mod changes;
mod check;
mod digest;
mod grow;
mod import;
mod layout;
mod ledger;
mod mapping;
mod plan;
mod progress;
mod revision;
mod shard;
mod survey;
mod synth;

pub use activation::{
    Activate, ActivationError, DefaultTiers, History, PublishedRevision, activate, history,
    rollback,
};
pub use changes::changes;
pub use check::{CheckError, Checked, check};
pub use grow::{
    AmendOptions, Amended, Amendment, GrowError, GrowOptions, GrowOutcome, Grown, add_tier, amend,
};
pub use import::{ImportError, ImportOptions, ImportOutcome, Imported, import};
pub use layout::{
    Checkpoint, DraftBlock, ExpertSize, LayoutError, MoeLayer, RouterTensor, recognise,
};
pub use mapping::{BASE_TIER, LayerDraft, Mapping, TierDraft, map};
pub use plan::{Plan, PlanError};
pub use progress::{Phase, Progress, Silent};
pub use revision::{Revision, RevisionError};
pub use shard::{
    HeaderFault, MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_RANK, ShardError,
    ShardTensor, header_end as shard_header_end, parse_header,
};
pub use synth::{PRESETS, SynthDtype, SynthError, SynthFamily, SynthSpec, Synthesized, synthesize};

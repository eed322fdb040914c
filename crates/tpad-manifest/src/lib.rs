//! The Tiered Parameter Architecture's words as types: ids, keys, blocks and
//! their images, the manifest document and the index, with every rule that can
//! be checked without reading anything.
//!
//! This crate is pure: no I/O, no async, no wire format. What it accepts from
//! outside it bounds and checks, and it reports every problem with its place.

mod block;
mod catalog;
mod diff;
mod digest;
mod document;
mod dtype;
mod id;
mod image;
mod index;
mod key;
mod mask;
mod path;
mod placement;
mod problem;
mod tensor;

pub use block::{BlockRecord, Source};
pub use catalog::{Catalog, TierError};
pub use diff::{Change, Changes, Effect};
pub use digest::{BlockId, Digest, DigestParseError};
pub use document::{
    Activation, Compatibility, FORMAT_VERSION, FileRecord, FormatVersion, GroupRecord,
    GroupScoring, IndexRef, LayerKind, LayerRecord, Loaded, MAX_ACTIVATION_BYTES,
    MAX_DOCUMENT_BYTES, Manifest, ModelVersion, Placement, Routing, Scoring, ScoringFunction,
    TierRecord, VersionError, is_tier_set_name,
};
pub use dtype::{Dtype, SizeError};
pub use id::{TierId, TierIdError};
pub use image::{IMAGE_ALIGN_BYTES, ImageLayout};
pub use index::{
    BlockTemplate, BuildError, GroupRun, Index, IndexBuilder, IndexHeader, LOOSE, LooseBlock,
    LooseRange, LooseTensor, ObjectRecord, Segment, SegmentEntry, TensorTemplate,
};
pub use key::{BlockKey, ExpertKey};
pub use mask::{
    CostClass, ExpertBits, LayerGroup, LayerMask, LayerSources, LayerTier, MAX_MASK_EXPERTS,
    MAX_TIER_SET_ENTRIES, MaskError, MaskReason, MaskedTier, ResidentMask, ResolvedSet,
    RoutingMask, SetOrigin, TierMask, TierSet, fold_sources,
};
pub use path::{
    ACTIVATIONS, PathError, REVISIONS, activation_path, check_object_path, index_path, revision_of,
    revision_path,
};
pub use placement::{
    Room, Spread, TierFit, TierNeed, fit, home, token_cycle_bytes, token_cycle_warning,
};
pub use problem::{Problem, Rejected};
pub use tensor::{ByteRange, GateUp, Orientation, Part, Projection, Role, TensorRecord};

//! The manifest: a checkpoint's tiers, groups and routing in one small JSON
//! document that stands without its indexes and without any weights.

mod activation;
mod json;
mod read;
mod rules;
mod version;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use activation::{Activation, MAX_ACTIVATION_BYTES};
pub use read::{Loaded, MAX_DOCUMENT_BYTES};
pub use rules::is_tier_set_name;
pub use version::{FORMAT_VERSION, FormatVersion, ModelVersion, VersionError};

use crate::{Digest, Dtype, TierId};

/// A checkpoint's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Manifest {
    /// The document's version; the same major is readable.
    pub format_version: FormatVersion,
    /// The weights' version: growth steps its minor, a breaking change its
    /// major.
    pub model_version: ModelVersion,
    /// The model's name, for people.
    pub model: String,
    /// The revision's number.
    pub revision: u64,
    /// BLAKE3 of the revision that this one grew from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub parent: Option<Digest>,
    /// When the revision was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub created_at: Option<Timestamp>,
    /// The root of the shards, when the manifest is kept elsewhere. A daemon
    /// serves it only when its configuration allows that base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects_base: Option<String>,
    /// The MoE layers.
    pub layers: Vec<LayerRecord>,
    /// How the model's router turns logits into weights.
    pub scoring: Scoring,
    /// The tiers that a request without a TierSet gets.
    #[schemars(with = "Vec<TierIdSchema>")]
    pub default_tier_set: Vec<TierId>,
    /// TierSets by name, for requests that ask for one. Left out where there
    /// are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Vec<TierIdSchema>>")]
    pub tier_sets: BTreeMap<String, Vec<TierId>>,
    /// Features that a reader must know to serve the checkpoint at all.
    pub requires: Vec<String>,
    /// Small files that travel with the model: `config.json`, tokenizer.
    pub files: BTreeMap<String, FileRecord>,
    /// The index of the dense tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense: Option<IndexRef>,
    /// The tiers, oldest first.
    pub tiers: Vec<TierRecord>,
}

/// One MoE layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LayerRecord {
    /// Its number in the checkpoint's tensor names.
    pub layer: u32,
    /// What it is for.
    pub kind: LayerKind,
}

/// What a MoE layer is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// A layer of the model itself.
    #[default]
    Moe,
    /// A multi-token prediction layer: it drafts tokens and is not part of the
    /// model's own forward pass.
    Mtp,
}

/// How a family's router turns logits into expert weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scoring {
    /// The function over the logits.
    pub function: ScoringFunction,
    /// Whether a correction bias is added to scores for selection only.
    pub correction_bias: bool,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalize: bool,
    /// What the weights are multiplied by in the end.
    pub scale: f64,
    /// How the router scores a group. Left out where it is the default, so that
    /// documents of families without groups stay what they were.
    #[serde(default, skip_serializing_if = "GroupScoring::is_default")]
    pub groups: GroupScoring,
}

/// The function that a router applies to its logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScoringFunction {
    /// Softmax over all experts, then top-k.
    #[default]
    Softmax,
    /// Top-k, then softmax over the chosen logits.
    SoftmaxAfterTopK,
    /// Sigmoid of each logit, then top-k.
    Sigmoid,
    /// Square root of softplus of each logit, then top-k.
    SqrtSoftplus,
    /// One that this version does not know. Blocks are served all the same; a
    /// router must refuse it, since any other function would be a wrong one.
    Unknown,
}

/// How a family's router scores a group of experts, before it takes the best
/// groups of a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupScoring {
    /// The log-sum-exp of its experts' logits: its probability under the flat
    /// softmax.
    #[default]
    LogSumExp,
    /// The largest of its experts' scores, as DeepSeek-V2 does.
    Max,
    /// The sum of its experts' two largest scores for selection, correction
    /// bias included, as DeepSeek-V3 does.
    TopTwoSum,
    /// In a way that this version does not know; as with the function.
    Unknown,
}

impl GroupScoring {
    /// The name that the manifest uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LogSumExp => "log_sum_exp",
            Self::Max => "max",
            Self::TopTwoSum => "top_two_sum",
            Self::Unknown => "unknown",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Scoring {
    fn default() -> Self {
        Self {
            function: ScoringFunction::Softmax,
            correction_bias: false,
            normalize: false,
            scale: 1.0,
            groups: GroupScoring::default(),
        }
    }
}

/// A small file and what its bytes must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileRecord {
    /// The object, relative to the checkpoint's root.
    pub object: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    #[schemars(with = "String")]
    pub digest: Digest,
}

/// An index object: `tpad/index/<digest>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexRef {
    /// BLAKE3 of the index's header, which holds its segments' digests.
    #[schemars(with = "String")]
    pub digest: Digest,
    /// Bytes from the start of the object to the end of its header.
    pub header_bytes: u64,
    /// The object's size.
    pub bytes: u64,
}

/// One tier.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct TierRecord {
    /// The id, unique in the manifest.
    #[schemars(with = "TierIdSchema")]
    pub id: TierId,
    /// When the tier was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub created_at: Option<Timestamp>,
    /// The most logical parameters that the tier's experts may have together.
    pub parameter_budget: u64,
    /// The groups, in order of their ids.
    pub groups: Vec<GroupRecord>,
    /// The medium that is the tier's home.
    pub placement: Placement,
    /// The k values in force when this tier is active.
    pub routing: Routing,
    /// What a reader must understand to serve the tier.
    pub compatibility: Compatibility,
    /// Where the tier's blocks are listed; without it the record is metadata
    /// alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexRef>,
}

/// One group of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupRecord {
    /// How many experts the group has.
    pub experts: u32,
    /// The model's hidden size, as the experts' shapes give it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<u64>,
    /// The experts' inner size, as their shapes give it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<u64>,
}

/// The medium that a tier's policy names as its home. A hint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// GPU memory.
    Hbm,
    /// Host memory.
    Dram,
    /// Local disk.
    Nvme,
    /// Fetched on demand; nothing is warmed.
    #[default]
    ObjectStore,
}

impl Placement {
    /// The name that the manifest uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hbm => "hbm",
            Self::Dram => "dram",
            Self::Nvme => "nvme",
            Self::ObjectStore => "object_store",
        }
    }
}

/// How many tiers, groups and experts a token uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Routing {
    /// Tiers for a token.
    pub k_tier: u32,
    /// Groups of the tier for a token.
    pub k_group: u32,
    /// Experts of the tier for a token.
    pub k_expert: u32,
}

impl Default for Routing {
    fn default() -> Self {
        Self { k_tier: 1, k_group: 1, k_expert: 1 }
    }
}

/// What a reader must understand to serve a tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Compatibility {
    /// The document version that the tier needs.
    pub format_version: FormatVersion,
    /// Features that the tier needs; an unknown one skips the tier.
    pub requires: Vec<String>,
    /// The element types of its experts' tensors.
    #[schemars(with = "Vec<String>")]
    pub dtypes: Vec<Dtype>,
    /// The quantization scheme's label, for engines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
}

/// A tier id in the schema: an integer or a string.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum TierIdSchema {
    /// An integer id.
    Number(u64),
    /// A string id.
    Name(String),
}

impl Manifest {
    /// The document, readable by people, ending in a newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self)
            .expect("a manifest holds strings, finite numbers and maps with string keys");
        text.push('\n');
        text
    }

    /// The tier that `text` names.
    #[must_use]
    pub fn tier(&self, text: &str) -> Option<&TierRecord> {
        self.tiers.iter().find(|tier| tier.id.is(text))
    }

    /// The JSON Schema of the document that this version writes.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

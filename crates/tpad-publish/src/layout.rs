//! Layouts: which tensors of a checkpoint form which expert.
//!
//! A layout is recognised by tensor names and shapes. `config.json` says what
//! they cannot: how the router scores, how many experts a token uses, and what
//! an ambiguous shape means.

mod error;

use tpad_manifest::{LayerKind, Scoring, Source, TensorRecord};

use crate::ShardTensor;

pub use error::LayoutError;

/// One block before its bytes have been read: a
/// [`BlockRecord`](tpad_manifest::BlockRecord) without its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftBlock {
    /// The tensors in the order in which the image holds them.
    pub tensors: Vec<TensorRecord>,
    /// The source expert; `None` for routers and dense tensors.
    pub source: Option<Source>,
}

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The layout of its experts, for people.
    pub family: &'static str,
    /// The MoE layers, ascending by number; all have equally many experts.
    pub layers: Vec<MoeLayer>,
    /// Every tensor that is no expert's and no router's, one block each, sorted
    /// by name.
    pub dense: Vec<DraftBlock>,
    /// How the router turns logits into weights.
    pub scoring: Scoring,
    /// Into how many groups of consecutive experts the router sorts them; 1
    /// where it knows no groups.
    pub groups: u32,
    /// How many of these groups a token uses.
    pub groups_per_token: u32,
    /// How many experts a token uses; `None` when `config.json` does not say.
    pub experts_per_token: Option<u32>,
    /// The experts' quantization scheme; `None` when they have none.
    pub quantization: Option<String>,
    /// What could not be recorded exactly, one sentence each.
    pub notes: Vec<String>,
}

/// One MoE layer.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeLayer {
    /// Its number. `mtp.layers.N` counts on after the model's own layers, and
    /// so do a decoder's after its encoder's.
    pub layer: u32,
    /// What it is for.
    pub kind: LayerKind,
    /// The experts; their place is their number in the checkpoint.
    pub experts: Vec<DraftBlock>,
    /// The experts' hidden and inner size.
    pub size: ExpertSize,
    /// The router's tensors in the order of its block.
    pub router: Vec<RouterTensor>,
}

/// The sizes that an expert's shapes give, unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertSize {
    /// The input's and output's size; `None` when the shapes do not tell.
    pub hidden: Option<u64>,
    /// The inner size; `None` when the shapes do not tell.
    pub intermediate: Option<u64>,
}

/// One tensor of a router.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterTensor {
    /// The whole tensor.
    pub record: TensorRecord,
    /// How many rows it has, one for each thing that the router may choose;
    /// `None` for a tensor that belongs to all rows alike.
    pub rows: Option<u32>,
    /// Whether its rows are byte ranges, so that a plan may cut it.
    pub cuttable: bool,
}

/// Recognises a checkpoint by its tensors' names and shapes.
///
/// # Errors
/// When no layout fits, when a layout's rules are broken (a missing expert,
/// projection, companion or router), or when `config` cannot decide what the
/// shapes leave open.
pub fn recognise(
    tensors: &[ShardTensor],
    _config: &serde_json::Value,
) -> Result<Checkpoint, LayoutError> {
    let sample = tensors.iter().take(8).map(|tensor| tensor.name.clone()).collect();
    Err(LayoutError::Unrecognised { tensors: tensors.len(), sample })
}

//! Layouts: which tensors of a checkpoint form which expert.
//!
//! A layout is recognised by tensor names and shapes. `config.json` says what
//! they cannot: how the router scores, how many experts a token uses, and what
//! an ambiguous shape means.

mod complete;
mod config;
mod dense;
mod error;
mod expert;
mod linear;
mod member;
mod name;
mod router;
mod routing;
mod site;

use std::collections::BTreeSet;

use tpad_manifest::{LayerKind, Part, Scoring, Source, TensorRecord};

use crate::ShardTensor;

pub use error::LayoutError;

use config::Config;
use linear::{Linear, Scheme};
use member::Member;
use name::Form;
pub(crate) use routing::without_counts;
use routing::{Groups, Signs};
use site::{Site, Survey};

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
    config: &serde_json::Value,
) -> Result<Checkpoint, LayoutError> {
    let config = Config::new(config);
    let mut survey = site::survey(tensors, config)?;
    let sites = std::mem::take(&mut survey.sites);
    complete::check(&sites)?;
    let function = routing::function(config)?;
    let mut layers: Vec<MoeLayer> = Vec::with_capacity(sites.len());
    let mut schemes = BTreeSet::new();
    for site in &sites {
        let experts = expert::build(site, config)?;
        schemes.extend(experts.schemes);
        let router = router::take(&mut survey, site, experts.blocks.len(), function, config)?;
        let layer = MoeLayer {
            layer: site.layer,
            kind: site.kind,
            experts: experts.blocks,
            size: experts.size,
            router,
        };
        if let Some(first) = layers.first()
            && first.experts.len() != layer.experts.len()
        {
            return Err(LayoutError::ExpertCount {
                layer: layer.layer,
                module: site.module.into(),
                experts: layer.experts.len(),
                other_layer: first.layer,
                other_experts: first.experts.len(),
            });
        }
        layers.push(layer);
    }
    if let Some(name) = survey.unknown.first() {
        return Err(LayoutError::UnknownPart { name: (*name).into() });
    }
    let mut notes = notes(&survey);
    let signs = signs(&sites, &layers);
    let experts = layers.first().map_or(0, |layer| layer.experts.len());
    let experts = u32::try_from(experts).unwrap_or(u32::MAX);
    let routing = routing::groups(config, experts)?;
    let scoring = routing::scoring(config, signs, &routing, &mut notes)?;
    let Groups { groups, groups_per_token, experts_per_token } = routing;
    let labels: Vec<String> = schemes.into_iter().filter_map(Scheme::label).collect();
    Ok(Checkpoint {
        family: sites.first().map_or("", family),
        layers,
        dense: dense::blocks(&survey, config),
        scoring,
        groups,
        groups_per_token,
        experts_per_token,
        quantization: (!labels.is_empty()).then(|| labels.join("+")),
        notes,
    })
}

/// Dense blocks of tensors among which there are no experts.
pub(crate) fn dense(tensors: &[ShardTensor], config: &serde_json::Value) -> Vec<DraftBlock> {
    let others = tensors.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    let survey = Survey { sites: Vec::new(), others, unknown: BTreeSet::new() };
    dense::blocks(&survey, Config::new(config))
}

/// A layout's name, for people.
fn family(site: &Site<'_>) -> &'static str {
    match site.form {
        Form::Each => "one tensor per expert",
        Form::Stacked => "experts stacked in one tensor",
        Form::Parallel => "experts stacked in parallel linear layers",
        Form::Dbrx => "experts stacked as DBRX does",
    }
}

/// What the tensors tell of the routers.
fn signs(sites: &[Site<'_>], layers: &[MoeLayer]) -> Signs {
    let mut routers = layers.iter().flat_map(|layer| &layer.router);
    let correction_bias = routers.any(|tensor| tensor.record.role.part == Part::CorrectionBias);
    let softmax_after = sites.iter().any(|site| {
        let biased = |linear: &Linear<'_>| linear.get(Member::Bias).is_some();
        let stacked = site.experts.get(&None).into_iter().flatten();
        match site.form {
            Form::Parallel => true,
            Form::Stacked => stacked.clone().any(biased),
            Form::Each | Form::Dbrx => false,
        }
    });
    Signs { correction_bias, softmax_after }
}

/// What the dense tensors tell that a manifest cannot hold.
fn notes(survey: &Survey<'_>) -> Vec<String> {
    let hashed = survey.others.keys().filter(|name| name.ends_with(".tid2eid")).count();
    let note = format!(
        "experts are chosen by token id in {hashed} of the layers; the tables (tid2eid) are dense \
         tensors"
    );
    if hashed > 0 { vec![note] } else { Vec::new() }
}

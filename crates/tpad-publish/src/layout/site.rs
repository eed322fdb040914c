//! Sites: the modules of a checkpoint that hold experts, and their tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tpad_manifest::LayerKind;

use super::config::Config;
use super::linear::{Linear, Piece};
use super::name::{ExpertTensor, Form, Reading, Stack, read};
use super::{LayoutError, ShardTensor};

/// How many names an error quotes.
const SAMPLE: usize = 12;

/// One module that holds experts.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) module: &'a str,
    pub(super) layer: u32,
    pub(super) kind: LayerKind,
    pub(super) form: Form,
    /// The linear maps of each expert; of all under `None` when one tensor
    /// holds all.
    pub(super) experts: BTreeMap<Option<u32>, Vec<Linear<'a>>>,
}

/// A checkpoint's tensors, sorted into sites and the rest.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    /// The sites, by layer.
    pub(super) sites: Vec<Site<'a>>,
    /// Every tensor that is no expert's, by name.
    pub(super) others: BTreeMap<&'a str, &'a ShardTensor>,
    /// Those among them that lie among experts and must turn out to be a
    /// router's.
    pub(super) unknown: BTreeSet<&'a str>,
}

/// A tensor and what its name says.
type Found<'a> = (ExpertTensor<'a>, &'a ShardTensor);

/// Sorts tensors by their names.
pub(super) fn survey<'a>(
    tensors: &'a [ShardTensor],
    config: Config<'_>,
) -> Result<Survey<'a>, LayoutError> {
    check(tensors)?;
    let mut others = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    let mut modules: BTreeMap<(Stack, u32, &str), Vec<Found<'a>>> = BTreeMap::new();
    for tensor in tensors {
        let name = &*tensor.name;
        match read(name, tensor.shape.len()) {
            Reading::Expert(found) => {
                let module = (found.stack, found.number, found.module);
                modules.entry(module).or_default().push((found, tensor));
                continue;
            }
            Reading::Unknown => unknown.insert(name),
            Reading::Other => false,
        };
        others.insert(name, tensor);
    }
    if modules.is_empty() {
        return Err(LayoutError::Unrecognised { tensors: tensors.len(), sample: sample(tensors) });
    }
    let numbering =
        Numbering::new(modules.keys().map(|(stack, number, _)| (*stack, *number)), config)?;
    let mut sites = Vec::with_capacity(modules.len());
    for ((stack, number, module), found) in modules {
        let (layer, kind) = numbering
            .layer(stack, number)
            .ok_or_else(|| LayoutError::LayerNumber { module: module.into() })?;
        sites.push(site(module, layer, kind, found)?);
    }
    sites.sort_by_key(|site: &Site<'_>| site.layer);
    for pair in sites.windows(2) {
        if pair[0].layer == pair[1].layer {
            return Err(LayoutError::TwoSets {
                layer: pair[0].layer,
                first: pair[0].module.into(),
                second: pair[1].module.into(),
            });
        }
    }
    // A stacked tensor's companions have fewer axes than it and no `experts`
    // in their names: they must not pass as dense.
    let stems = sites.iter().flat_map(|site| site.experts.get(&None)).flatten();
    for linear in stems {
        for (name, _) in others.range(linear.stem..) {
            let Some(suffix) = name.strip_prefix(linear.stem) else { break };
            if suffix.starts_with(['.', '_']) {
                unknown.insert(name);
            }
        }
    }
    Ok(Survey { sites, others, unknown })
}

/// Refuses equal names, and sizes or places that cannot be.
fn check(tensors: &[ShardTensor]) -> Result<(), LayoutError> {
    let mut seen: HashMap<&str, &ShardTensor> = HashMap::with_capacity(tensors.len());
    for tensor in tensors {
        if let Some(first) = seen.insert(&tensor.name, tensor) {
            return Err(LayoutError::Duplicate {
                name: tensor.name.clone(),
                first: first.object.clone(),
                second: tensor.object.clone(),
            });
        }
        let expected = tensor
            .dtype
            .tensor_bytes(&tensor.shape)
            .map_err(|source| LayoutError::Size { name: tensor.name.clone(), source })?;
        if expected != tensor.bytes || tensor.offset.checked_add(tensor.bytes).is_none() {
            return Err(LayoutError::Extent {
                name: tensor.name.clone(),
                offset: tensor.offset,
                bytes: tensor.bytes,
                expected,
            });
        }
    }
    Ok(())
}

/// Names that differ in more than their numbers, experts' first.
fn sample(tensors: &[ShardTensor]) -> Vec<String> {
    let mut kinds: BTreeSet<(bool, String)> = BTreeSet::new();
    for tensor in tensors {
        let mut kind = String::new();
        for c in tensor.name.chars().take(160) {
            match (c.is_ascii_digit(), kind.ends_with('N')) {
                (true, true) => {}
                (true, false) => kind.push('N'),
                (false, _) => kind.push(c),
            }
        }
        kinds.insert((!kind.contains("expert"), kind));
        if kinds.len() > SAMPLE {
            kinds.pop_last();
        }
    }
    kinds.into_iter().map(|(_, kind)| kind).collect()
}

fn site<'a>(
    module: &'a str,
    layer: u32,
    kind: LayerKind,
    tensors: Vec<Found<'a>>,
) -> Result<Site<'a>, LayoutError> {
    let form = tensors.first().map_or(Form::Each, |(found, _)| found.form);
    let mut experts: BTreeMap<Option<u32>, Vec<Linear<'a>>> = BTreeMap::new();
    let first = tensors.first().map(|(_, tensor)| tensor.name.to_string()).unwrap_or_default();
    for (found, tensor) in tensors {
        if found.form != form {
            return Err(LayoutError::TwoTensors { first, second: tensor.name.to_string() });
        }
        let linears = experts.entry(found.expert).or_default();
        let piece =
            Piece { member: found.member, tensor, shape: tensor.shape.clone(), sliced: false };
        match linears.iter_mut().find(|linear| linear.projection == found.projection) {
            Some(linear) => {
                let rival = linear.pieces.iter().find(|other| {
                    let weights = other.member.is_weight() && piece.member.is_weight();
                    linear.stem != found.stem || other.member == piece.member || weights
                });
                if let Some(rival) = rival {
                    return Err(LayoutError::TwoTensors {
                        first: rival.tensor.name.to_string(),
                        second: tensor.name.to_string(),
                    });
                }
                linear.pieces.push(piece);
            }
            None => linears.push(Linear {
                stem: found.stem,
                projection: found.projection,
                form,
                pieces: vec![piece],
            }),
        }
    }
    for linears in experts.values_mut() {
        linears.sort_by_key(|linear| super::expert::place(linear.projection));
        for linear in linears {
            linear.pieces.sort_by_key(|piece| (piece.member.part(), piece.member));
        }
    }
    let site = Site { module, layer, kind, form, experts };
    site.check_numbers()?;
    Ok(site)
}

impl Site<'_> {
    fn check_numbers(&self) -> Result<(), LayoutError> {
        let Some(Some(highest)) = self.experts.last_key_value().map(|(expert, _)| *expert) else {
            return Ok(());
        };
        let gap = (0..=highest).zip(self.experts.keys()).find(|(n, key)| Some(*n) != **key);
        match gap {
            Some((missing, _)) => Err(LayoutError::ExpertGap {
                layer: self.layer,
                module: self.module.into(),
                missing,
                highest,
            }),
            None => Ok(()),
        }
    }
}

/// Gives every layer of every stack a number of its own.
struct Numbering {
    /// How many layers the model itself has.
    own: Option<u32>,
    /// The number of the first MTP layer.
    mtp: Option<u32>,
    /// The number of the decoder's first layer.
    decoder: Option<u32>,
}

impl Numbering {
    fn new(
        sites: impl Iterator<Item = (Stack, u32)>,
        config: Config<'_>,
    ) -> Result<Self, LayoutError> {
        let mut highest: BTreeMap<Stack, u32> = BTreeMap::new();
        for (stack, number) in sites {
            let highest = highest.entry(stack).or_default();
            *highest = number.max(*highest);
        }
        let after = |stack| highest.get(&stack).map_or(Some(0), |number| number.checked_add(1));
        let own = config.count(&["num_hidden_layers", "n_layers", "num_layers"])?;
        let encoder = config.count(&["encoder_layers", "num_layers"])?.unwrap_or(0);
        let decoder = match highest.get(&Stack::Encoder) {
            Some(_) => after(Stack::Encoder).map(|after| after.max(encoder)),
            None => Some(0),
        };
        Ok(Self { own, mtp: own.map_or_else(|| after(Stack::Own), Some), decoder })
    }

    fn layer(&self, stack: Stack, number: u32) -> Option<(u32, LayerKind)> {
        match stack {
            Stack::Own if self.own.is_some_and(|own| number >= own) => {
                Some((number, LayerKind::Mtp))
            }
            Stack::Own | Stack::Encoder => Some((number, LayerKind::Moe)),
            Stack::Decoder => Some((self.decoder?.checked_add(number)?, LayerKind::Moe)),
            Stack::Mtp => Some((self.mtp?.checked_add(number)?, LayerKind::Mtp)),
        }
    }
}

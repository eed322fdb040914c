//! Where a tier's experts came from, layer by layer.

use crate::Source;

/// The source experts and router columns of a tier, at layers that agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSources {
    /// The layers, ascending.
    pub layers: Vec<u32>,
    /// By group and expert.
    pub groups: Vec<Vec<Source>>,
}

/// Puts layers with equal sources together: a plan seldom treats layers
/// differently, so one entry usually stands for all.
#[must_use]
pub fn fold_sources(
    layers: impl IntoIterator<Item = (u32, Vec<Vec<Source>>)>,
) -> Vec<LayerSources> {
    let mut folded: Vec<LayerSources> = Vec::new();
    for (layer, groups) in layers {
        match folded.iter_mut().find(|known| known.groups == groups) {
            Some(known) => known.layers.push(layer),
            None => folded.push(LayerSources { layers: vec![layer], groups }),
        }
    }
    folded
}

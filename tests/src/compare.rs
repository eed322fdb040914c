//! Holding what a daemon sent against what the checkpoint holds.

use std::collections::BTreeMap;
use std::path::Path;

use tpad_client::{Client, FetchDense, FetchExperts, FetchRouters, FetchedBlock};
use tpad_manifest::{BlockKey, ExpertKey};

use crate::reference::{Reference, Tensors};

/// Tensors start on multiples of this in an image.
const IMAGE_ALIGN_BYTES: usize = 256;

/// One tier of an expected mapping: the source expert of each group's experts.
#[derive(Clone, Debug)]
pub struct Tier {
    /// The id, as text.
    pub id: &'static str,
    /// Source experts by group, in the order of the keys.
    pub groups: Vec<Vec<u32>>,
}

/// How many blocks were compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Experts, one for each layer.
    pub experts: usize,
    /// Routers, one for each tier and layer.
    pub routers: usize,
    /// Dense tensors.
    pub dense: usize,
}

/// Fetches everything of a model and compares it with its original.
///
/// # Panics
/// When anything differs, is missing or is there twice.
pub async fn whole_model(
    client: &Client,
    model: &str,
    original: &Path,
    tiers: &[Tier],
) -> Compared {
    let reference = Reference::read(original);
    Compared {
        experts: experts(client, model, &reference, tiers).await,
        routers: routers(client, model, &reference, tiers).await,
        dense: dense(client, model, &reference).await,
    }
}

/// Fetches every small file of a model and compares it with the original.
///
/// # Panics
/// When one differs, or `config.json` is not among them.
pub async fn files(client: &Client, model: &str, original: &Path) -> usize {
    let description = client.describe_model(model).await.expect("the model is served");
    assert!(description.files.iter().any(|name| name == "config.json"), "{:?}", description.files);
    for name in &description.files {
        let file = client.fetch_file(model, name).await.expect("a file that is listed");
        let expected = std::fs::read(original.join(name)).expect("a file of the original");
        assert!(file.bytes == expected, "{name} of {model} differs");
    }
    description.files.len()
}

async fn experts(client: &Client, model: &str, reference: &Reference, tiers: &[Tier]) -> usize {
    let request = FetchExperts {
        model: model.to_owned(),
        tiers: tiers.iter().map(|tier| tier.id.to_owned()).collect(),
        ..FetchExperts::default()
    };
    let mut fetched = collect(client.fetch_experts(request).await).await;
    let mut compared = 0;
    for (layer, source) in reference.experts.keys() {
        // A source expert that the plan leaves out is nobody's.
        let Some((key, column)) = key_of(tiers, *source) else { continue };
        let block = BlockKey::Expert { key, layer: *layer };
        let found = fetched.remove(&block).unwrap_or_else(|| unreachable!("{block} did not come"));
        assert_eq!(found.source.map(|source| source.expert), Some(*source), "{block}");
        assert_eq!(found.source.map(|source| source.column), Some(column), "{block}");
        exact(&found, &reference.experts[&(*layer, *source)]);
        compared += 1;
    }
    assert!(fetched.is_empty(), "unasked: {:?}", fetched.keys());
    compared
}

async fn routers(client: &Client, model: &str, reference: &Reference, tiers: &[Tier]) -> usize {
    let request = FetchRouters {
        model: model.to_owned(),
        tiers: tiers.iter().map(|tier| tier.id.to_owned()).collect(),
        ..FetchRouters::default()
    };
    let mut fetched = collect(client.fetch_routers(request).await).await;
    let mut compared = 0;
    for (layer, router) in &reference.routers {
        for tier in tiers {
            let block = BlockKey::Router { tier: tier.id.parse().expect("an id"), layer: *layer };
            let found =
                fetched.remove(&block).unwrap_or_else(|| unreachable!("{block} did not come"));
            // The rows that score the tier's experts, in the order of their keys.
            let rows = tier.groups.concat();
            let cut = router.iter().map(|(name, tensor)| (name.clone(), tensor.select(&rows)));
            exact(&found, &cut.collect());
            compared += 1;
        }
    }
    assert!(fetched.is_empty(), "unasked: {:?}", fetched.keys());
    compared
}

async fn dense(client: &Client, model: &str, reference: &Reference) -> usize {
    let request = FetchDense { model: model.to_owned(), names: Vec::new() };
    let mut fetched = collect(client.fetch_dense(request).await).await;
    for (name, tensor) in &reference.dense {
        let block = BlockKey::Dense { name: name.as_str().into() };
        let found = fetched.remove(&block).unwrap_or_else(|| unreachable!("{block} did not come"));
        exact(&found, &Tensors::from([(name.clone(), tensor.clone())]));
    }
    assert!(fetched.is_empty(), "unasked: {:?}", fetched.keys());
    reference.dense.len()
}

/// Every block of a stream, by its key.
///
/// # Panics
/// When the stream fails, or a block comes twice.
pub async fn collect(
    stream: Result<tpad_client::BlockStream, tpad_client::Error>,
) -> BTreeMap<BlockKey, FetchedBlock> {
    let mut stream = stream.expect("the fetch is accepted");
    let announced = stream.start().blocks;
    let mut blocks = BTreeMap::new();
    while let Some(block) = stream.next().await {
        let block = block.expect("the block comes");
        let twice = blocks.insert(block.key.clone(), block);
        assert!(twice.is_none(), "{:?} came twice", twice.map(|block| block.key));
    }
    assert_eq!(blocks.len() as u64, announced);
    blocks
}

/// Compares a block with its tensors, and its digest with that of the image
/// which these make.
///
/// # Panics
/// When anything differs.
pub fn exact(block: &FetchedBlock, expected: &Tensors) {
    let key = &block.key;
    let names: Vec<&str> = block.tensors.iter().map(|tensor| &*tensor.name).collect();
    assert_eq!(names.len(), expected.len(), "{key}: {names:?} where {:?}", expected.keys());
    let mut image = Vec::new();
    for tensor in &block.tensors {
        let (name, place) = (&tensor.name, format!("{} of {key}", tensor.name));
        let original = expected.get(&**name);
        let original = original.unwrap_or_else(|| unreachable!("{place} is not in the original"));
        assert_eq!(tensor.dtype.to_string(), original.dtype, "{place}");
        assert_eq!(tensor.shape, original.shape, "{place}");
        assert!(tensor.bytes == original.bytes, "{place} differs");
        image.resize(image.len().next_multiple_of(IMAGE_ALIGN_BYTES), 0);
        image.extend_from_slice(&original.bytes);
    }
    image.resize(block.image.len(), 0);
    assert!(block.image == image, "the image of {key} is not its tensors, aligned and padded");
    assert_eq!(block.id.to_string(), blake3::hash(&image).to_hex().as_str(), "{key}");
}

/// The key of a source expert and its router column.
fn key_of(tiers: &[Tier], source: u32) -> Option<(ExpertKey, u32)> {
    for tier in tiers {
        for (group, experts) in (0..).zip(&tier.groups) {
            for (expert, candidate) in (0..).zip(experts) {
                if *candidate == source {
                    let tier = tier.id.parse().expect("an id");
                    return Some((ExpertKey { tier, group, expert }, source));
                }
            }
        }
    }
    None
}

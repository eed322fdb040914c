//! One token's way: mask, routers, logits, choices, experts.

use std::collections::HashMap;
use std::error::Error;

use tpad_client::{
    Client, FetchExperts, FetchRouters, FetchedBlock, GetMask, Router, Tensor, TierLogits,
};
use tpad_manifest::{BlockKey, ExpertKey, Manifest, Part, RoutingMask, TierSet};

/// A tier's logits and, where its router has one, correction bias.
struct Scored {
    logits: Vec<f32>,
    correction_bias: Option<Vec<f32>>,
}

/// Routes a token whose hidden state at `layer` is what `hidden` gives for the
/// model's width, and fetches the experts it uses: each with its weight and the
/// size of its image in bytes, the best first.
pub(crate) async fn route(
    client: &Client,
    model: &str,
    layer: u32,
    hidden: impl Fn(usize) -> Vec<f32>,
) -> Result<Vec<(ExpertKey, f32, usize)>, Box<dyn Error>> {
    // Once for each revision: how the family scores, and what may be picked.
    let description = client.describe_model(model).await?;
    let manifest = Manifest::parse(description.manifest_json.as_bytes())?.manifest;
    let router = Router::new(manifest.scoring)?;
    let mut request = GetMask::of(model, TierSet::Default);
    // The tiers' own routers need no columns of the checkpoint's.
    request.omit_sources = true;
    let fetched = client.routing_mask(request).await?;
    let mask = fetched.mask.ok_or("an etag was not sent, so there is a mask")?;
    if fetched.revision != manifest.revision {
        return Err("the model was reloaded in between: begin again".into());
    }

    // For each token.
    let scored = score(client, model, layer, &mask, hidden).await?;
    let inputs = scored.iter().map(|tier| TierLogits {
        correction_bias: tier.correction_bias.as_deref(),
        ..TierLogits::of(&tier.logits)
    });
    let chosen = router.route(&mask, &inputs.collect::<Vec<_>>())?;
    let keys = chosen.iter().map(|choice| choice.key(&mask)).collect::<Result<Vec<_>, _>>()?;
    let mut bytes = HashMap::new();
    let layers = vec![layer];
    let request =
        FetchExperts { model: model.to_owned(), keys: keys.clone(), layers, ..Default::default() };
    let mut blocks = client.fetch_experts(request).await?;
    while let Some(block) = blocks.next().await {
        let block = block?;
        if let BlockKey::Expert { key, .. } = block.key {
            bytes.insert(key, block.image.len());
        }
    }
    let sized = keys.into_iter().zip(chosen).map(|(key, choice)| {
        let bytes = bytes.get(&key).copied().unwrap_or_default();
        (key, choice.weight, bytes)
    });
    Ok(sized.collect())
}

/// The logits of the mask's tiers, in its order.
async fn score(
    client: &Client,
    model: &str,
    layer: u32,
    mask: &RoutingMask,
    hidden: impl Fn(usize) -> Vec<f32>,
) -> Result<Vec<Scored>, Box<dyn Error>> {
    let tiers = mask.tiers.iter().map(|tier| tier.tier.clone()).collect();
    let request = FetchRouters { model: model.to_owned(), tiers, layers: vec![layer] };
    let mut blocks = client.fetch_routers(request).await?;
    let mut routers = HashMap::new();
    while let Some(block) = blocks.next().await {
        let block = block?;
        if let BlockKey::Router { tier, .. } = &block.key {
            routers.insert(tier.to_string(), block);
        }
    }
    let scored = mask.tiers.iter().map(|tier| {
        let router = routers.get(&tier.tier).ok_or("the tier has no router at this layer")?;
        logits(router, &hidden)
    });
    scored.collect()
}

/// The router's weight times the hidden state, and its bias.
fn logits(
    router: &FetchedBlock,
    hidden: impl Fn(usize) -> Vec<f32>,
) -> Result<Scored, Box<dyn Error>> {
    let part = |part| router.tensors.iter().find(|tensor| tensor.role.part == part);
    let weight = part(Part::Weight).ok_or("the router has no weight")?;
    let [_, width] = *weight.shape else { return Err("the router's weight is no matrix".into()) };
    let width = usize::try_from(width)?;
    let hidden = hidden(width);
    let rows = floats(weight)?;
    let rows = rows.chunks_exact(width);
    let mut logits: Vec<f32> =
        rows.map(|row| row.iter().zip(&hidden).map(|(weight, x)| weight * x).sum()).collect();
    if let Some(bias) = part(Part::Bias) {
        logits.iter_mut().zip(floats(bias)?).for_each(|(logit, bias)| *logit += bias);
    }
    let correction_bias = part(Part::CorrectionBias).map(floats).transpose()?;
    Ok(Scored { logits, correction_bias })
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>, Box<dyn Error>> {
    match &*tensor.dtype.to_string() {
        "F32" => Ok(tensor.bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()),
        "BF16" => {
            let halves = tensor.bytes.as_chunks().0.iter().copied().map(u16::from_le_bytes);
            Ok(halves.map(|half| f32::from_bits(u32::from(half) << 16)).collect())
        }
        other => Err(format!("this example reads no routers of {other}").into()),
    }
}

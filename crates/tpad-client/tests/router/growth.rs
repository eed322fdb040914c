//! Growth changes nobody: what a token gets under an old TierSet is, bit for
//! bit, what it got before the model grew by a tier.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tpad_client::{Router, TierLogits, Ties};
use tpad_manifest::{Catalog, LayerSources, Manifest, RoutingMask, Source, TierSet};

use super::dice::{Dice, experts};

const LAYER: u32 = 3;

fn tier(dice: &mut Dice, id: &str) -> Value {
    let groups: Vec<Value> =
        (0..dice.roll(1, 3)).map(|_| json!({ "experts": dice.roll(1, 12) })).collect();
    let count = |group: &Value| group["experts"].as_u64().expect("a count");
    let total: u64 = groups.iter().map(count).sum();
    let most = u32::try_from(total).expect("few");
    let k_group = dice.roll(1, u32::try_from(groups.len()).expect("few"));
    let routing = json!({
        "k_tier": dice.roll(1, 3), "k_group": k_group, "k_expert": dice.roll(1, most),
    });
    json!({ "id": id, "parameter_budget": 1_000_000, "groups": groups, "routing": routing })
}

/// The mask as a daemon computes it from the document, with sources: `first`
/// is the whole router's first column of each tier.
fn mask(document: &Value, set: &TierSet, first: &BTreeMap<String, u32>) -> RoutingMask {
    let loaded = Manifest::parse(document.to_string().as_bytes()).expect("it is a manifest");
    let catalog = Catalog::new(loaded, BTreeMap::new(), None).expect("it has no index");
    let mut mask = RoutingMask::of(&catalog, set, &BTreeMap::new()).expect("there are tiers");
    for tier in &mut mask.tiers {
        let mut columns = first[&tier.tier]..;
        let groups = tier.groups.iter().map(|group| {
            let taken = columns.by_ref().take(group.iter().count());
            taken.map(|column| Source { expert: column, column }).collect()
        });
        let groups = groups.collect();
        tier.sources = vec![LayerSources { layers: vec![LAYER], groups }];
    }
    mask
}

/// What a worker does with a mask and the whole router's logits and biases.
fn route(
    router: Router,
    mask: &RoutingMask,
    logits: &[f32],
    biases: Option<&[f32]>,
) -> Vec<(String, u32, u32, u32)> {
    let gather = |whole: &[f32]| -> Vec<Vec<f32>> {
        let tiers = mask.tiers.iter();
        tiers.map(|tier| TierLogits::gather(tier, LAYER, whole).expect("it has sources")).collect()
    };
    let (logits, biases) = (gather(logits), biases.map(gather));
    let bias = |at: usize| biases.as_ref().map(|biases| &*biases[at]);
    let tiers = logits.iter().enumerate();
    let tiers: Vec<TierLogits<'_>> = tiers
        .map(|(at, logits)| TierLogits { correction_bias: bias(at), ..TierLogits::of(logits) })
        .collect();
    let chosen = router.route(mask, &tiers).expect("something is allowed");
    let named = chosen.iter().map(|one| {
        let key = one.key(mask).expect("its tier is in the mask");
        (key.tier.to_string(), key.group, key.expert, one.weight.to_bits())
    });
    named.collect()
}

#[test]
fn an_old_tier_set_routes_a_thousand_tokens_the_same_bits_after_growth() {
    let mut dice = Dice(41);
    let mut would_have_won = 0;
    for case in 0..1000 {
        let ids: Vec<String> = (0..dice.roll(1, 3)).map(|n| format!("tier_{n}")).collect();
        let tiers: Vec<Value> = ids.iter().map(|id| tier(&mut dice, id)).collect();
        let before = json!({
            "format_version": "1.1", "revision": 1, "default_tier_set": ids, "tiers": tiers,
        });
        // The new tier comes last; its routing, groups and k values are its own.
        let mut after = before.clone();
        after["revision"] = json!(2);
        let added = tier(&mut dice, "tier_new");
        after["tiers"].as_array_mut().expect("a list").push(added);

        let mut first = BTreeMap::new();
        let mut columns = 0;
        for tier in after["tiers"].as_array().expect("a list") {
            first.insert(tier["id"].as_str().expect("a name").to_owned(), columns);
            let groups = tier["groups"].as_array().expect("a list").iter();
            let experts: u64 =
                groups.map(|group| group["experts"].as_u64().expect("a count")).sum();
            columns += u32::try_from(experts).expect("few");
        }
        // The grown router's new rows would win everywhere.
        let old = usize::try_from(first["tier_new"]).expect("few");
        let mut grown = dice.floats(old, 6.0);
        grown.resize(usize::try_from(columns).expect("few"), 50.0);
        let biases = dice.floats(grown.len(), 0.2);

        let scoring = dice.scoring();
        let ties = if dice.one_in(2) { Ties::First } else { Ties::Seeded(case) };
        let router = Router::new(scoring).expect("it can be computed").with_ties(ties);
        let biases = scoring.correction_bias.then_some(&*biases);
        for set in [TierSet::Default, TierSet::Tiers(ids.clone())] {
            let was = mask(&before, &set, &first);
            let is = mask(&after, &set, &first);
            let count = was.tiers.iter().map(experts).sum::<usize>();
            assert_eq!((count, &was.tiers, was.k_tier), (old, &is.tiers, is.k_tier), "case {case}");
            let expected = route(router, &was, &grown[..old], biases.map(|all| &all[..old]));
            assert_eq!(route(router, &is, &grown, biases), expected, "case {case}");
        }
        // The comparison means something: who asks for the tier gets it.
        let all = mask(&after, &TierSet::UpTo("tier_new".to_owned()), &first);
        let chosen = route(router, &all, &grown, biases);
        would_have_won += usize::from(chosen.iter().any(|(tier, ..)| tier == "tier_new"));
    }
    assert!(would_have_won > 900, "the new tier won {would_have_won} of 1000");
}

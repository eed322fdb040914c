//! Masks against a reference that reads the documents by itself.
//!
//! The reference shares no code with the crate: it walks the JSON with naive
//! loops, as the design's words say it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tpad_manifest::{
    Catalog, CostClass, ExpertBits, LayerGroup, LayerMask, LayerSources, LayerTier, Manifest,
    MaskError, MaskReason, MaskedTier, ResidentMask, RoutingMask, SetOrigin, Source, TierId,
    TierMask, TierSet,
};

const CASES: u64 = 1000;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    /// Some of these, in any order.
    fn some<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        let mut left = of.to_vec();
        let mut taken = Vec::new();
        while !left.is_empty() && !self.one_in(4) {
            let at = usize::try_from(self.roll(left.len() as u64)).expect("small");
            taken.push(left.remove(at));
        }
        taken
    }
}

/// A document, the configuration's sets, a request and where every block is.
struct Case {
    document: Value,
    configured: BTreeMap<String, Vec<Value>>,
    set: TierSet,
    level: usize,
    layers: Vec<u32>,
    /// By layer, tier, group and expert; what is not there is unavailable.
    blocks: BTreeMap<(u32, String, usize, u64), usize>,
}

const LEVELS: [&str; 5] = ["hbm", "dram", "nvme", "object_store", "unavailable"];

fn text(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

fn case(seed: u64) -> Case {
    let mut dice = Dice(seed);
    let ids: Vec<Value> = (0..dice.roll(7))
        .map(|n| if dice.one_in(3) { json!(n + 40) } else { json!(format!("tier_{n}")) })
        .collect();
    let tiers: Vec<Value> = ids.iter().map(|id| tier(id, &mut dice)).collect();
    let mut document = json!({
        "format_version": "1.1", "revision": dice.roll(9), "tiers": tiers,
    });
    if !dice.one_in(3) {
        document["default_tier_set"] = json!(dice.some(&ids));
    }
    let names = ["small", "tier_0", "40", "both"];
    let mut configured = BTreeMap::new();
    for name in names {
        if dice.one_in(2) {
            document["tier_sets"][name] = json!(dice.some(&ids));
        }
        if dice.one_in(3) {
            let mut set = dice.some(&ids);
            set.extend(dice.one_in(2).then(|| json!("nowhere")));
            configured.insert(name.to_owned(), set);
        }
    }
    let any: Vec<String> =
        ids.iter().map(text).chain(["nowhere".into(), "tier 9".into(), "007".into()]).collect();
    let set = match dice.roll(5) {
        0 => TierSet::Default,
        1 => TierSet::Named(names[usize::try_from(dice.roll(4)).expect("small")].into()),
        2 => {
            TierSet::UpTo(any[usize::try_from(dice.roll(any.len() as u64)).expect("small")].clone())
        }
        _ => {
            let mut tiers = dice.some(&any);
            tiers.extend(dice.some(&tiers.clone()));
            TierSet::Tiers(tiers)
        }
    };
    let layers: Vec<u32> = (0..9).filter(|_| dice.one_in(3)).collect();
    let mut blocks = BTreeMap::new();
    for layer in &layers {
        for tier in document["tiers"].as_array().expect("a list") {
            let absent = dice.one_in(6);
            for (group, record) in tier["groups"].as_array().expect("a list").iter().enumerate() {
                for expert in 0..record["experts"].as_u64().expect("a count") {
                    let place = usize::try_from(dice.roll(4)).expect("small");
                    if !absent && !dice.one_in(20) {
                        blocks.insert((*layer, text(&tier["id"]), group, expert), place);
                    }
                }
            }
        }
    }
    let level = usize::try_from(dice.roll(4)).expect("small");
    Case { document, configured, set, level, layers, blocks }
}

fn tier(id: &Value, dice: &mut Dice) -> Value {
    let groups: Vec<u64> = (0..=dice.roll(3)).map(|_| dice.roll(20) + 1).collect();
    let experts: u64 = groups.iter().sum();
    let mut tier = json!({
        "id": id,
        "parameter_budget": 1,
        "groups": groups.iter().map(|experts| json!({"experts": experts})).collect::<Vec<_>>(),
    });
    if !dice.one_in(4) {
        tier["routing"] = json!({
            "k_tier": dice.roll(5) + 1,
            "k_group": dice.roll(groups.len() as u64) + 1,
            "k_expert": dice.roll(experts) + 1,
        });
    }
    if dice.one_in(6) {
        tier["compatibility"] = json!({"requires": ["warp"]});
    }
    tier
}

/// The mask as the design's words have it; an error's word if there is none.
fn reference(case: &Case) -> Result<Value, &'static str> {
    let tiers = case.document["tiers"].as_array().expect("a list");
    let ids = |set: &[Value]| set.iter().map(text).collect::<Vec<String>>();
    let listed = |value: &Value| ids(value.as_array().expect("a list"));
    let (origin, wanted) = match &case.set {
        TierSet::Default if case.document["default_tier_set"].is_null() => {
            ("default", tiers.iter().map(|tier| text(&tier["id"])).collect())
        }
        TierSet::Default => ("default", listed(&case.document["default_tier_set"])),
        TierSet::Tiers(tiers) => ("tiers", tiers.clone()),
        TierSet::Named(name) => {
            let known = &case.document["tier_sets"][name];
            match case.configured.get(name) {
                Some(set) => ("configuration", ids(set)),
                None if known.is_array() => ("manifest", listed(known)),
                None => return Err("unknown set"),
            }
        }
        TierSet::UpTo(last) => {
            let mut before = Vec::new();
            for tier in tiers {
                before.push(text(&tier["id"]));
                if text(&tier["id"]) == *last {
                    break;
                }
            }
            let found = before.last() == Some(last);
            ("up_to", if found { before } else { vec![last.clone()] })
        }
    };
    let mut active = Vec::new();
    let mut masked = Vec::new();
    for tier in tiers {
        let id = text(&tier["id"]);
        let skipped = !tier["compatibility"]["requires"].is_null();
        if !wanted.contains(&id) {
            masked.push(json!({"tier": id, "reason": "not_in_tier_set"}));
        } else if skipped {
            masked.push(json!({"tier": id, "reason": "skipped_tier"}));
        } else {
            active.push(tier);
        }
    }
    let mut unknown = Vec::new();
    for id in &wanted {
        let known = tiers.iter().any(|tier| text(&tier["id"]) == *id);
        if !known && !unknown.contains(id) {
            unknown.push(id.clone());
            masked.push(json!({"tier": id, "reason": "unknown_tier"}));
        }
    }
    if active.is_empty() {
        return Err("empty");
    }
    let k = |tier: &Value, name: &str| tier["routing"][name].as_u64().unwrap_or(1);
    let mut k_tier = 0;
    for tier in &active {
        k_tier = k_tier.max(k(tier, "k_tier"));
    }
    let mut shown = Vec::new();
    for tier in &active {
        let mut groups = Vec::new();
        for (n, group) in tier["groups"].as_array().expect("a list").iter().enumerate() {
            let experts: Vec<bool> =
                (0..group["experts"].as_u64().expect("a count")).map(|_| true).collect();
            groups.push(json!({"id": n, "experts": experts}));
        }
        shown.push(json!({
            "id": text(&tier["id"]),
            "k_group": k(tier, "k_group"),
            "k_expert": k(tier, "k_expert"),
            "groups": groups,
        }));
    }
    Ok(json!({
        "revision": case.document["revision"],
        "origin": origin,
        "k_tier": k_tier.min(active.len() as u64),
        "tiers": shown,
        "masked": masked,
    }))
}

/// The same with what is resident.
fn resident_reference(case: &Case) -> Result<Value, &'static str> {
    let mut mask = reference(case)?;
    let active = mask["tiers"].as_array().expect("a list").clone();
    let mut layers = Vec::new();
    let mut any = false;
    let mut missing: BTreeMap<String, u64> = BTreeMap::new();
    for layer in &case.layers {
        for tier in &active {
            let id = text(&tier["id"]);
            for (group, record) in tier["groups"].as_array().expect("a list").iter().enumerate() {
                let mut experts = Vec::new();
                let mut costs = Vec::new();
                for expert in 0..record["experts"].as_array().expect("a list").len() as u64 {
                    let place = case.blocks.get(&(*layer, id.clone(), group, expert));
                    let place = place.copied().unwrap_or(4);
                    if place == 4 {
                        *missing.entry(id.clone()).or_default() += 1;
                    }
                    any |= place <= case.level;
                    experts.push(place <= case.level);
                    costs.push(LEVELS[place]);
                }
                layers.push(json!([layer, id, group, experts, costs]));
            }
        }
    }
    if !any {
        return Err("empty");
    }
    let masked = mask["masked"].as_array_mut().expect("a list");
    for tier in &active {
        if missing.contains_key(&text(&tier["id"])) {
            masked.push(json!({"tier": tier["id"], "reason": "unavailable_block"}));
        }
    }
    mask["resident"] = json!(layers);
    Ok(mask)
}

/// What the crate says, in the reference's words.
fn shown(mask: Result<RoutingMask, MaskError>) -> Result<Value, &'static str> {
    let mask = mask.map_err(|error| match error {
        MaskError::UnknownSet { .. } => "unknown set",
        MaskError::Empty { .. } => "empty",
        MaskError::TooLarge { .. } => "too large",
    })?;
    let tiers: Vec<Value> = mask
        .tiers
        .iter()
        .map(|tier| {
            let groups: Vec<Value> = tier
                .groups
                .iter()
                .enumerate()
                .map(|(n, bits)| json!({"id": n, "experts": bits.iter().collect::<Vec<_>>()}))
                .collect();
            json!({
                "id": tier.tier, "k_group": tier.k_group, "k_expert": tier.k_expert, "groups": groups,
            })
        })
        .collect();
    let masked: Vec<Value> = mask
        .masked
        .iter()
        .map(|masked| json!({"tier": masked.tier, "reason": masked.reason.as_str()}))
        .collect();
    let origin = match mask.origin {
        SetOrigin::Default => "default",
        SetOrigin::Tiers => "tiers",
        SetOrigin::UpTo(_) => "up_to",
        SetOrigin::Configuration(_) => "configuration",
        SetOrigin::Manifest(_) => "manifest",
    };
    let mut shown = json!({
        "revision": mask.revision,
        "origin": origin,
        "k_tier": mask.k_tier,
        "tiers": tiers,
        "masked": masked,
    });
    if let Some(resident) = mask.resident {
        let mut layers = Vec::new();
        for layer in resident.layers {
            for (tier, id) in layer.tiers.into_iter().zip(&mask.tiers) {
                for (n, group) in tier.groups.into_iter().enumerate() {
                    let costs: Vec<&str> = group.costs.iter().map(|cost| cost.as_str()).collect();
                    let experts: Vec<bool> = group.experts.iter().collect();
                    layers.push(json!([layer.layer, id.tier, n, experts, costs]));
                }
            }
        }
        shown["resident"] = json!(layers);
    }
    Ok(shown)
}

fn computed(case: &Case) -> Result<RoutingMask, MaskError> {
    let document = case.document.to_string();
    let loaded = Manifest::parse(document.as_bytes()).expect(&document);
    let catalog = Catalog::new(loaded, BTreeMap::new(), None).expect("it has no indexes");
    let id = |id: &Value| match id.as_u64() {
        Some(number) => TierId::Number(number),
        None => TierId::Name(text(id).into()),
    };
    let configured: BTreeMap<String, Vec<TierId>> = case
        .configured
        .iter()
        .map(|(name, set)| (name.clone(), set.iter().map(id).collect()))
        .collect();
    RoutingMask::of(&catalog, &case.set, &configured)
}

fn with_resident(mask: RoutingMask, case: &Case) -> Result<RoutingMask, MaskError> {
    let classes = [
        CostClass::Hbm,
        CostClass::Dram,
        CostClass::Nvme,
        CostClass::ObjectStore,
        CostClass::Unavailable,
    ];
    let level = classes[case.level];
    let layer = |layer: &u32| LayerMask {
        layer: *layer,
        tiers: mask
            .tiers
            .iter()
            .map(|tier| LayerTier {
                groups: tier
                    .groups
                    .iter()
                    .enumerate()
                    .map(|(group, bits)| {
                        let costs = (0..bits.experts()).map(|expert| {
                            let key = (*layer, tier.tier.clone(), group, u64::from(expert));
                            classes[case.blocks.get(&key).copied().unwrap_or(4)]
                        });
                        LayerGroup::of(level, costs.collect())
                    })
                    .collect(),
            })
            .collect(),
    };
    let resident = ResidentMask { level, layers: case.layers.iter().map(layer).collect() };
    mask.with_resident(resident)
}

#[test]
fn masks_equal_the_reference_over_a_thousand_manifests() {
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..CASES {
        let case = case(seed);
        let expected = reference(&case);
        let mask = computed(&case);
        assert_eq!(
            shown(mask.clone()),
            expected,
            "seed {seed}: {:?} {:#}",
            case.set,
            case.document
        );
        let outcome = match &expected {
            Ok(mask) => text(&mask["origin"]),
            Err(error) => (*error).to_owned(),
        };
        *outcomes.entry(outcome).or_default() += 1;
        let Ok(mask) = mask else { continue };
        let resident = shown(with_resident(mask, &case));
        assert_eq!(resident, resident_reference(&case), "seed {seed}");
        let seen = if resident.is_ok() { "resident" } else { "nothing resident" };
        *outcomes.entry(seen.to_owned()).or_default() += 1;
    }
    // Every way to an answer was taken often.
    assert_eq!(outcomes.len(), 9, "{outcomes:?}");
    assert!(outcomes.values().all(|count| *count >= 20), "{outcomes:?}");
}

#[test]
fn equal_masks_have_equal_etags_and_others_do_not() {
    let mut etags: BTreeMap<String, (String, u64)> = BTreeMap::new();
    let mut contents = BTreeSet::new();
    for seed in 0..CASES {
        let case = case(seed);
        let Ok(mask) = computed(&case) else { continue };
        let mut both = vec![mask.clone()];
        both.extend(with_resident(mask, &case));
        for mask in both {
            let (etag, content) = (mask.etag(), format!("{mask:?}"));
            assert_eq!(etag.len(), 32);
            let known = etags.entry(etag).or_insert((content.clone(), seed));
            assert_eq!(known.0, content, "seeds {} and {seed}", known.1);
            contents.insert(content);
        }
    }
    assert_eq!(contents.len(), etags.len(), "equal content has one etag");
    assert!(etags.len() > 900, "{} masks", etags.len());
}

/// A mask with something in each of its parts.
fn full() -> RoutingMask {
    let bits = |set: &[bool]| ExpertBits::of(set.iter().copied());
    let costs = vec![CostClass::Dram, CostClass::ObjectStore];
    let group = LayerGroup::of(CostClass::Nvme, costs);
    let layer = LayerMask { layer: 4, tiers: vec![LayerTier { groups: vec![group] }] };
    RoutingMask {
        revision: 3,
        origin: SetOrigin::Manifest("set".into()),
        tiers: vec![TierMask {
            tier: "a".into(),
            k_group: 1,
            k_expert: 2,
            groups: vec![bits(&[true, true])],
            indexed: true,
            sources: vec![LayerSources {
                layers: vec![4],
                groups: vec![vec![
                    Source { expert: 5, column: 6 },
                    Source { expert: 7, column: 8 },
                ]],
            }],
        }],
        k_tier: 1,
        masked: vec![MaskedTier {
            tier: "b".into(),
            reason: MaskReason::SkippedTier,
            detail: "why".into(),
        }],
        resident: Some(ResidentMask { level: CostClass::Nvme, layers: vec![layer] }),
    }
}

#[test]
fn each_part_of_a_mask_is_in_its_etag() {
    fn layer(mask: &mut RoutingMask) -> &mut LayerMask {
        &mut mask.resident.as_mut().expect("it has one").layers[0]
    }
    type Change = fn(&mut RoutingMask);
    let changes: [Change; 24] = [
        |mask| mask.revision += 1,
        |mask| mask.origin = SetOrigin::Manifest("sets".into()),
        |mask| mask.origin = SetOrigin::Configuration("set".into()),
        |mask| mask.origin = SetOrigin::UpTo("set".into()),
        |mask| mask.tiers[0].tier = "c".into(),
        |mask| mask.tiers[0].k_group += 1,
        |mask| mask.tiers[0].k_expert += 1,
        |mask| mask.tiers[0].groups[0] = ExpertBits::of([true, false].into_iter()),
        |mask| mask.tiers[0].groups.push(ExpertBits::all(0)),
        |mask| mask.tiers[0].indexed = false,
        |mask| mask.tiers[0].sources[0].layers.push(5),
        |mask| mask.tiers[0].sources[0].groups[0][1].expert += 1,
        |mask| mask.tiers[0].sources[0].groups[0][1].column += 1,
        |mask| mask.tiers[0].sources.clear(),
        |mask| mask.k_tier += 1,
        |mask| mask.masked[0].tier = "c".into(),
        |mask| mask.masked[0].reason = MaskReason::UnavailableBlock,
        |mask| mask.masked[0].detail = "because".into(),
        |mask| mask.masked.clear(),
        |mask| mask.resident.as_mut().expect("it has one").level = CostClass::Dram,
        |mask| layer(mask).layer += 1,
        |mask| layer(mask).tiers[0].groups[0].costs[0] = CostClass::Hbm,
        |mask| layer(mask).tiers[0].groups[0].experts = ExpertBits::all(2),
        |mask| mask.resident = None,
    ];
    let mut seen = BTreeSet::from([full().etag()]);
    assert!(seen.contains(&full().etag()), "equal masks have equal ones");
    for (n, change) in changes.into_iter().enumerate() {
        let mut mask = full();
        change(&mut mask);
        assert_ne!(mask, full(), "change {n} is none");
        assert!(seen.insert(mask.etag()), "change {n} does not show");
    }
}

fn small(set: TierSet) -> Result<RoutingMask, MaskError> {
    let document = json!({
        "format_version": "1.1", "revision": 3, "default_tier_set": [],
        "tier_sets": {"first": ["a"]},
        "tiers": [
            {"id": "a", "parameter_budget": 1, "groups": [{"experts": 2}], "routing": {"k_tier": 9}},
            {"id": 7, "parameter_budget": 1, "groups": [{"experts": 3}],
             "compatibility": {"requires": ["warp"]}},
        ],
    });
    let loaded = Manifest::parse(document.to_string().as_bytes()).expect("a manifest");
    let catalog = Catalog::new(loaded, BTreeMap::new(), None).expect("no indexes");
    RoutingMask::of(&catalog, &set, &BTreeMap::new())
}

#[test]
fn an_empty_result_says_what_became_of_each_tier() {
    let why = |set| small(set).expect_err("nothing is left").to_string();
    assert_eq!(why(TierSet::Default), "nothing is left to route to: the tier set is empty");
    let error = why(TierSet::Tiers(vec!["7".into(), "b".into()]));
    assert!(error.contains("tier 7 is skipped: it requires \"warp\""), "{error}");
    assert!(error.contains("tier b is unknown"), "{error}");
    let many = (0..100).map(|n| format!("x{n}")).collect();
    let error = why(TierSet::Tiers(many));
    assert!(error.ends_with("tier x15 is unknown, and 84 more"), "{error}");
    let error = why(TierSet::Named("second".into()));
    assert_eq!(error, "there is no tier set \"second\"; named are first");
}

#[test]
fn k_tier_is_capped_by_the_active_tiers_and_reasons_have_their_details() {
    let mask = small(TierSet::UpTo("7".into())).expect("a is left");
    assert_eq!(mask.k_tier, 1, "of nine asked for, one is active");
    assert_eq!(mask.origin, SetOrigin::UpTo("7".into()));
    let [masked] = &mask.masked[..] else { panic!("{:?}", mask.masked) };
    assert_eq!((&*masked.tier, masked.reason), ("7", MaskReason::SkippedTier));
    assert!(masked.detail.contains("warp"), "{}", masked.detail);
    assert!(!mask.tiers[0].indexed, "the manifest is metadata alone");
}

#[test]
fn a_mask_beyond_one_reply_is_refused() {
    let experts = 9 << 20;
    let tier =
        |id: &str| json!({"id": id, "parameter_budget": 1, "groups": [{"experts": experts}]});
    let document = json!({"format_version": "1.1", "tiers": [tier("a"), tier("b")]});
    let loaded = Manifest::parse(document.to_string().as_bytes()).expect("a manifest");
    let catalog = Catalog::new(loaded, BTreeMap::new(), None).expect("no indexes");
    let of = |set| RoutingMask::of(&catalog, &set, &BTreeMap::new());
    let error = of(TierSet::Default).expect_err("18 Mi experts");
    assert!(matches!(error, MaskError::TooLarge { entries, .. } if entries == 2 * experts));
    assert!(of(TierSet::UpTo("a".into())).is_ok());
}

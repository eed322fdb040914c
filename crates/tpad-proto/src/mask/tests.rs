use prost::Message as _;

use super::*;

fn source(expert: u32, column: u32) -> Source {
    Source { expert, column }
}

fn mask() -> RoutingMask {
    let tier = TierMask {
        tier: "7".into(),
        k_group: 1,
        k_expert: 2,
        groups: vec![ExpertBits::all(3), ExpertBits::of([true, false].into_iter())],
        indexed: true,
        sources: vec![LayerSources {
            layers: vec![1, 4],
            groups: vec![
                vec![source(0, 0), source(1, 1), source(2, 9)],
                vec![source(3, 3), source(4, u32::MAX)],
            ],
        }],
    };
    let costs = |costs: &[CostClass]| LayerGroup::of(CostClass::Dram, costs.to_vec());
    let groups = vec![
        costs(&[CostClass::Hbm, CostClass::Dram, CostClass::Nvme]),
        costs(&[CostClass::ObjectStore, CostClass::Unavailable]),
    ];
    let masked = [
        ("a", MaskReason::NotInTierSet),
        ("b", MaskReason::SkippedTier),
        ("c", MaskReason::UnknownTier),
        ("7", MaskReason::UnavailableBlock),
    ];
    RoutingMask {
        revision: 3,
        origin: SetOrigin::UpTo("7".into()),
        tiers: vec![tier],
        k_tier: 1,
        masked: masked
            .map(|(tier, reason)| MaskedTier { tier: tier.into(), reason, detail: "why".into() })
            .into(),
        resident: Some(ResidentMask {
            level: CostClass::Dram,
            layers: vec![LayerMask { layer: 4, tiers: vec![LayerTier { groups }] }],
        }),
    }
}

#[test]
fn masks_and_sets_survive_the_wire() {
    for origin in [
        SetOrigin::Default,
        SetOrigin::Tiers,
        SetOrigin::UpTo("7".into()),
        SetOrigin::Configuration("small".into()),
        SetOrigin::Manifest("small".into()),
    ] {
        let mask = RoutingMask { origin, ..mask() };
        let bytes = routing_mask(&mask, 9).encode_to_vec();
        let message = v1::RoutingMask::decode(&*bytes).expect("it decodes");
        assert_eq!((message.generation, &message.etag), (9, &mask.etag()));
        assert_eq!(RoutingMask::try_from(message), Ok(mask));
    }
    for set in [
        TierSet::Default,
        TierSet::Tiers(vec!["a".into(), "not an id".into()]),
        TierSet::Named("small".into()),
        TierSet::UpTo("7".into()),
    ] {
        let read = tier_set(&set).map(TierSet::try_from);
        assert_eq!(read.unwrap_or(Ok(TierSet::Default)), Ok(set));
    }
    let unknown = TierSet::try_from(v1::TierSet { set: None });
    assert!(unknown.is_err(), "a kind of set from the future is not the default");
}

type Edit = fn(&mut v1::RoutingMask);

#[test]
fn lists_that_disagree_are_refused() {
    let edits: [(&str, Edit); 11] = [
        ("origin", |m| m.origin = 0),
        ("origin", |m| m.origin = 99),
        ("reason", |m| m.masked[0].reason = 0),
        ("3 experts", |m| m.tiers[0].groups[0].bits = vec![0xff].into()),
        ("4294967295 experts", |m| m.tiers[0].groups[0].experts = u32::MAX),
        ("router_columns", |m| m.tiers[0].sources[0].groups[0].router_columns.truncate(2)),
        ("sources.groups", |m| m.tiers[0].sources[0].groups.truncate(1)),
        ("layers.tiers", |m| resident_of(m).layers[0].tiers.clear()),
        ("costs", |m| resident_of(m).layers[0].tiers[0].groups[0].costs.push(1)),
        ("cost class", |m| resident_of(m).layers[0].tiers[0].groups[0].costs[0] = 0),
        ("level", |m| resident_of(m).level = 77),
    ];
    for (words, edit) in edits {
        let mut message = routing_mask(&mask(), 1);
        edit(&mut message);
        let error = RoutingMask::try_from(message).expect_err(words).to_string();
        assert!(error.contains(words), "{error} lacks {words}");
    }
}

fn resident_of(mask: &mut v1::RoutingMask) -> &mut v1::ResidentMask {
    mask.resident.as_mut().expect("the mask has one")
}

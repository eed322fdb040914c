//! What the router refuses, and how it says so.

use tpad_client::{RouteError, RouteInput, Router, TierLogits};
use tpad_manifest::{
    ExpertBits, GroupScoring, LayerSources, RoutingMask, Scoring, ScoringFunction, SetOrigin,
    Source, TierMask,
};

fn mask() -> RoutingMask {
    let tier = |tier: &str| TierMask {
        tier: tier.to_owned(),
        k_group: 1,
        k_expert: 2,
        groups: vec![ExpertBits::all(3), ExpertBits::of([true, false].into_iter())],
        indexed: true,
        sources: Vec::new(),
    };
    let (tiers, origin) = (vec![tier("a"), tier("b")], SetOrigin::Default);
    RoutingMask { revision: 1, origin, tiers, k_tier: 2, masked: Vec::new(), resident: None }
}

fn router() -> Router {
    Router::new(Scoring::default()).expect("it can be computed")
}

const FINE: [f32; 5] = [0.0, 1.0, 2.0, 3.0, 4.0];

fn refused(mask: &RoutingMask, tiers: &[TierLogits<'_>]) -> String {
    router().route(mask, tiers).expect_err("it is refused").to_string()
}

#[test]
fn what_is_not_finite_is_refused_with_its_place_wherever_it_is_read() {
    let fine = TierLogits::of(&FINE);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = FINE;
        logits[2] = value;
        let bad = TierLogits::of(&logits);
        assert_eq!(
            refused(&mask(), &[fine, bad]),
            format!("tier b: the logit of expert 0/2 is {value}")
        );
        let groups = [0.0, value];
        let heads = TierLogits { groups: Some(&groups), ..fine };
        assert_eq!(
            refused(&mask(), &[heads, fine]),
            format!("tier a: the logit of group 1 is {value}")
        );
        let head = TierLogits { tier: Some(value), ..fine };
        assert_eq!(refused(&mask(), &[head, fine]), format!("tier a: the tier's logit is {value}"));
        let scoring = Scoring { correction_bias: true, ..Scoring::default() };
        let biased = TierLogits { correction_bias: Some(&logits), ..fine };
        let error = Router::new(scoring).expect("it can be computed").route(&mask(), &[biased; 2]);
        assert!(matches!(
            error,
            Err(RouteError::NotFinite {
                input: RouteInput::CorrectionBias { group: 0, expert: 2 },
                ..
            })
        ));
        // The fifth expert is masked: nobody looks.
        let mut logits = FINE;
        logits[4] = value;
        assert!(router().route(&mask(), &[TierLogits::of(&logits); 2]).is_ok());
    }
}

#[test]
fn nothing_allowed_and_a_k_of_zero_are_errors() {
    let fine = [TierLogits::of(&FINE); 2];
    let mut none = mask();
    for tier in &mut none.tiers {
        tier.groups =
            vec![ExpertBits::of([false; 3].into_iter()), ExpertBits::of([false; 2].into_iter())];
    }
    assert_eq!(router().route(&none, &fine), Err(RouteError::NothingAllowed));
    let empty = RoutingMask { tiers: Vec::new(), ..mask() };
    assert_eq!(router().route(&empty, &[]), Err(RouteError::NothingAllowed));
    // A tier without an allowed expert leaves its place to the others.
    none.tiers[1] = mask().tiers[1].clone();
    none.k_tier = 1;
    let chosen = router().route(&none, &fine).expect("the other tier is there");
    assert!(chosen.iter().all(|one| one.tier == 1), "{chosen:?}");

    let mut zero = mask();
    zero.k_tier = 0;
    assert_eq!(refused(&zero, &fine), "k_tier is 0");
    let mut zero = mask();
    zero.tiers[1].k_group = 0;
    assert_eq!(refused(&zero, &fine), "k_group of tier b is 0");
    let mut zero = mask();
    zero.tiers[0].k_expert = 0;
    assert_eq!(refused(&zero, &fine), "k_expert of tier a is 0");
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let fine = TierLogits::of(&FINE);
    assert_eq!(refused(&mask(), &[fine]), "the mask has 2 tiers, 1 were given");
    let short = TierLogits::of(&FINE[..4]);
    assert_eq!(refused(&mask(), &[fine, short]), "tier b has 4 logits, the mask has 5");
    let heads = TierLogits { groups: Some(&FINE), ..fine };
    assert_eq!(refused(&mask(), &[heads, fine]), "tier a has 5 group logits, the mask has 2");
    let biased = TierLogits { correction_bias: Some(&FINE), ..fine };
    assert_eq!(
        refused(&mask(), &[biased, fine]),
        "tier a has a correction bias, which the manifest's scoring does not know"
    );
    let scoring = Scoring { correction_bias: true, ..Scoring::default() };
    let corrected = Router::new(scoring).expect("it can be computed");
    assert_eq!(
        corrected.route(&mask(), &[fine; 2]).expect_err("it is refused").to_string(),
        "tier a has no correction bias, which the manifest's scoring adds"
    );
    let short = TierLogits { correction_bias: Some(&FINE[..2]), ..fine };
    assert_eq!(
        corrected.route(&mask(), &[short; 2]).expect_err("it is refused").to_string(),
        "tier a has 2 correction biases, the mask has 5"
    );
    assert_eq!(
        router().route_resident(&mask(), 7, &[fine; 2]),
        Err(RouteError::NotResident { layer: 7 })
    );
}

#[test]
fn scorings_that_are_not_known_or_contradict_themselves_are_refused() {
    let after = Scoring { function: ScoringFunction::SoftmaxAfterTopK, ..Scoring::default() };
    let wrong = [
        Scoring { correction_bias: true, ..after },
        Scoring { groups: GroupScoring::TopTwoSum, ..after },
        Scoring { function: ScoringFunction::Unknown, ..Scoring::default() },
        Scoring { groups: GroupScoring::Unknown, ..Scoring::default() },
        Scoring { scale: 1e39, ..Scoring::default() },
        Scoring { scale: f64::NAN, ..Scoring::default() },
    ];
    for scoring in wrong {
        assert!(matches!(Router::new(scoring), Err(RouteError::Scoring { .. })), "{scoring:?}");
    }
}

#[test]
fn logits_are_gathered_by_column_and_layer() {
    let source = |column| Source { expert: 0, column };
    let mut tier = mask().tiers[0].clone();
    tier.sources = vec![LayerSources {
        layers: vec![1, 4],
        groups: vec![vec![source(4), source(0), source(2)], vec![source(1), source(3)]],
    }];
    assert_eq!(TierLogits::gather(&tier, 4, &FINE), Ok(vec![4.0, 0.0, 2.0, 1.0, 3.0]));
    let error = TierLogits::gather(&tier, 2, &FINE).expect_err("no such layer");
    assert_eq!(
        error.to_string(),
        "the mask has no sources of tier a at layer 2: ask for one with sources"
    );
    let error = TierLogits::gather(&tier, 1, &FINE[..4]).expect_err("too short");
    assert_eq!(error.to_string(), "tier a at layer 1 is scored by column 4, the router has 4");
}

#[test]
fn chosen_ones_far_below_the_largest_still_share_their_weight() {
    // The tier's head overrules what its experts' logits say.
    let mut mask = mask();
    mask.k_tier = 1;
    let high = [200.0; 5];
    let tiers = [
        TierLogits { tier: Some(1.0), ..TierLogits::of(&FINE) },
        TierLogits { tier: Some(0.0), ..TierLogits::of(&high) },
    ];
    let scoring = Scoring { normalize: true, ..Scoring::default() };
    let chosen = Router::new(scoring).expect("it can be computed").route(&mask, &tiers);
    let chosen = chosen.expect("something is allowed");
    let weights: Vec<f32> = chosen.iter().map(|one| one.weight).collect();
    assert_eq!(chosen[0].tier, 0);
    assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{weights:?}");
}

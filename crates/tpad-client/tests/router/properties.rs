//! What holds of every choice.

use std::collections::{BTreeSet, HashSet};

use tpad_client::{Choice, Router, TierLogits, Ties};
use tpad_manifest::{
    CostClass, ExpertBits, LayerGroup, LayerMask, LayerTier, ResidentMask, RoutingMask,
    ScoringFunction, TierMask,
};

use super::dice::{Dice, Inputs};

const CASES: u64 = 2000;

type Name = (usize, u32, u32);

fn names(chosen: &[Choice]) -> Vec<Name> {
    chosen.iter().map(|one| (one.tier, one.group, one.expert)).collect()
}

fn bits(chosen: &[Choice]) -> Vec<u32> {
    chosen.iter().map(|one| one.weight.to_bits()).collect()
}

fn allowed(tier: &TierMask) -> Vec<u32> {
    tier.groups.iter().map(ExpertBits::ones).filter(|ones| *ones > 0).collect()
}

#[test]
fn a_masked_expert_is_never_chosen_and_its_logit_never_read() {
    let mut dice = Dice(1);
    for case in 0..CASES {
        let (scoring, mask) = (dice.scoring(), dice.mask());
        let router = Router::new(scoring).expect("it can be computed");
        let mut inputs = Inputs::roll(&mut dice, &mask, scoring);
        let expected = router.route(&mask, &inputs.tiers()).expect("something is allowed");
        for one in &expected {
            let group = &mask.tiers[one.tier].groups[usize::try_from(one.group).expect("small")];
            assert!(group.has(one.expert), "case {case}: {one:?}");
        }
        for (at, tier) in mask.tiers.iter().enumerate() {
            for (n, is_allowed) in tier.groups.iter().flat_map(ExpertBits::iter).enumerate() {
                if !is_allowed {
                    inputs.logits[at][n] = [f32::NAN, f32::INFINITY, f32::MAX][n % 3];
                    if let Some(biases) = &mut inputs.biases {
                        biases[at][n] = f32::NAN;
                    }
                }
            }
        }
        let poisoned = router.route(&mask, &inputs.tiers()).expect("what is masked is not read");
        assert_eq!(names(&poisoned), names(&expected), "case {case}");
        assert_eq!(bits(&poisoned), bits(&expected), "case {case}");
    }
}

#[test]
fn exactly_k_are_chosen_where_enough_are_allowed_and_all_where_not() {
    let mut dice = Dice(2);
    let (mut full, mut short) = (0, 0);
    for case in 0..CASES {
        let (scoring, mask) = (dice.scoring(), dice.mask());
        let inputs = Inputs::roll(&mut dice, &mask, scoring);
        let router = Router::new(scoring).expect("it can be computed");
        let chosen = router.route(&mask, &inputs.tiers()).expect("something is allowed");
        let distinct: HashSet<Name> = names(&chosen).into_iter().collect();
        assert_eq!(distinct.len(), chosen.len(), "case {case}: nothing is chosen twice");
        let tiers: BTreeSet<usize> = chosen.iter().map(|one| one.tier).collect();
        let there = mask.tiers.iter().filter(|tier| !allowed(tier).is_empty()).count();
        assert_eq!(tiers.len(), there.min(mask.k_tier as usize), "case {case}");
        for place in tiers {
            let tier = &mask.tiers[place];
            let of: Vec<&Choice> = chosen.iter().filter(|one| one.tier == place).collect();
            let groups: BTreeSet<u32> = of.iter().map(|one| one.group).collect();
            let k_group = allowed(tier).len().min(tier.k_group as usize);
            assert!(groups.len() <= k_group, "case {case}");
            // The smallest and the largest groups that could have been kept.
            let mut sizes = allowed(tier);
            sizes.sort_unstable();
            let fewest: u32 = sizes.iter().take(k_group).sum();
            let most: u32 = sizes.iter().rev().take(k_group).sum();
            let count = u32::try_from(of.len()).expect("small");
            if fewest >= tier.k_expert {
                assert_eq!(count, tier.k_expert, "case {case}");
                full += 1;
            } else {
                assert!((fewest..=most.min(tier.k_expert)).contains(&count), "case {case}");
                short += 1;
            }
        }
    }
    assert!(full > 500 && short > 500, "both happen: {full} {short}");
}

#[test]
fn weights_sum_as_the_family_says() {
    let mut dice = Dice(3);
    for case in 0..CASES {
        let (scoring, mask) = (dice.scoring(), dice.mask());
        let inputs = Inputs::roll(&mut dice, &mask, scoring);
        let router = Router::new(scoring).expect("it can be computed");
        let chosen = router.route(&mask, &inputs.tiers()).expect("something is allowed");
        let sum: f64 = chosen.iter().map(|one| f64::from(one.weight)).sum();
        let to_one = scoring.normalize || scoring.function == ScoringFunction::SoftmaxAfterTopK;
        let logit = |one: &Choice| {
            let groups = &mask.tiers[one.tier].groups;
            let before =
                groups.iter().take(one.group as usize).map(|group| group.experts() as usize);
            f64::from(inputs.logits[one.tier][before.sum::<usize>() + one.expert as usize])
        };
        let mass: f64 = chosen.iter().map(|one| logit(one).exp()).sum();
        let every = mask.tiers.iter().enumerate().flat_map(|(at, tier)| {
            let bits = tier.groups.iter().flat_map(ExpertBits::iter);
            bits.zip(&inputs.logits[at]).filter_map(|(is, logit)| is.then_some(f64::from(*logit)))
        });
        let all: f64 = every.map(f64::exp).sum();
        let one = match scoring.function {
            _ if to_one => 1.0,
            ScoringFunction::Softmax => mass / all,
            ScoringFunction::Sigmoid => {
                chosen.iter().map(|one| 1.0 / (1.0 + (-logit(one)).exp())).sum()
            }
            _ => chosen.iter().map(|one| logit(one).exp().ln_1p().sqrt()).sum(),
        };
        let expected = one * scoring.scale;
        assert!((sum / expected - 1.0).abs() < 1e-5, "case {case}: {sum}, not {expected}");
        assert!(chosen.iter().all(|one| one.weight >= 0.0), "case {case}");
    }
}

/// Experts of a group change places, logits and bits with them.
#[test]
fn a_permutation_of_experts_permutes_the_choice() {
    let mut dice = Dice(4);
    for case in 0..CASES {
        let (scoring, mask) = (dice.scoring(), dice.mask());
        let inputs = Inputs::roll(&mut dice, &mask, scoring);
        let router = Router::new(scoring).expect("it can be computed");
        let mut other = mask.clone();
        let mut moved = Inputs { logits: inputs.logits.clone(), biases: inputs.biases.clone() };
        let mut was: Vec<Vec<Vec<u32>>> = Vec::new();
        for (at, tier) in mask.tiers.iter().enumerate() {
            let mut start = 0;
            let mut orders = Vec::new();
            for (n, group) in tier.groups.iter().enumerate() {
                let mut order: Vec<u32> = (0..group.experts()).collect();
                for last in (1..group.experts()).rev() {
                    order.swap(last as usize, dice.roll(0, last) as usize);
                }
                for (to, from) in order.iter().enumerate() {
                    let from = start + *from as usize;
                    moved.logits[at][start + to] = inputs.logits[at][from];
                    if let (Some(moved), Some(biases)) = (&mut moved.biases, &inputs.biases) {
                        moved[at][start + to] = biases[at][from];
                    }
                }
                let bits = order.iter().map(|from| group.has(*from));
                other.tiers[at].groups[n] = ExpertBits::of(bits);
                start += order.len();
                orders.push(order);
            }
            was.push(orders);
        }
        let expected = router.route(&mask, &inputs.tiers()).expect("something is allowed");
        let chosen = router.route(&other, &moved.tiers()).expect("something is allowed");
        let back: Vec<Name> = names(&chosen)
            .into_iter()
            .map(|(tier, group, to)| (tier, group, was[tier][group as usize][to as usize]))
            .collect();
        // Sums in another order may differ in their last bits, choices may not.
        let set = |names: &[Name]| names.iter().copied().collect::<HashSet<Name>>();
        assert_eq!(set(&back), set(&names(&expected)), "case {case}");
        for (name, one) in back.iter().zip(&chosen) {
            let same = expected.iter().find(|one| (one.tier, one.group, one.expert) == *name);
            let same = same.expect("the sets are equal").weight;
            assert!((one.weight - same).abs() <= 1e-6 * same, "case {case}: {one:?}, not {same}");
        }
    }
}

/// Equal tiers of equal experts, all with the logit zero.
fn level(tiers: u32) -> (RoutingMask, Vec<Vec<f32>>) {
    let mut mask = Dice(5).mask();
    let group = ExpertBits::all(8);
    let tier = |n: u32| TierMask {
        tier: format!("tier_{n}"),
        k_group: 1,
        k_expert: 2,
        groups: vec![group.clone(), group.clone()],
        indexed: true,
        sources: Vec::new(),
    };
    mask.tiers = (0..tiers).map(tier).collect();
    mask.k_tier = 1;
    (mask, vec![vec![0.0; 16]; tiers as usize])
}

#[test]
fn ties_go_to_the_first_or_by_the_seed_and_always_the_same_way() {
    let (mask, logits) = level(3);
    let tiers: Vec<TierLogits<'_>> = logits.iter().map(|logits| TierLogits::of(logits)).collect();
    let router = Router::new(tpad_manifest::Scoring::default()).expect("it can be computed");
    let first = router.route(&mask, &tiers).expect("something is allowed");
    assert_eq!(names(&first), [(0, 0, 0), (0, 0, 1)]);
    let mut seen = [HashSet::new(), HashSet::new(), HashSet::new()];
    for seed in 0..400 {
        let router = router.with_ties(Ties::Seeded(seed));
        let chosen = router.route(&mask, &tiers).expect("something is allowed");
        assert_eq!(router.route(&mask, &tiers).as_ref(), Ok(&chosen), "seed {seed}");
        assert_eq!(bits(&chosen), bits(&first), "equal ones have equal weights");
        for one in &chosen {
            seen[0].insert(u32::try_from(one.tier).expect("small"));
            seen[1].insert(one.group);
            seen[2].insert(one.expert);
        }
        // A name wins or loses by itself, wherever the mask has it.
        let mut turned = mask.clone();
        turned.tiers.reverse();
        let again = router.route(&turned, &tiers).expect("something is allowed");
        let key = |one: &Choice, mask: &RoutingMask| one.key(mask).expect("it is the mask's");
        assert_eq!(
            chosen.iter().map(|one| key(one, &mask)).collect::<Vec<_>>(),
            again.iter().map(|one| key(one, &turned)).collect::<Vec<_>>(),
            "seed {seed}"
        );
    }
    assert_eq!(seen.map(|seen| seen.len()), [3, 2, 8], "seeds spread over all");
}

#[test]
fn seeds_change_nothing_where_nothing_is_equal() {
    let mut dice = Dice(6);
    for case in 0..CASES {
        let (scoring, mask) = (dice.scoring(), dice.mask());
        let inputs = Inputs::roll(&mut dice, &mask, scoring);
        let router = Router::new(scoring).expect("it can be computed");
        let first = router.route(&mask, &inputs.tiers()).expect("something is allowed");
        let seeded = router.with_ties(Ties::Seeded(case));
        assert_eq!(seeded.route(&mask, &inputs.tiers()), Ok(first), "case {case}");
    }
}

#[test]
fn what_is_resident_narrows_the_mask_and_never_widens_it() {
    let mut dice = Dice(7);
    for case in 0..CASES {
        let (scoring, mut mask) = (dice.scoring(), dice.mask());
        let inputs = Inputs::roll(&mut dice, &mask, scoring);
        let router = Router::new(scoring).expect("it can be computed");
        let mut narrowed = mask.clone();
        let mut tiers = Vec::new();
        for tier in &mut narrowed.tiers {
            let mut groups = Vec::new();
            for group in &mut tier.groups {
                let costs = (0..group.experts())
                    .map(|_| if dice.one_in(3) { CostClass::Nvme } else { CostClass::Dram });
                let near = LayerGroup::of(CostClass::Dram, costs.collect());
                let both = group.iter().zip(near.experts.iter()).map(|(a, b)| a && b);
                let both: Vec<bool> = both.collect();
                *group = ExpertBits::of(both.into_iter());
                groups.push(near);
            }
            tiers.push(LayerTier { groups });
        }
        let layers = vec![LayerMask { layer: 5, tiers }];
        mask.resident = Some(ResidentMask { level: CostClass::Dram, layers });
        assert_eq!(
            router.route_resident(&mask, 5, &inputs.tiers()),
            router.route(&narrowed, &inputs.tiers()),
            "case {case}"
        );
    }
}

//! Random cases that are the same in every run.

use tpad_client::TierLogits;
use tpad_manifest::{
    ExpertBits, GroupScoring, RoutingMask, Scoring, ScoringFunction, SetOrigin, TierMask,
};

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn roll(&mut self, low: u32, high: u32) -> u32 {
        let span = u64::from(high - low) + 1;
        low + u32::try_from(self.next() % span).expect("below the span")
    }

    pub(crate) fn one_in(&mut self, sides: u32) -> bool {
        self.roll(1, sides) == 1
    }

    /// A number between -`wide` and `wide`.
    pub(crate) fn float(&mut self, wide: f32) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        unit * wide
    }

    pub(crate) fn floats(&mut self, count: usize, wide: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(wide)).collect()
    }

    pub(crate) fn scoring(&mut self) -> Scoring {
        let function = match self.roll(0, 3) {
            0 => ScoringFunction::Softmax,
            1 => ScoringFunction::SoftmaxAfterTopK,
            2 => ScoringFunction::Sigmoid,
            _ => ScoringFunction::SqrtSoftplus,
        };
        let after = function == ScoringFunction::SoftmaxAfterTopK;
        let groups = match self.roll(0, 2) {
            0 => GroupScoring::Max,
            1 if !after => GroupScoring::TopTwoSum,
            _ => GroupScoring::LogSumExp,
        };
        let (correction_bias, normalize) = (!after && self.one_in(2), !after && self.one_in(2));
        let scale = if self.one_in(2) { 1.0 } else { 2.5 };
        Scoring { function, correction_bias, normalize, scale, groups }
    }

    /// A mask of some tiers of uneven groups; one expert at least is allowed.
    pub(crate) fn mask(&mut self) -> RoutingMask {
        let of = (0..self.roll(1, 4)).map(|n| {
            let groups: Vec<ExpertBits> = (0..self.roll(1, 4))
                .map(|_| {
                    let bits: Vec<bool> = (0..self.roll(1, 20)).map(|_| !self.one_in(4)).collect();
                    ExpertBits::of(bits.into_iter())
                })
                .collect();
            let k_group = self.roll(1, 4);
            let (tier, k_expert) = (format!("tier_{n}"), self.roll(1, 12));
            TierMask { tier, k_group, k_expert, groups, indexed: true, sources: Vec::new() }
        });
        let tiers: Vec<TierMask> = of.collect();
        if tiers.iter().flat_map(|tier| &tier.groups).all(|group| group.ones() == 0) {
            return self.mask();
        }
        let (revision, origin, k_tier) = (1, SetOrigin::Default, self.roll(1, 4));
        RoutingMask { revision, origin, tiers, k_tier, masked: Vec::new(), resident: None }
    }
}

/// Inputs of a mask's tiers, owned.
pub(crate) struct Inputs {
    pub(crate) logits: Vec<Vec<f32>>,
    pub(crate) biases: Option<Vec<Vec<f32>>>,
}

impl Inputs {
    pub(crate) fn roll(dice: &mut Dice, mask: &RoutingMask, scoring: Scoring) -> Self {
        let counts: Vec<usize> = mask.tiers.iter().map(experts).collect();
        let logits = counts.iter().map(|count| dice.floats(*count, 6.0)).collect();
        let biases = counts.iter().map(|count| dice.floats(*count, 0.2)).collect();
        Self { logits, biases: scoring.correction_bias.then_some(biases) }
    }

    pub(crate) fn tiers(&self) -> Vec<TierLogits<'_>> {
        let bias = |at: usize| self.biases.as_ref().map(|biases| &*biases[at]);
        let tiers = self.logits.iter().enumerate();
        tiers
            .map(|(at, logits)| TierLogits { correction_bias: bias(at), ..TierLogits::of(logits) })
            .collect()
    }
}

pub(crate) fn experts(tier: &TierMask) -> usize {
    tier.groups.iter().map(|group| group.iter().count()).sum()
}

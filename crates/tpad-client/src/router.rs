//! The reference router: which experts of a mask a token uses, and with what
//! weights.
//!
//! A router's logits become weights as the model's family computes them
//! ([`Scoring`]), over the experts that the mask allows, with the mask's k
//! values. What is masked has no part in it: its logits are not read, and it is
//! in no sum. `docs/routing.md` has the formulas and the order of operations
//! for other languages, and `crates/tpad-client/tests/vectors` what comes out.
//!
//! Everything is computed in `f32` and in the order in which PyTorch's portable
//! CPU kernels compute it (`numeric.rs`), so with one tier of one group, or
//! with a family's own groups, selections and weights are those of the family's
//! flat router, bit for bit.
//!
//! ```
//! use tpad_client::{Router, TierLogits};
//! use tpad_manifest::{ExpertBits, RoutingMask, Scoring, SetOrigin, TierMask};
//!
//! # fn main() -> Result<(), tpad_client::RouteError> {
//! // What `Client::routing_mask` answers for a tier of one group of four.
//! let mask = RoutingMask {
//!     revision: 1,
//!     origin: SetOrigin::Default,
//!     tiers: vec![TierMask {
//!         tier: "tier_1b".to_owned(),
//!         k_group: 1,
//!         k_expert: 2,
//!         groups: vec![ExpertBits::of([true, true, false, true].into_iter())],
//!         indexed: true,
//!         sources: Vec::new(),
//!     }],
//!     k_tier: 1,
//!     masked: Vec::new(),
//!     resident: None,
//! };
//! // `Scoring` comes from the manifest: `ModelDescription::manifest_json`.
//! let router = Router::new(Scoring { normalize: true, ..Scoring::default() })?;
//! let chosen = router.route(&mask, &[TierLogits::of(&[1.0, 2.0, 9.0, 2.0])])?;
//! let experts: Vec<u32> = chosen.iter().map(|choice| choice.expert).collect();
//! let weights: Vec<f32> = chosen.iter().map(|choice| choice.weight).collect();
//! assert_eq!(experts, [1, 3]);
//! assert_eq!(weights, [0.5, 0.5]);
//! # Ok(())
//! # }
//! ```

mod candidates;
mod error;
mod numeric;
mod order;

use std::cmp::Ordering;

use tpad_manifest::{
    ExpertKey, GroupScoring, LayerMask, RoutingMask, Scoring, ScoringFunction, TierIdError,
    TierMask,
};

use self::candidates::{Candidate, Group, Tier};
pub use self::error::{Head, RouteError};
pub use self::order::Ties;

/// A router for one model's scoring. It holds no weights and does no I/O.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    scoring: Scoring,
    scale: f32,
    ties: Ties,
}

/// One active tier's logits for one token at one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierLogits<'a> {
    /// One for each expert of the tier, masked ones included: in order of the
    /// groups, then of the experts. A router's own bias is part of them.
    pub experts: &'a [f32],
    /// What is added to scores for selection only, in the same order; there
    /// exactly when [`Scoring::correction_bias`] is set.
    pub correction_bias: Option<&'a [f32]>,
    /// One for each group, where the tier brings a head that scores its groups.
    /// They stand in place of the groups' scores.
    pub groups: Option<&'a [f32]>,
    /// Where the tier brings a head that scores itself. It stands in place of
    /// the tier's score.
    pub tier: Option<f32>,
}

/// An expert that a token uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The tier's place in [`RoutingMask::tiers`].
    pub tier: usize,
    /// The group within the tier.
    pub group: u32,
    /// The expert within the group.
    pub expert: u32,
    /// What its output is multiplied by.
    pub weight: f32,
}

impl<'a> TierLogits<'a> {
    /// Logits of a tier without a correction bias or heads of its own.
    #[must_use]
    pub const fn of(experts: &'a [f32]) -> Self {
        Self { experts, correction_bias: None, groups: None, tier: None }
    }

    /// A tier's logits at a layer, taken from those of the checkpoint's whole
    /// router; its correction bias likewise. The mask must have come with
    /// sources.
    ///
    /// # Errors
    /// [`RouteError::NoSources`] when the mask does not say where the tier's
    /// experts came from at this layer, [`RouteError::NoColumn`] when `router`
    /// is too short.
    pub fn gather(tier: &TierMask, layer: u32, router: &[f32]) -> Result<Vec<f32>, RouteError> {
        let mut sources = tier.sources.iter().filter(|sources| sources.layers.contains(&layer));
        let sources = sources
            .next()
            .ok_or_else(|| RouteError::NoSources { tier: tier.tier.clone(), layer })?;
        let columns = sources.groups.iter().flatten().map(|source| source.column);
        let logit = |column: u32| {
            let logit = usize::try_from(column).ok().and_then(|column| router.get(column));
            logit.copied().ok_or_else(|| RouteError::NoColumn {
                tier: tier.tier.clone(),
                layer,
                column,
                columns: router.len(),
            })
        };
        columns.map(logit).collect()
    }
}

impl Choice {
    /// What to ask the daemon for.
    ///
    /// # Errors
    /// When the mask is another one, or its tier's id is none.
    pub fn key(&self, mask: &RoutingMask) -> Result<ExpertKey, TierIdError> {
        let tier = mask.tiers.get(self.tier).map_or("", |tier| &tier.tier).parse()?;
        Ok(ExpertKey { tier, group: self.group, expert: self.expert })
    }
}

impl Router {
    /// A router that scores as the manifest says. Of equal ones it takes the
    /// first in the mask's order ([`Ties::First`]).
    ///
    /// # Errors
    /// [`RouteError::Scoring`] for a scoring that contradicts itself.
    pub fn new(scoring: Scoring) -> Result<Self, RouteError> {
        let Scoring { function, correction_bias, normalize: _, scale, groups } = scoring;
        let after = function == ScoringFunction::SoftmaxAfterTopK;
        if after && (correction_bias || groups == GroupScoring::TopTwoSum) {
            let what = "a softmax of the chosen logits has no scores to correct or to add up";
            return Err(RouteError::Scoring { what });
        }
        // PyTorch multiplies by the factor as f32.
        #[expect(clippy::cast_possible_truncation, reason = "rounds, and infinity is refused")]
        let scale = scale as f32;
        if !scale.is_finite() {
            return Err(RouteError::Scoring { what: "the scale is no finite f32" });
        }
        Ok(Self { scoring, scale, ties: Ties::First })
    }

    /// The same router with another rule for equal ones.
    #[must_use]
    pub const fn with_ties(self, ties: Ties) -> Self {
        Self { ties, ..self }
    }

    /// Routes one token at one layer through what the mask allows. `tiers` are
    /// those of the mask, in its order.
    ///
    /// The choices of all tiers come in one list, the best first: by score,
    /// then logit, then the rule for ties. A tier has as many as it allows,
    /// where that is fewer than its `k_expert`; likewise groups and tiers.
    ///
    /// # Errors
    /// When nothing is allowed, a k is zero, the inputs do not fit the mask or
    /// each other, or one that is read is not finite. Nothing is chosen then.
    pub fn route(
        &self,
        mask: &RoutingMask,
        tiers: &[TierLogits<'_>],
    ) -> Result<Vec<Choice>, RouteError> {
        self.route_within(mask, None, tiers)
    }

    /// As [`route`](Self::route), through what is allowed and resident at a
    /// layer. The mask must have come with [`GetMask::resident`].
    ///
    /// [`GetMask::resident`]: crate::GetMask::resident
    ///
    /// # Errors
    /// As [`route`](Self::route): [`RouteError::NothingAllowed`] where nothing
    /// is resident, which is no reason to stop but to route through the whole
    /// mask. [`RouteError::NotResident`] when the mask does not tell of the
    /// layer.
    pub fn route_resident(
        &self,
        mask: &RoutingMask,
        layer: u32,
        tiers: &[TierLogits<'_>],
    ) -> Result<Vec<Choice>, RouteError> {
        let mut layers = mask.resident.iter().flat_map(|resident| &resident.layers);
        let found = layers.find(|known| known.layer == layer);
        let found = found.ok_or(RouteError::NotResident { layer })?;
        self.route_within(mask, Some(found), tiers)
    }

    fn route_within(
        &self,
        mask: &RoutingMask,
        resident: Option<&LayerMask>,
        tiers: &[TierLogits<'_>],
    ) -> Result<Vec<Choice>, RouteError> {
        let mut tiers = candidates::collect(mask, resident, tiers, self.scoring.correction_bias)?;
        if tiers.is_empty() {
            return Err(RouteError::NothingAllowed);
        }
        self.score(&mut tiers);
        let mut chosen = Vec::new();
        for tier in self.best(mask, tiers, mask.k_tier, Tier::score, |tier| (tier.place, None)) {
            let of = |group: &Group| (tier.place, Some((group.number, None)));
            let score = |group: &Group| self.group_score(group);
            let groups = self.best(mask, tier.groups, tier.k_group, score, of);
            let mut experts: Vec<Candidate> =
                groups.into_iter().flat_map(|group| group.experts).collect();
            self.sort(mask, &mut experts);
            experts.truncate(order::count(tier.k_expert));
            chosen.extend(experts);
        }
        self.sort(mask, &mut chosen);
        Ok(self.weigh(&chosen))
    }

    /// Gives every candidate the family's value and its score for selection.
    fn score(&self, tiers: &mut [Tier]) {
        let groups = || tiers.iter().flat_map(|tier| &tier.groups);
        let logits: Vec<f32> =
            groups().flat_map(|group| &group.experts).map(|expert| expert.logit).collect();
        let values = match self.scoring.function {
            ScoringFunction::Softmax => numeric::softmax(&logits),
            ScoringFunction::SoftmaxAfterTopK => logits,
            ScoringFunction::Sigmoid => logits.into_iter().map(numeric::sigmoid).collect(),
            ScoringFunction::SqrtSoftplus => {
                logits.into_iter().map(numeric::sqrt_softplus).collect()
            }
        };
        let experts = tiers.iter_mut().flat_map(|tier| &mut tier.groups);
        for (expert, value) in experts.flat_map(|group| &mut group.experts).zip(values) {
            expert.value = value;
            expert.score = value + expert.bias;
        }
    }

    fn group_score(&self, group: &Group) -> f64 {
        let scores = group.experts.iter().map(|expert| expert.score);
        match (group.head, self.scoring.groups) {
            (Some(head), _) => head.into(),
            (None, GroupScoring::LogSumExp) => group.log_sum_exp(),
            (None, GroupScoring::Max) => numeric::largest(scores).into(),
            (None, GroupScoring::TopTwoSum) => numeric::top_two_sum(scores).into(),
        }
    }

    /// The `k` best of some tiers or groups, which `place` names for ties.
    fn best<T>(
        &self,
        mask: &RoutingMask,
        of: Vec<T>,
        k: u32,
        score: impl Fn(&T) -> f64,
        place: impl Fn(&T) -> order::Place,
    ) -> Vec<T> {
        let k = order::count(k);
        if of.len() <= k {
            return of;
        }
        let mut scored: Vec<(f64, T)> = of.into_iter().map(|item| (score(&item), item)).collect();
        scored.sort_by(|(left, a), (right, b)| {
            order::descending(*left, *right).then_with(|| self.ties.order(mask, place(a), place(b)))
        });
        scored.truncate(k);
        scored.into_iter().map(|(_, item)| item).collect()
    }

    fn sort(&self, mask: &RoutingMask, experts: &mut [Candidate]) {
        experts.sort_by(|a, b| -> Ordering {
            order::descending(a.score.into(), b.score.into())
                .then_with(|| order::descending(a.logit.into(), b.logit.into()))
                .then_with(|| self.ties.order(mask, a.place(), b.place()))
        });
    }

    fn weigh(&self, chosen: &[Candidate]) -> Vec<Choice> {
        let logits = || chosen.iter().map(|expert| expert.logit).collect::<Vec<f32>>();
        let mut weights = match self.scoring.function {
            ScoringFunction::SoftmaxAfterTopK => numeric::softmax(&logits()),
            _ => chosen.iter().map(|expert| expert.value).collect(),
        };
        if self.scoring.normalize {
            let mut sum = numeric::sum(&weights);
            match self.scoring.function {
                ScoringFunction::Softmax if sum == 0.0 => weights = numeric::softmax(&logits()),
                ScoringFunction::Softmax | ScoringFunction::SoftmaxAfterTopK => {
                    weights.iter_mut().for_each(|weight| *weight /= sum);
                }
                ScoringFunction::Sigmoid | ScoringFunction::SqrtSoftplus => {
                    // What DeepSeek-V3 and its kin add against a division by zero.
                    sum += 1e-20;
                    weights.iter_mut().for_each(|weight| *weight /= sum);
                }
            }
        }
        let weighed = chosen.iter().zip(weights).map(|(expert, weight)| Choice {
            tier: expert.tier,
            group: expert.group,
            expert: expert.expert,
            weight: weight * self.scale,
        });
        weighed.collect()
    }
}

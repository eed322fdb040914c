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
mod family;
mod numeric;
mod order;

use tpad_manifest::{ExpertKey, LayerMask, RoutingMask, Scoring, TierIdError, TierMask};

use self::candidates::{Candidate, Group, Tier};
pub use self::error::{RouteError, RouteInput};
use self::family::Family;
pub use self::order::Ties;

/// A router for one model's scoring. It holds no weights and does no I/O.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    family: Family,
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
    /// [`RouteError::Scoring`] for a scoring that is not known or contradicts
    /// itself.
    pub fn new(scoring: Scoring) -> Result<Self, RouteError> {
        Ok(Self { family: Family::of(scoring)?, ties: Ties::First })
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
        let mut tiers = candidates::collect(mask, resident, tiers, self.family.corrected)?;
        if tiers.is_empty() {
            return Err(RouteError::NothingAllowed);
        }
        self.score(&mut tiers);
        let mut chosen = Vec::new();
        for tier in self.best(mask, tiers, mask.k_tier, Tier::score, |tier| (tier.place, None)) {
            let of = |group: &Group| (tier.place, Some((group.number, None)));
            let score = |group: &Group| self.family.group_score(group);
            let groups = self.best(mask, tier.groups, tier.k_group, score, of);
            let mut experts: Vec<Candidate> =
                groups.into_iter().flat_map(|group| group.experts).collect();
            self.sort(mask, &mut experts);
            experts.truncate(order::count(tier.k_expert));
            chosen.extend(experts);
        }
        self.sort(mask, &mut chosen);
        let weighed = chosen.iter().zip(self.family.weights(&chosen));
        let weighed = weighed.map(|(expert, weight)| {
            let Candidate { tier, group, expert, .. } = *expert;
            Choice { tier, group, expert, weight }
        });
        Ok(weighed.collect())
    }

    /// Gives every candidate the family's value and its score for selection.
    fn score(&self, tiers: &mut [Tier]) {
        let experts = tiers.iter().flat_map(|tier| &tier.groups).flat_map(|group| &group.experts);
        let values = self.family.values(experts.map(|expert| expert.logit).collect());
        let groups = tiers.iter_mut().flat_map(|tier| &mut tier.groups);
        for (expert, value) in groups.flat_map(|group| &mut group.experts).zip(values) {
            expert.value = value;
            expert.score = value + expert.bias;
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
        experts.sort_by(|a, b| {
            order::descending(a.score.into(), b.score.into())
                .then_with(|| order::descending(a.logit.into(), b.logit.into()))
                .then_with(|| self.ties.order(mask, a.place(), b.place()))
        });
    }
}

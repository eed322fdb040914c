//! What a token may choose from: the mask's experts with their inputs, checked.

use tpad_manifest::{LayerMask, LayerTier, RoutingMask, TierMask};

use super::order::Place;
use super::{RouteError, RouteInput, TierLogits, numeric};

/// A tier with at least one allowed expert.
pub(super) struct Tier {
    /// Its place in the mask.
    pub(super) place: usize,
    pub(super) k_group: u32,
    pub(super) k_expert: u32,
    pub(super) groups: Vec<Group>,
    head: Option<f32>,
}

/// A group with at least one allowed expert.
pub(super) struct Group {
    pub(super) number: u32,
    pub(super) experts: Vec<Candidate>,
    pub(super) head: Option<f32>,
}

/// An allowed expert.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub(super) tier: usize,
    pub(super) group: u32,
    pub(super) expert: u32,
    pub(super) logit: f32,
    pub(super) bias: f32,
    /// What the family's function makes of the logit.
    pub(super) value: f32,
    /// What it is chosen by.
    pub(super) score: f32,
}

impl Tier {
    pub(super) fn score(&self) -> f64 {
        let groups = self.groups.iter().map(Group::log_sum_exp);
        // Collected, since each is a sum over experts.
        let groups: Vec<f64> = groups.collect();
        self.head.map_or_else(|| numeric::log_sum_exp(groups.iter().copied()), f64::from)
    }
}

impl Group {
    /// As the tier's score counts it: its head's logit, or the log-sum-exp of
    /// its experts' logits, whatever the family scores groups by.
    pub(super) fn log_sum_exp(&self) -> f64 {
        let logits = self.experts.iter().map(|expert| f64::from(expert.logit));
        self.head.map_or_else(|| numeric::log_sum_exp(logits), f64::from)
    }
}

impl Candidate {
    pub(super) const fn place(&self) -> Place {
        (self.tier, Some((self.group, Some(self.expert))))
    }
}

/// The allowed experts of all tiers, in the mask's order, and of those what is
/// resident, where that counts. What is masked is not looked at.
pub(super) fn collect(
    mask: &RoutingMask,
    resident: Option<&LayerMask>,
    inputs: &[TierLogits<'_>],
    corrected: bool,
) -> Result<Vec<Tier>, RouteError> {
    let expected = mask.tiers.len();
    let resident_tiers = resident.map_or(expected, |layer| layer.tiers.len());
    if let Some(found) = [inputs.len(), resident_tiers].into_iter().find(|n| *n != expected) {
        return Err(RouteError::Tiers { expected, found });
    }
    nonzero("k_tier", None, mask.k_tier)?;
    let mut tiers = Vec::new();
    for (place, (known, input)) in mask.tiers.iter().zip(inputs).enumerate() {
        nonzero("k_group", Some(&known.tier), known.k_group)?;
        nonzero("k_expert", Some(&known.tier), known.k_expert)?;
        let near = resident.and_then(|layer| layer.tiers.get(place));
        fits(known, near, input, corrected)?;
        let groups = groups(place, known, near, input)?;
        if groups.is_empty() {
            continue;
        }
        finite(&known.tier, RouteInput::Tier, input.tier.unwrap_or_default())?;
        let (k_group, k_expert) = (known.k_group, known.k_expert);
        tiers.push(Tier { place, k_group, k_expert, groups, head: input.tier });
    }
    Ok(tiers)
}

/// Whether a tier's inputs are as many as the mask says.
fn fits(
    known: &TierMask,
    near: Option<&LayerTier>,
    input: &TierLogits<'_>,
    corrected: bool,
) -> Result<(), RouteError> {
    let tier = || known.tier.clone();
    let length = |what, found: usize, expected: u64| match u64::try_from(found) {
        Ok(same) if same == expected => Ok(()),
        _ => Err(RouteError::Length { tier: tier(), what, expected, found }),
    };
    let experts = known.groups.iter().map(|group| u64::from(group.experts())).sum();
    let groups = u64::try_from(known.groups.len()).unwrap_or(u64::MAX);
    length("logits", input.experts.len(), experts)?;
    if corrected != input.correction_bias.is_some() {
        return Err(RouteError::CorrectionBias { tier: tier(), expected: corrected });
    }
    length("correction biases", input.correction_bias.unwrap_or(input.experts).len(), experts)?;
    length("group logits", input.groups.map_or(known.groups.len(), <[f32]>::len), groups)?;
    length("resident groups", near.map_or(known.groups.len(), |near| near.groups.len()), groups)
}

/// A tier's groups with allowed experts. Lengths are checked.
fn groups(
    place: usize,
    known: &TierMask,
    near: Option<&LayerTier>,
    input: &TierLogits<'_>,
) -> Result<Vec<Group>, RouteError> {
    let mut logits = input.experts.iter().copied();
    let mut biases = input.correction_bias.into_iter().flatten().copied();
    let mut groups = Vec::new();
    for (at, (group, bits)) in (0u32..).zip(&known.groups).enumerate() {
        let near = near.and_then(|near| near.groups.get(at)).map(|near| &near.experts);
        let mut experts = Vec::new();
        for (expert, allowed) in (0u32..).zip(bits.iter()) {
            let logit = logits.next().unwrap_or(f32::NAN);
            let bias = biases.next().unwrap_or_default();
            if !allowed || near.is_some_and(|near| !near.has(expert)) {
                continue;
            }
            finite(&known.tier, RouteInput::Expert { group, expert }, logit)?;
            finite(&known.tier, RouteInput::CorrectionBias { group, expert }, bias)?;
            let (value, score) = (0.0, 0.0);
            experts.push(Candidate { tier: place, group, expert, logit, bias, value, score });
        }
        let head = input.groups.and_then(|heads| heads.get(at)).copied();
        if !experts.is_empty() {
            finite(&known.tier, RouteInput::Group { group }, head.unwrap_or_default())?;
            groups.push(Group { number: group, experts, head });
        }
    }
    Ok(groups)
}

fn nonzero(what: &'static str, tier: Option<&str>, k: u32) -> Result<(), RouteError> {
    match k {
        0 => Err(RouteError::ZeroK { what, tier: tier.map(str::to_owned) }),
        _ => Ok(()),
    }
}

fn finite(tier: &str, input: RouteInput, value: f32) -> Result<(), RouteError> {
    if value.is_finite() {
        return Ok(());
    }
    Err(RouteError::NotFinite { tier: tier.to_owned(), input, value })
}

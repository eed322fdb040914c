//! Which of two comes first.

use std::cmp::Ordering;

use tpad_manifest::RoutingMask;

/// Which of equal tiers, groups or experts is taken. Equal experts have equal
/// scores and equal logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ties {
    /// The first in the mask's order: tiers, then groups, then experts.
    #[default]
    First,
    /// The one with the least hash of this seed and its name, whatever its
    /// place. Equal seeds choose equally, on all machines; a seed drawn from
    /// request, layer and position spreads ties over experts.
    Seeded(u64),
}

/// A tier by its place in the mask, a group of it, an expert of that.
pub(super) type Place = (usize, Option<(u32, Option<u32>)>);

impl Ties {
    pub(super) fn order(self, mask: &RoutingMask, a: Place, b: Place) -> Ordering {
        let by_hash = match self {
            Self::First => Ordering::Equal,
            Self::Seeded(seed) => hash(seed, mask, a).cmp(&hash(seed, mask, b)),
        };
        by_hash.then_with(|| a.cmp(&b))
    }
}

/// FNV-1a over the seed, the tier's id, a zero byte, group and expert (all ones
/// where there is none), numbers with their lowest byte first; then the
/// finalizer of SplitMix64, since FNV leaves the high bits of short names alike.
fn hash(seed: u64, mask: &RoutingMask, (tier, group): Place) -> u64 {
    let id = mask.tiers.get(tier).map_or("", |tier| &tier.tier);
    let (group, expert) = group.map_or((u32::MAX, None), |(group, expert)| (group, expert));
    let expert = expert.unwrap_or(u32::MAX);
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let numbers = [group.to_le_bytes(), expert.to_le_bytes()];
    let bytes = seed.to_le_bytes().into_iter().chain(id.bytes()).chain([0]);
    for byte in bytes.chain(numbers.into_iter().flatten()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The larger first. Inputs are finite, so scores are no NaN; zeros are equal
/// whatever their sign.
pub(super) fn descending(a: f64, b: f64) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

/// A k value as a length.
pub(super) fn count(k: u32) -> usize {
    usize::try_from(k).unwrap_or(usize::MAX)
}

//! What a block is worth to those who use it.
//!
//! A model's layers ask in turn, token after token. Who keeps what was used last has lost
//! the first layer's experts when its turn comes again, wherever a token touches more
//! than fits; so it is counted how often each block was used, and a use counts for less
//! the longer it is ago. This is the policy known as LRFU (least recently and frequently
//! used). `examples/replay.rs` compares it with others on routing that was recorded.

use std::cmp::Ordering;
use std::collections::HashMap;

use tpad_manifest::BlockId;

/// A use counts half after so many others for each block that is kept. On recorded routing,
/// where a tenth fits, 4 finds a point more of one sequence and three fewer of four at a
/// time, and 16 the reverse by a point each.
const HALF_LIFE: f64 = 8.0;

/// Of blocks that went, so many are remembered at least, and as many as are kept; twice as
/// many at most.
const REMEMBERED: usize = 1 << 14;

/// Of blocks that are expected, so many are known at a time.
const EXPECTED: usize = 1 << 12;

/// How often a block was used, each use weighed by when it was: the logarithm to base 2 of
/// the sum of their weights. A use's weight never changes, since later ones weigh more, so
/// two blocks compare alike whenever they are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worth(f64);

impl Worth {
    /// Of what nobody wants.
    pub(super) const NONE: Self = Self(f64::NEG_INFINITY);
    /// Of what was never used, and is wished by somebody who does not wait for it: more than
    /// nothing, less than any use, and the same whenever it is wished and however often. So
    /// a tier that does not fit does not push out its own parts again and again.
    pub(super) const WISHED: Self = Self(f64::MIN);

    /// With so many uses more, at a time in half-lives.
    fn and(self, times: u32, now: f64) -> Self {
        let more = now + f64::from(times.max(1)).log2();
        let (large, small) = if self.0 > more { (self.0, more) } else { (more, self.0) };
        Self(large + (small - large).exp2().ln_1p() / std::f64::consts::LN_2)
    }
}

impl Worth {
    /// With half a use more.
    fn and_half(self, now: f64) -> Self {
        self.and(1, now - 1.0)
    }
}

impl PartialEq for Worth {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Worth {}

impl PartialOrd for Worth {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Worth {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The time that worths are measured in, and those of blocks that went.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// In half-lives.
    now: f64,
    gone: HashMap<BlockId, Worth>,
    /// Blocks that are likely to be used, and since when.
    expected: HashMap<BlockId, f64>,
}

impl Uses {
    /// A block's worth after so many uses more, where so many blocks are kept.
    pub(super) fn count(&mut self, worth: Worth, times: u32, kept: u64) -> Worth {
        // Blocks are fewer than a float counts exactly.
        #[expect(clippy::cast_precision_loss, reason = "a rate, where the last digit is noise")]
        let life = HALF_LIFE * kept.max(1) as f64;
        self.now += f64::from(times.max(1)) / life;
        worth.and(times, self.now)
    }

    /// A block that is not kept is likely to be used: it is worth half a use more, however
    /// often that is said, until it is kept.
    pub(super) fn expect(&mut self, id: BlockId) {
        if self.expected.len() >= EXPECTED {
            self.expected.clear();
        }
        self.expected.insert(id, self.now);
    }

    /// What a block that is not kept is worth to somebody who wishes it.
    pub(super) fn of(&self, id: &BlockId) -> Worth {
        let worth = self.gone.get(id).copied().unwrap_or(Worth::WISHED);
        self.expected.get(id).map_or(worth, |since| worth.and_half(*since))
    }

    /// The same, for a block that is kept from here on.
    pub(super) fn recall(&mut self, id: &BlockId) -> Worth {
        let worth = self.of(id);
        self.gone.remove(id);
        self.expected.remove(id);
        worth
    }

    /// Forgets all that went.
    pub(super) fn forget(&mut self) {
        self.gone.clear();
        self.expected.clear();
    }

    /// Remembers a block that went, where so many are kept.
    pub(super) fn remember(&mut self, id: BlockId, worth: Worth, kept: u64) {
        if worth <= Worth::WISHED {
            return;
        }
        self.gone.insert(id, worth);
        let most = usize::try_from(kept).unwrap_or(usize::MAX).max(REMEMBERED);
        if self.gone.len() > most.saturating_mul(2) {
            let mut worths: Vec<Worth> = self.gone.values().copied().collect();
            let went = worths.len() - most - 1;
            let (_, least, _) = worths.select_nth_unstable(went);
            let least = *least;
            self.gone.retain(|_, worth| *worth > least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::numbered as id;
    use super::*;

    #[test]
    fn a_use_counts_half_after_a_half_life() {
        let mut uses = Uses::default();
        let once = uses.count(Worth::NONE, 1, 1);
        let twice = uses.count(once, 1, 1);
        assert!(twice > once && once > Worth::NONE);
        // Eight uses later one is worth what two were; seven later it is not.
        let mut other = Uses::default();
        let two = other.count(Worth::NONE, 2, 1);
        let mut last = Worth::NONE;
        for n in 0..9 {
            last = other.count(Worth::NONE, 1, 1);
            assert_eq!(last > two, n >= 8, "{last:?} {two:?}");
        }
        // Counted at once or one by one, at the same time it is the same.
        let at_once = Worth::NONE.and(5, 3.0);
        let one_by_one = (0..5).fold(Worth::NONE, |worth, _| worth.and(1, 3.0));
        assert!((at_once.0 - one_by_one.0).abs() < 1e-9);
        assert!(last.0.is_finite());
    }

    #[test]
    fn years_of_uses_do_not_wear_it_out() {
        let mut uses = Uses { now: 1e12, ..Uses::default() };
        let old = uses.count(Worth::NONE, u32::MAX, 1);
        let new = uses.count(Worth::NONE, 1, 1);
        assert!(new.0.is_finite() && old.0.is_finite());
        assert!(uses.count(old, 1, u64::MAX) >= old);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_most_used_stays() {
        let mut uses = Uses::default();
        let dear = uses.count(Worth::NONE, 1 << 20, 1 << 20);
        uses.remember(id(u64::MAX), dear, 1);
        for n in 0..5 * REMEMBERED as u64 {
            let worth = uses.count(Worth::NONE, 1, 1 << 20);
            uses.remember(id(n), worth, 1);
            assert!(uses.gone.len() <= 2 * REMEMBERED);
        }
        assert_eq!(uses.of(&id(u64::MAX)), dear);
        assert_eq!(uses.recall(&id(u64::MAX)), dear);
        assert_eq!(uses.of(&id(u64::MAX)), Worth::WISHED);
        // What was never used is not remembered.
        uses.remember(id(u64::MAX), Worth::NONE, 1);
        uses.remember(id(u64::MAX), Worth::WISHED, 1);
        assert!(!uses.gone.contains_key(&id(u64::MAX)));
        // As many are left as are to be, whatever the bound was before.
        let mut uses = Uses::default();
        for n in 0..3 * REMEMBERED as u64 {
            let worth = uses.count(Worth::NONE, 1, 1 << 20);
            uses.remember(id(n), worth, 1 << 20);
        }
        let last = uses.count(Worth::NONE, 1, 1);
        uses.remember(id(u64::MAX), last, 1);
        assert_eq!(uses.gone.len(), REMEMBERED);
        assert_eq!(uses.of(&id(u64::MAX)), last);
    }

    #[test]
    fn a_wish_is_more_than_nothing_and_less_than_any_use() {
        let mut uses = Uses::default();
        let used = uses.count(Worth::NONE, 1, 1);
        assert!(Worth::NONE < Worth::WISHED && Worth::WISHED < used);
        assert_eq!(uses.of(&id(1)), Worth::WISHED);
        // It does not count when the block is used.
        let mut others = Uses::default();
        assert_eq!(others.count(Worth::WISHED, 1, 1), used);
        uses.remember(id(1), used, 1);
        assert_eq!(uses.of(&id(1)), used);
        uses.forget();
        assert_eq!(uses.of(&id(1)), Worth::WISHED);
    }
}

//! How a device's capacity is divided.

use std::collections::BTreeMap;

use tpad_store::CacheClass;

use crate::HbmError;

/// Room for fills in flight: this part of the capacity ...
const HEADROOM_PART: u64 = 32;
/// ... and no more than this: the bus fills it in 20 ms.
const HEADROOM_BYTES: u64 = 1 << 30;

/// The division of one device's capacity.
///
/// Unlike in host memory nothing is set aside for blocks that were given up and are
/// still read: where they take the room, fills are refused, and host memory serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budgets {
    /// Bytes that may be kept, by all classes together.
    pub(crate) kept: u64,
    classes: BTreeMap<String, u64>,
    rest: u64,
    headroom: u64,
}

impl Budgets {
    /// Divides `capacity`. Budgets that fit in the capacity but not in what may be kept
    /// are lowered alike.
    pub(crate) fn of(capacity: u64, classes: &BTreeMap<String, u64>) -> Result<Self, HbmError> {
        let headroom = (capacity / HEADROOM_PART).min(HEADROOM_BYTES);
        let kept = capacity - headroom;
        let budgets = classes.values().fold(0u64, |sum, budget| sum.saturating_add(*budget));
        if budgets > capacity {
            return Err(HbmError::Budgets { budgets, capacity });
        }
        let lowered = |budget: u64| {
            if budgets <= kept {
                return budget;
            }
            let lowered = u128::from(budget) * u128::from(kept) / u128::from(budgets);
            // At most `budget`, since `kept` is less than all of them.
            u64::try_from(lowered).unwrap_or(budget)
        };
        let classes: BTreeMap<String, u64> =
            classes.iter().map(|(class, budget)| (class.clone(), lowered(*budget))).collect();
        let rest = kept - classes.values().sum::<u64>();
        Ok(Self { kept, classes, rest, headroom })
    }

    /// The budget that a class has alone; `None` if it shares the rest.
    pub(crate) fn own(&self, class: &CacheClass) -> Option<u64> {
        self.classes.get(class.as_str()).copied()
    }

    /// What the class may keep, alone or with others.
    pub(crate) fn budget(&self, class: &CacheClass) -> u64 {
        self.own(class).unwrap_or(self.rest)
    }

    /// What the class may keep, where slots are of this size. Headroom that is less than a
    /// slot has room for no fill: where nothing is divided it is kept as well.
    pub(crate) fn budget_in_slots(&self, class: &CacheClass, slot_bytes: u64) -> u64 {
        self.budget(class) + self.useless(slot_bytes)
    }

    /// What all classes together may keep, where slots are of this size.
    pub(crate) fn kept_in_slots(&self, slot_bytes: u64) -> u64 {
        self.kept + self.useless(slot_bytes)
    }

    /// Of the headroom what no fill could use.
    fn useless(&self, slot_bytes: u64) -> u64 {
        let whole = self.classes.is_empty() && self.headroom < slot_bytes;
        if whole { self.headroom } else { 0 }
    }

    /// Whether two classes are kept within the same budget.
    pub(crate) fn share(&self, one: &CacheClass, other: &CacheClass) -> bool {
        one == other || (self.own(one).is_none() && self.own(other).is_none())
    }

    /// The classes with budgets of their own.
    pub(crate) fn classes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.classes.iter().map(|(class, budget)| (class.as_str(), *budget))
    }

    /// What all other classes share.
    pub(crate) fn rest(&self) -> u64 {
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(budgets: &[(&str, u64)]) -> BTreeMap<String, u64> {
        budgets.iter().map(|(class, budget)| ((*class).to_owned(), *budget)).collect()
    }

    #[test]
    fn what_fits_is_taken_and_what_does_not_is_lowered_or_refused() {
        let budgets = Budgets::of(3200, &classes(&[("a", 2000)])).expect("fits");
        assert_eq!((budgets.kept, budgets.rest()), (3100, 1100));
        assert_eq!(budgets.budget(&"a".into()), 2000);
        assert_eq!(budgets.budget(&"b".into()), 1100);
        assert!(
            budgets.share(&"b".into(), &"c".into()) && !budgets.share(&"a".into(), &"c".into())
        );
        assert_eq!(budgets.budget_in_slots(&"b".into(), 101), 1100, "the rest of a division");
        let whole = Budgets::of(3200, &classes(&[])).expect("fits");
        assert_eq!(whole.budget_in_slots(&"b".into(), 100), 3100, "a fill has room");
        assert_eq!(whole.budget_in_slots(&"b".into(), 101), 3200, "it would have none");
        assert_eq!((whole.kept_in_slots(100), whole.kept_in_slots(101)), (3100, 3200));
        let budgets = Budgets::of(3200, &classes(&[("a", 1600), ("b", 1600)])).expect("fits");
        assert_eq!((budgets.budget(&"a".into()), budgets.rest()), (1550, 0));
        let refused = Budgets::of(3200, &classes(&[("a", u64::MAX), ("b", 1)])).expect_err("more");
        assert_eq!(refused, HbmError::Budgets { budgets: u64::MAX, capacity: 3200 });
    }
}

//! How the capacity is divided: what may be kept, and by whom.

use std::collections::BTreeMap;

use crate::{CacheClass, StoreError};

/// Room for fills in flight: this part of the capacity ...
const HEADROOM_PART: u64 = 8;
/// ... and no more than this, which keeps the fastest origins busy.
const HEADROOM_BYTES: u64 = 4 << 30;

/// The division of a capacity.
///
/// `capacity = headroom + kept x 5 / 4`: fills in flight, what is kept, and a
/// quarter of that for blocks which were given up while someone still reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budgets {
    /// Bytes of fills in flight.
    pub(crate) headroom: u64,
    /// Bytes that may be kept, by all classes together.
    pub(crate) kept: u64,
    /// Each class's part of them.
    classes: BTreeMap<String, u64>,
    /// The part of the classes that have none of their own.
    rest: u64,
}

fn headroom(capacity: u64) -> u64 {
    (capacity / HEADROOM_PART).min(HEADROOM_BYTES)
}

/// What may be kept of a capacity, by all classes together.
pub(crate) fn kept_bytes(capacity: u64) -> u64 {
    (capacity - headroom(capacity)) / 5 * 4
}

impl Budgets {
    /// Divides `capacity`. Budgets that fit in the capacity but not in what may
    /// be kept are lowered alike.
    pub(crate) fn of(capacity: u64, classes: &BTreeMap<String, u64>) -> Result<Self, StoreError> {
        let (headroom, kept) = (headroom(capacity), kept_bytes(capacity));
        let sum = classes.values().try_fold(0u64, |sum, budget| sum.checked_add(*budget));
        let sum = sum.filter(|sum| *sum <= capacity).ok_or(StoreError::Budgets {
            budgets: classes.values().fold(0, |sum: u64, budget| sum.saturating_add(*budget)),
            capacity,
        })?;
        let lowered = |budget: u64| {
            if sum <= kept {
                return budget;
            }
            let lowered = u128::from(budget) * u128::from(kept) / u128::from(sum);
            // At most `budget`, since `kept` is less than `sum`.
            u64::try_from(lowered).unwrap_or(budget)
        };
        let classes: BTreeMap<String, u64> =
            classes.iter().map(|(class, budget)| (class.clone(), lowered(*budget))).collect();
        let rest = kept - classes.values().sum::<u64>();
        Ok(Self { headroom, kept, classes, rest })
    }

    /// The budget that a class has alone; `None` if it shares the rest.
    pub(crate) fn own(&self, class: &CacheClass) -> Option<u64> {
        self.classes.get(class.as_str()).copied()
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
    fn budgets_that_fit_are_taken_as_they_are() {
        let budgets = Budgets::of(8000, &classes(&[("a", 2000), ("b", 1000)])).expect("fits");
        assert_eq!((budgets.headroom, budgets.kept, budgets.rest()), (1000, 5600, 2600));
        assert_eq!(budgets.own(&"a".into()), Some(2000));
        assert_eq!(budgets.own(&"c".into()), None);
    }

    #[test]
    fn budgets_of_all_the_capacity_are_lowered_alike() {
        let budgets = Budgets::of(8000, &classes(&[("a", 6000), ("b", 2000)])).expect("fits");
        assert_eq!(budgets.own(&"a".into()), Some(4200));
        assert_eq!(budgets.own(&"b".into()), Some(1400));
        assert_eq!(budgets.rest(), 0);
    }

    #[test]
    fn budgets_beyond_the_capacity_are_refused_with_both_numbers() {
        let error = Budgets::of(8000, &classes(&[("a", 6000), ("b", 2001)])).expect_err("more");
        assert_eq!(error, StoreError::Budgets { budgets: 8001, capacity: 8000 });
        assert!(Budgets::of(8000, &classes(&[("a", u64::MAX), ("b", 2)])).is_err());
    }
}

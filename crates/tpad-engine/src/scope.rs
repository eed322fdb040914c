//! What a pin or an eviction is about: tiers, groups or experts of a model.

use std::collections::BTreeSet;
use std::fmt;

use tpad_manifest::{ExpertKey, TierId};

/// Tiers, groups and experts, which add up. A tier's routers go with it when the
/// whole tier is named.
///
/// Sorted and without repeats, so that equal scopes compare equal however they
/// were written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    tiers: BTreeSet<TierId>,
    groups: BTreeSet<(TierId, u32)>,
    experts: BTreeSet<(TierId, u32, u32)>,
    layers: BTreeSet<u32>,
}

impl Scope {
    /// These, at these layers; no layer is every layer at which they exist.
    pub fn new(
        tiers: impl IntoIterator<Item = TierId>,
        groups: impl IntoIterator<Item = (TierId, u32)>,
        experts: impl IntoIterator<Item = ExpertKey>,
        layers: impl IntoIterator<Item = u32>,
    ) -> Self {
        let experts = experts.into_iter();
        Self {
            tiers: tiers.into_iter().map(canonical).collect(),
            groups: groups.into_iter().map(|(tier, group)| (canonical(tier), group)).collect(),
            experts: experts.map(|key| (canonical(key.tier), key.group, key.expert)).collect(),
            layers: layers.into_iter().collect(),
        }
    }

    /// All of these tiers.
    pub fn of_tiers(tiers: impl IntoIterator<Item = TierId>) -> Self {
        Self::new(tiers, [], [], [])
    }

    /// Whether it names nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty() && self.groups.is_empty() && self.experts.is_empty()
    }

    /// How many things it names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tiers.len() + self.groups.len() + self.experts.len() + self.layers.len()
    }

    pub(crate) fn tiers(&self) -> impl Iterator<Item = &TierId> {
        self.tiers.iter()
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = (&TierId, u32)> {
        self.groups.iter().map(|(tier, group)| (tier, *group))
    }

    pub(crate) fn experts(&self) -> impl Iterator<Item = (&TierId, u32, u32)> {
        self.experts.iter().map(|(tier, group, expert)| (tier, *group, *expert))
    }

    pub(crate) fn layers(&self) -> &BTreeSet<u32> {
        &self.layers
    }
}

/// As the id's text reads back: `Name("7")` and `Number(7)` are one.
fn canonical(tier: TierId) -> TierId {
    tier.to_string().parse().unwrap_or(tier)
}

impl fmt::Display for Scope {
    /// `tier_1b, tier_10b/0, tier_10b/1/3 at layers 1, 5`: at most eight of each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tiers = self.tiers.iter().map(ToString::to_string);
        let groups = self.groups.iter().map(|(tier, group)| format!("{tier}/{group}"));
        let experts = self.experts.iter();
        let experts = experts.map(|(tier, group, expert)| format!("{tier}/{group}/{expert}"));
        write_some(f, tiers.chain(groups).chain(experts))?;
        if !self.layers.is_empty() {
            f.write_str(" at layers ")?;
            write_some(f, self.layers.iter().map(ToString::to_string))?;
        }
        Ok(())
    }
}

fn write_some(f: &mut fmt::Formatter<'_>, mut items: impl Iterator<Item = String>) -> fmt::Result {
    let shown: Vec<String> = items.by_ref().take(8).collect();
    f.write_str(&shown.join(", "))?;
    match items.count() {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(text: &str) -> TierId {
        text.parse().expect("a tier id")
    }

    #[test]
    fn scopes_are_equal_however_they_were_written() {
        let key = |expert| ExpertKey { tier: tier("a"), group: 0, expert };
        let one = Scope::new([tier("7"), tier("b")], [], [key(1), key(0)], [5, 1]);
        let name = TierId::Name("7".into());
        let two = Scope::new([tier("b"), name.clone(), name], [], [key(0), key(1), key(1)], [1, 5]);
        assert_eq!(one, two);
        assert_eq!(one.to_string(), "7, b, a/0/0, a/0/1 at layers 1, 5");
        assert!(Scope::new([], [], [], [3]).is_empty());
    }

    #[test]
    fn long_scopes_are_cut_short() {
        let scope = Scope::new([], (0..20).map(|group| (tier("a"), group)), [], []);
        assert!(scope.to_string().ends_with("a/7 and 12 more"), "{scope}");
    }
}

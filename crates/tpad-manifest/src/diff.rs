//! What changed between two revisions, and what each change means for workers
//! that use the older one.
//!
//! One set of rules for everybody: a daemon that loads a revision, a publisher
//! who adds a tier and `tpactl manifest diff` all ask here.

mod blocks;
mod change;
mod record;

pub use change::{Change, Effect};

use crate::{IndexHeader, Manifest, Problem, Segment, TierId};

/// Changes that are listed one by one; beyond them only their number is known.
/// A replaced checkpoint alters every block, and nobody reads ten million lines.
const LISTED: usize = 1024;

/// The changes from one revision to a later one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    listed: Vec<Change>,
    omitted: u64,
    omitted_breaking: u64,
}

impl Changes {
    /// What the documents alone tell, the earlier revision first: going back is
    /// allowed wherever going forth is. Where an index changed, its blocks tell
    /// more: replace that entry with [`Changes::refine`].
    #[must_use]
    pub fn between(old: &Manifest, new: &Manifest) -> Self {
        let mut changes = Self::default();
        record::compare(old, new, &mut changes);
        changes
    }

    /// The changes, at most 1024 of them.
    #[must_use]
    pub fn list(&self) -> &[Change] {
        &self.listed
    }

    /// Changes that are not listed.
    #[must_use]
    pub const fn omitted(&self) -> u64 {
        self.omitted
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.omitted == 0
    }

    /// The weightiest effect of all changes; `None` when there are none.
    #[must_use]
    pub fn effect(&self) -> Option<Effect> {
        let omitted = match (self.omitted_breaking, self.omitted) {
            (1.., _) => Some(Effect::Breaking),
            (0, 1..) => Some(Effect::Metadata),
            (0, 0) => None,
        };
        self.listed.iter().map(Change::effect).max().max(omitted)
    }

    /// Changes that break workers of the older revision.
    pub fn breaking(&self) -> impl Iterator<Item = &Change> {
        self.listed.iter().filter(|change| change.effect() == Effect::Breaking)
    }

    /// The tiers, and the dense tensors as `None`, whose indexes differ, of which
    /// only the blocks tell what changed.
    #[must_use]
    pub fn altered_indexes(&self) -> Vec<Option<TierId>> {
        let altered = self.listed.iter().filter_map(|change| match change {
            Change::IndexAltered { tier } => Some(tier.clone()),
            _ => None,
        });
        altered.collect()
    }

    /// Says of one altered index what its blocks tell.
    pub fn refine(&mut self, tier: Option<&TierId>, blocks: Self) {
        let found = |change: &Change| matches!(change, Change::IndexAltered { tier: altered } if altered.as_ref() == tier);
        self.listed.retain(|change| !found(change));
        self.extend(blocks);
    }

    /// Adds what one layer of an index tells. Segments that a side does not have
    /// are `None`.
    pub fn compare_layer(
        &mut self,
        tier: &TierId,
        layer: u32,
        old: Option<(&IndexHeader, &Segment)>,
        new: Option<(&IndexHeader, &Segment)>,
    ) {
        blocks::layer(tier, layer, old, new, self);
    }

    /// Adds what the dense indexes tell.
    pub fn compare_dense(
        &mut self,
        old: Option<(&IndexHeader, &Segment)>,
        new: Option<(&IndexHeader, &Segment)>,
    ) {
        blocks::dense(old, new, self);
    }

    /// Adds the changes of `others`.
    pub fn extend(&mut self, others: Self) {
        others.listed.into_iter().for_each(|change| self.add(change));
        self.omitted = self.omitted.saturating_add(others.omitted);
        self.omitted_breaking = self.omitted_breaking.saturating_add(others.omitted_breaking);
    }

    /// The breaking changes as problems, if the versions do not announce them: a
    /// later revision may break earlier workers only under another major.
    #[must_use]
    pub fn unannounced(&self, old: &Manifest, new: &Manifest) -> Vec<Problem> {
        if old.model_version.major != new.model_version.major {
            return Vec::new();
        }
        let problem = |change: &Change| Problem::new(change.place(), change.to_string());
        let mut problems: Vec<Problem> = self.breaking().map(problem).collect();
        if self.omitted_breaking > 0 {
            problems.push(Problem::new("", format!("and {} more", self.omitted_breaking)));
        }
        problems
    }

    fn add(&mut self, change: Change) {
        if self.listed.len() < LISTED {
            self.listed.push(change);
            return;
        }
        self.omitted += 1;
        self.omitted_breaking += u64::from(change.effect() == Effect::Breaking);
    }
}

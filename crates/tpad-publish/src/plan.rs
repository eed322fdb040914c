//! Plans: which experts form which tier and group.
//!
//! A plan is a TOML file that people write, so an unknown key is refused and
//! all problems are reported together, each with its place.

mod assign;
mod document;
mod error;
mod experts;

use std::collections::BTreeMap;

use tpad_manifest::{Placement, Problem, Rejected, TierId};

pub(crate) use assign::{Assignment, assign};
pub use error::PlanError;
pub(crate) use experts::{ExpertList, ranges};

/// A plan that reads well; whether it fits a checkpoint shows when it is
/// applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(crate) tiers: Vec<TierPlan>,
    pub(crate) unused: Members,
    pub(crate) default_tier_set: Option<Vec<TierId>>,
    pub(crate) tier_sets: BTreeMap<String, Vec<TierId>>,
}

/// One tier of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TierPlan {
    pub(crate) id: TierId,
    pub(crate) placement: Placement,
    pub(crate) parameter_budget: Option<u64>,
    pub(crate) k_tier: Option<u32>,
    pub(crate) k_group: Option<u32>,
    pub(crate) k_expert: Option<u32>,
    pub(crate) groups: Vec<Members>,
}

/// The experts of a group, in the order of their new numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    /// At every layer that is not named below.
    pub(crate) experts: ExpertList,
    /// At these layers.
    pub(crate) layers: BTreeMap<u32, ExpertList>,
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// [`PlanError::Syntax`] when the text is no TOML, names an unknown key or
    /// lacks one; [`PlanError::Rejected`] with every value that cannot be
    /// used.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let document: document::Document = toml::from_str(text).map_err(Box::new)?;
        let mut problems = Vec::new();
        let plan = document.check(&mut problems);
        if problems.is_empty() { Ok(plan) } else { Err(Rejected(problems).into()) }
    }
}

impl Members {
    /// The experts at a layer, and where the plan says so.
    pub(crate) fn at(&self, layer: u32) -> (&ExpertList, String) {
        match self.layers.get(&layer) {
            Some(experts) => (experts, format!("/layers/{layer}")),
            None => (&self.experts, "/experts".into()),
        }
    }
}

/// Notes a problem.
pub(crate) fn wrong(
    problems: &mut Vec<Problem>,
    place: impl Into<String>,
    what: impl Into<String>,
) {
    problems.push(Problem::new(place, what));
}

//! Why a plan is refused.

use tpad_manifest::Rejected;

/// Why a plan is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The text is no plan.
    #[error("the plan cannot be read: {0}")]
    Syntax(#[from] Box<toml::de::Error>),
    /// The plan does not fit the checkpoint, or itself. Places are JSON
    /// pointers into the plan; every problem is listed.
    #[error("the plan does not fit: {0}")]
    Rejected(#[from] Rejected),
    /// Nothing says how many experts a token uses.
    #[error(
        "config.json does not say how many experts a token uses (num_experts_per_tok); add it, or \
         give a plan with k_expert"
    )]
    NoExpertsPerToken,
}

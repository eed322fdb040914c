//! Plans: which experts form which tier and group.

mod error;

pub use error::PlanError;

/// A plan, as its TOML file spells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// When the text is no TOML, names an unknown key, or a value cannot be
    /// read.
    pub fn parse(_text: &str) -> Result<Self, PlanError> {
        Ok(Self {})
    }
}

//! The seam between the hierarchy and what keeps blocks.

use crate::Medium;

/// A cache of blocks.
pub trait Level: Send + Sync + 'static {
    /// What it is made of.
    fn medium(&self) -> Medium;
}

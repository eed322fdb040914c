//! What can keep a tier from being added.

use tpad_manifest::Rejected;
use tpad_store::{ErrorKind, OriginError};

use crate::{ImportError, LayoutError, PlanError, RevisionError};

/// A tier was not added; the newest revision is what it was.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The checkpoint cannot be read or understood, or something not written.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The parent cannot be read.
    #[error(transparent)]
    Parent(#[from] RevisionError),
    /// The parent was written by a newer version, whose additions would be lost.
    #[error(
        "{url} has format {found}, this tpactl writes {known}: what it does not know would be \
         lost; use a tpactl of that version"
    )]
    Newer {
        /// The parent's document.
        url: String,
        /// Its version.
        found: String,
        /// This one's.
        known: String,
    },
    /// The parent's scoring is not known here, so routing over tiers is not
    /// defined.
    #[error(
        "{url} has a scoring that this version does not know, so no token can be routed over its \
         tiers: use a tpactl that knows it, or, if it is a mistake, publish the manifest with the \
         scoring that the model's router computes (`tpactl manifest show`, then `tpactl publish \
         --major`)"
    )]
    Scoring {
        /// The parent's document.
        url: String,
    },
    /// There is no such tier.
    #[error("{url} has no tier {id}: `tpactl manifest show` lists them")]
    UnknownTier {
        /// The id.
        id: String,
        /// The newest document.
        url: String,
    },
    /// Workers of the newest revision would break.
    #[error("workers of {url} would break: {problems}")]
    Breaking {
        /// The newest document.
        url: String,
        /// Each violation.
        problems: Rejected,
    },
    /// There is a tier of this id with other content.
    #[error("{url} has a tier {id} already: choose another --id")]
    Taken {
        /// The id.
        id: String,
        /// The parent's document.
        url: String,
    },
    /// The experts have more parameters than the budget.
    #[error(
        "the experts of tier {id} have {parameters} logical parameters, {} more than the budget of \
         {budget}: raise --budget or name fewer experts",
        parameters - budget
    )]
    Budget {
        /// The tier.
        id: String,
        /// What its experts have.
        parameters: u64,
        /// What they may have.
        budget: u64,
    },
    /// The checkpoint does not hold what a tier needs.
    #[error("{0}")]
    Checkpoint(Rejected),
    /// Something that exists would change.
    #[error("the checkpoint differs from {url}, which a new tier must leave as it is: {problems}")]
    Differs {
        /// The parent's document.
        url: String,
        /// What differs, and where.
        problems: Rejected,
    },
    /// Someone else published in the meantime.
    #[error(
        "revision {revision} was published by someone else in the meantime: run it again, on top of \
         that; what was uploaded is used again"
    )]
    Overtaken {
        /// The other's revision.
        revision: u64,
    },
    /// It was cancelled.
    #[error("interrupted; nothing was published, and what was uploaded is used again")]
    Cancelled,
}

impl GrowError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Import(error) => error.kind(),
            Self::Parent(error) => error.kind(),
            Self::UnknownTier { .. } => ErrorKind::NotFound,
            Self::Newer { .. }
            | Self::Scoring { .. }
            | Self::Breaking { .. }
            | Self::Taken { .. }
            | Self::Differs { .. }
            | Self::Overtaken { .. } => ErrorKind::FailedPrecondition,
            Self::Budget { .. } | Self::Checkpoint(_) => ErrorKind::InvalidArgument,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

impl From<OriginError> for GrowError {
    fn from(error: OriginError) -> Self {
        Self::Import(error.into())
    }
}

impl From<LayoutError> for GrowError {
    fn from(error: LayoutError) -> Self {
        Self::Import(error.into())
    }
}

impl From<PlanError> for GrowError {
    fn from(error: PlanError) -> Self {
        Self::Import(error.into())
    }
}

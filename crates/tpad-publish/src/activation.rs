//! Activation: deciding, once for all daemons of a root, which revision they
//! serve.
//!
//! Records are numbered, create-only and never changed. Two who decide at once:
//! one wins, the other is told and looks again.

use bytes::Bytes;
use jiff::Timestamp;
use tpad_manifest::{
    ACTIVATIONS, Activation, FORMAT_VERSION, MAX_ACTIVATION_BYTES, Manifest, Problem, Rejected,
    TierId, activation_path,
};
use tpad_store::{Created, ErrorKind, ObjectOrigin, OriginError, OriginOptions};

use crate::revision::{Revision, newest_number, numbers};

/// A decision to record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activate {
    /// The revision; `None` for the highest.
    pub revision: Option<u64>,
    /// Whether, and how, the default tier set changes.
    pub tiers: DefaultTiers,
    /// Why, for people.
    pub reason: Option<String>,
}

/// The tiers that a request without a TierSet gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DefaultTiers {
    /// As the last record has it.
    #[default]
    Unchanged,
    /// The manifest's own.
    Manifest,
    /// These.
    These(Vec<TierId>),
}

/// What a root holds.
#[derive(Clone, Debug)]
pub struct History {
    /// The revisions, oldest first.
    pub revisions: Vec<PublishedRevision>,
    /// The activation records, oldest first.
    pub activations: Vec<Activation>,
    /// The revision that daemons given the root serve; `None` when there is none.
    pub active: Option<u64>,
}

/// One revision.
#[derive(Clone, Debug)]
pub struct PublishedRevision {
    /// Its number.
    pub number: u64,
    /// What it says, or why it is refused.
    pub manifest: Result<Manifest, Rejected>,
}

/// Why a decision is not recorded.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// As the store fails.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// There is no revision.
    #[error("{root} has no revision: publish one with `tpactl import`")]
    NoRevision {
        /// The root.
        root: String,
    },
    /// The revision would be refused by every daemon.
    #[error("revision {revision} of {root} is refused: {source}")]
    Refused {
        /// The root.
        root: String,
        /// Which.
        revision: u64,
        /// Why.
        source: Rejected,
    },
    /// The record does not fit its revision.
    #[error(
        "the activation does not fit revision {revision}: {}",
        .problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
    )]
    Misfit {
        /// Which.
        revision: u64,
        /// Why.
        problems: Vec<Problem>,
    },
    /// A record that is there cannot be read.
    #[error("{path} of {root} is refused: {source}")]
    Record {
        /// The root.
        root: String,
        /// Which.
        path: String,
        /// Why.
        source: Rejected,
    },
    /// There is nothing to go back to.
    #[error(
        "{root} has {count} activation records, a rollback needs two: name a revision with `tpactl activate --revision`"
    )]
    NothingBefore {
        /// The root.
        root: String,
        /// How many there are.
        count: usize,
    },
    /// Somebody else decided at the same time.
    #[error(
        "activation {number} was recorded by somebody else meanwhile: look at `tpactl revisions` and repeat"
    )]
    Overtaken {
        /// The number that both wanted.
        number: u64,
    },
}

impl ActivationError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Origin(error) => error.kind(),
            Self::NoRevision { .. } => ErrorKind::NotFound,
            Self::Overtaken { .. }
            | Self::Refused { .. }
            | Self::Record { .. }
            | Self::NothingBefore { .. } => ErrorKind::FailedPrecondition,
            Self::Misfit { .. } => ErrorKind::InvalidArgument,
        }
    }
}

/// Records that daemons given `root` serve a revision.
///
/// # Errors
/// When there is no such revision, daemons would refuse it, the tiers do not fit
/// it, or somebody else was faster. Nothing is recorded then.
pub async fn activate(
    root: &str,
    options: &OriginOptions,
    wish: Activate,
) -> Result<Activation, ActivationError> {
    let root = ObjectOrigin::open(root, options)?;
    let last = last(&root).await?;
    let Activate { revision, tiers, reason } = wish;
    let revision = match revision {
        Some(revision) => revision,
        None => newest_number(&root).await?.ok_or_else(|| no_revision(&root))?,
    };
    let default_tier_set = match tiers {
        DefaultTiers::Unchanged => last.as_ref().and_then(|last| last.default_tier_set.clone()),
        DefaultTiers::Manifest => None,
        DefaultTiers::These(tiers) => Some(tiers),
    };
    record(&root, last.as_ref(), revision, default_tier_set, reason).await
}

/// Records that daemons given `root` serve again what they served before the last
/// activation. Done twice, it comes back to that.
///
/// # Errors
/// As [`activate`], and when there is nothing to go back to.
pub async fn rollback(
    root: &str,
    options: &OriginOptions,
    reason: Option<String>,
) -> Result<Activation, ActivationError> {
    let root = ObjectOrigin::open(root, options)?;
    let found = numbers(&root, ACTIVATIONS, activation_path).await?;
    let [.., before, newest] = found[..] else {
        let (root, count) = (root.url().to_owned(), found.len());
        return Err(ActivationError::NothingBefore { root, count });
    };
    let (before, newest) = (read(&root, before).await?, read(&root, newest).await?);
    record(&root, Some(&newest), before.revision, before.default_tier_set, reason).await
}

/// All revisions and activation records of `root`, and what is active.
///
/// # Errors
/// As the store fails, or when a record cannot be read. A revision that is
/// refused is no error.
pub async fn history(root: &str, options: &OriginOptions) -> Result<History, ActivationError> {
    let root = ObjectOrigin::open(root, options)?;
    let mut revisions = Vec::new();
    for number in numbers(&root, tpad_manifest::REVISIONS, tpad_manifest::revision_path).await? {
        let revision = Revision::read(&root, number).await?;
        let manifest = revision.manifest().as_ref();
        let manifest = manifest.map(|loaded| loaded.manifest.clone()).map_err(Clone::clone);
        revisions.push(PublishedRevision { number, manifest });
    }
    let mut activations = Vec::new();
    for number in numbers(&root, ACTIVATIONS, activation_path).await? {
        activations.push(read(&root, number).await?);
    }
    let highest = revisions.last().map(|revision| revision.number);
    let active = activations.last().map(|record| record.revision).or(highest);
    Ok(History { revisions, activations, active })
}

async fn last(root: &ObjectOrigin) -> Result<Option<Activation>, ActivationError> {
    match numbers(root, ACTIVATIONS, activation_path).await?.last() {
        Some(number) => read(root, *number).await.map(Some),
        None => Ok(None),
    }
}

async fn read(root: &ObjectOrigin, number: u64) -> Result<Activation, ActivationError> {
    let path = activation_path(number);
    let document = root.get(&path, MAX_ACTIVATION_BYTES as u64).await?;
    let refused = |source| {
        let (root, path) = (root.url().to_owned(), path.clone());
        ActivationError::Record { root, path, source }
    };
    let record = Activation::parse(&document).map_err(refused)?;
    if record.activation != number {
        let message = format!("{} is said, {number} is its name", record.activation);
        return Err(refused(Rejected(vec![Problem::new("/activation", message)])));
    }
    Ok(record)
}

async fn record(
    root: &ObjectOrigin,
    last: Option<&Activation>,
    revision: u64,
    default_tier_set: Option<Vec<TierId>>,
    reason: Option<String>,
) -> Result<Activation, ActivationError> {
    let target = Revision::read(root, revision).await?;
    let refused = |source: &Rejected| {
        let (root, source) = (root.url().to_owned(), source.clone());
        ActivationError::Refused { root, revision, source }
    };
    let manifest = &target.manifest().as_ref().map_err(refused)?.manifest;
    let activation = Activation {
        format_version: FORMAT_VERSION,
        activation: last.map_or(1, |last| last.activation.saturating_add(1)),
        revision,
        default_tier_set,
        created_at: Some(now()),
        reason,
    };
    let problems = activation.check(manifest);
    if !problems.is_empty() {
        return Err(ActivationError::Misfit { revision, problems });
    }
    // What is written is what daemons will read.
    let document = activation.to_json();
    if let Err(Rejected(problems)) = Activation::parse(document.as_bytes()) {
        return Err(ActivationError::Misfit { revision, problems });
    }
    let (path, document) = (activation_path(activation.activation), Bytes::from(document));
    match root.create(&path, document.clone()).await {
        Ok(Created::New) => Ok(activation),
        Ok(Created::Exists) => Err(ActivationError::Overtaken { number: activation.activation }),
        // It may have been written although the answer got lost: look.
        Err(error) => match root.get(&path, document.len() as u64).await {
            Ok(found) if found == document => Ok(activation),
            _ => Err(error.into()),
        },
    }
}

fn no_revision(root: &ObjectOrigin) -> ActivationError {
    ActivationError::NoRevision { root: root.url().to_owned() }
}

/// To the second, as people read it.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

//! What can keep a checkpoint from being imported.

use std::sync::Arc;

use tpad_manifest::{BuildError, Rejected, SizeError};
use tpad_store::{ErrorKind, OriginError};

use crate::{LayoutError, PlanError, ShardError};

/// Names that an error lists before it counts the rest.
const LISTED: usize = 8;

/// A checkpoint was not imported; nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The checkpoint cannot be read, or the revision not written.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// There is no checkpoint.
    #[error("{root} holds no safetensors files{}", hint(below))]
    NoShards {
        /// Where it was looked for.
        root: String,
        /// Directories below that hold some.
        below: Vec<String>,
    },
    /// Shards are missing.
    #[error(
        "the checkpoint is incomplete: {} missing: download the rest",
        list_and(shards, *more, "is", "are")
    )]
    MissingShards {
        /// The paths of the first ones.
        shards: Vec<String>,
        /// How many there are besides.
        more: u64,
    },
    /// The index file cannot be read.
    #[error("{file}: {problem}")]
    IndexFile {
        /// Its path.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The index file and the shards disagree.
    #[error("{file} does not match the shards: {}", list(problems, "", ""))]
    IndexMismatch {
        /// The index file's path.
        file: String,
        /// What disagrees.
        problems: Vec<String>,
    },
    /// A shard's header was refused.
    #[error(transparent)]
    Shard(ShardError),
    /// A tensor is there twice.
    #[error(
        "tensor {name} is in {first} and in {second}: only one can be meant; add a \
         model.safetensors.index.json or remove the other"
    )]
    DuplicateTensor {
        /// Its name.
        name: Arc<str>,
        /// A shard that holds it.
        first: Arc<str>,
        /// Another one.
        second: Arc<str>,
    },
    /// The configuration is no JSON.
    #[error("config.json: {problem}")]
    Config {
        /// What is wrong with it.
        problem: String,
    },
    /// The layout is not known, or broken.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The plan does not fit the checkpoint.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A tensor has no size.
    #[error("tensor {name}: {source}: this version of tpad cannot index it")]
    Size {
        /// Its name.
        name: Arc<str>,
        /// Why.
        source: SizeError,
    },
    /// The blocks do not form an index.
    #[error("the index cannot be built: {0}")]
    Build(#[from] BuildError),
    /// A shard changed while it was read.
    #[error("{object} changed while it was imported: wait until it is complete and import again")]
    Changed {
        /// Its path.
        object: String,
    },
    /// The manifest would break its own rules.
    #[error("the manifest would be refused: {0}")]
    Rejected(Rejected),
    /// Someone else published in the meantime.
    #[error(
        "revision {revision} was published by someone else in the meantime and says something \
         else; look at it with `tpactl manifest show`, then import again"
    )]
    Overtaken {
        /// The other's revision.
        revision: u64,
    },
    /// It was cancelled.
    #[error("interrupted; nothing was published")]
    Cancelled,
}

impl ImportError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Origin(error) => error.kind(),
            Self::NoShards { .. } => ErrorKind::NotFound,
            Self::MissingShards { .. } | Self::Shard(_) => ErrorKind::DataLoss,
            Self::IndexFile { .. }
            | Self::IndexMismatch { .. }
            | Self::DuplicateTensor { .. }
            | Self::Config { .. }
            | Self::Layout(_)
            | Self::Plan(_)
            | Self::Rejected(_)
            | Self::Size { .. } => ErrorKind::InvalidArgument,
            Self::Build(_) => ErrorKind::Internal,
            Self::Changed { .. } | Self::Overtaken { .. } => ErrorKind::FailedPrecondition,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

fn list(names: &[String], one: &str, many: &str) -> String {
    list_and(names, 0, one, many)
}

fn list_and(names: &[String], more: u64, one: &str, many: &str) -> String {
    let shown = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    let verb = if names.len() == 1 && more == 0 { one } else { many };
    let rest = more.saturating_add(names.len().saturating_sub(LISTED) as u64);
    let text = if rest == 0 { shown } else { format!("{shown} and {rest} more") };
    format!("{text} {verb}").trim_end().to_owned()
}

fn hint(below: &[String]) -> String {
    match below {
        [] => String::new(),
        below => {
            format!(": there are some in {}, which can be imported as a root", list(below, "", ""))
        }
    }
}

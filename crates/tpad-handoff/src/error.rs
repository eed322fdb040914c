//! What can be wrong with a piece of shared memory.

use std::fmt;
use std::io;

use thiserror::Error;

/// Which piece of shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// Where blocks lie.
    Directory,
    /// What a worker reads.
    Hazards,
    /// What a worker used, and how often.
    Uses,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "directory",
            Self::Hazards => "hazards",
            Self::Uses => "use counters",
        })
    }
}

/// Why a piece of shared memory could not be made, taken over or written.
///
/// Blocks can be fetched all the same, by copy: who gets one of these goes on
/// without handoff.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refuses memory, a descriptor or a mapping.
    #[error("memory of the {kind} cannot be made or mapped")]
    System {
        /// Of which piece.
        kind: Kind,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Whoever made it can still shorten it, and kill by that who reads it.
    #[error("memory of the {kind} is not sealed against shrinking")]
    NotSealed {
        /// Of which piece.
        kind: Kind,
    },
    /// Less memory than what its header promises, or more than can be mapped.
    #[error("memory of the {kind} has {bytes} bytes, which must be at least {least} and mappable")]
    Size {
        /// Of which piece.
        kind: Kind,
        /// What there is.
        bytes: u64,
        /// What there has to be.
        least: u64,
    },
    /// The descriptor is of something else.
    #[error("the descriptor received for the {kind} is of something else")]
    Foreign {
        /// What was expected.
        kind: Kind,
    },
    /// The daemon is of another version.
    #[error(
        "the {kind} have layout {found}, this program knows {known}: use programs of one version"
    )]
    Layout {
        /// Of which piece.
        kind: Kind,
        /// What the header says.
        found: u64,
        /// What this program was built with.
        known: u64,
    },
    /// Not an ordinal of this directory.
    #[error("a directory of {count} blocks has no ordinal {ordinal}")]
    Ordinal {
        /// What was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
}

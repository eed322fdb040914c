//! What can keep a checkpoint from being made.

use std::io;
use std::path::PathBuf;

use super::PRESETS;

/// A checkpoint was not made.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// No preset has this name.
    #[error("there is no preset {name:?}: known are {}", PRESETS.join(", "))]
    UnknownPreset {
        /// The name that was asked for.
        name: String,
    },
    /// No model could have this shape.
    #[error("{0}")]
    Shape(String),
    /// The directory holds something.
    #[error("{0} is not an empty directory: name one that does not exist")]
    Occupied(PathBuf),
    /// The file system has too little space.
    #[error("{path} has {free} bytes free, and {needed} are needed: make it smaller with a scale")]
    Space {
        /// Where the checkpoint should go.
        path: PathBuf,
        /// Bytes free there.
        free: u64,
        /// Bytes that the checkpoint takes.
        needed: u64,
    },
    /// A file or directory cannot be written.
    #[error("cannot write {path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It was cancelled; nothing is left.
    #[error("interrupted; nothing was left behind")]
    Cancelled,
}

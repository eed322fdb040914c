//! Exceptions: the client's errors by kind, with what the daemon said.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use tpad_client::{Error, Refusal};

/// Why something failed, before it is an exception: those are made with the GIL.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client's.
    Client(Error),
    /// The client's, which several wait for.
    Shared(Arc<Error>),
    /// This crate's own.
    Said {
        /// As [`tpad_client::Kind::as_str`] writes kinds.
        kind: &'static str,
        /// For people.
        message: String,
        /// What programs compare; may be empty.
        reason: &'static str,
        /// What helps; without one, what helps against the kind.
        remedy: Option<String>,
    },
    /// An exception that is there already.
    Raised(PyErr),
}

impl Failure {
    /// One of this crate's own.
    pub(crate) fn said(kind: &'static str, message: impl Into<String>) -> Self {
        Self::Said { kind, message: message.into(), reason: "", remedy: None }
    }

    /// What a child says of its parent's things.
    pub(crate) fn forked(parent: u32) -> Self {
        let message = format!(
            "this was made by process {parent}, and process {} was forked from it: connections and \
             memory of the daemon do not survive a fork",
            std::process::id()
        );
        let remedy = "call tpad.connect in each process, or start them by `spawn`".to_owned();
        Self::Said { kind: "failed_precondition", message, reason: "FORKED", remedy: Some(remedy) }
    }

    /// Whether the daemon's memory cannot be had for a reason that does not keep the bytes
    /// from being fetched.
    pub(crate) fn is_of_the_handoff(&self) -> bool {
        matches!(
            self,
            Self::Client(error) if matches!(
                error.kind(),
                tpad_client::Kind::ResourceExhausted | tpad_client::Kind::Unavailable
            )
        )
    }

    /// The exception.
    pub(crate) fn raise(self, py: Python<'_>) -> PyErr {
        let made = match self {
            Self::Raised(error) => return error,
            Self::Client(error) => of_client(py, &error),
            Self::Shared(error) => of_client(py, &error),
            Self::Said { kind, message, reason, remedy } => {
                let details = PyDict::new(py);
                let filled = details.set_item("reason", reason);
                filled
                    .and_then(|()| details.set_item("remedy", remedy))
                    .and_then(|()| build(py, kind, &message, &details))
            }
        };
        made.unwrap_or_else(|error| error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

fn of_client(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let kind = match error {
        Error::Connect { .. } | Error::Disconnected { .. } => "disconnected",
        Error::Gpu { .. } | Error::NoGpu { .. } | Error::NotHandedOver { .. } => "gpu",
        error => error.kind().as_str(),
    };
    let details = PyDict::new(py);
    if let Some(Refusal { code, reason, metadata, retry_after, .. }) = error.refusal() {
        details.set_item("code", code)?;
        details.set_item("reason", reason)?;
        details.set_item("metadata", metadata)?;
        details.set_item("retry_after", retry_after.map(|after| after.as_secs_f64()))?;
    }
    build(py, kind, &error.to_string(), &details)
}

fn build(
    py: Python<'_>,
    kind: &str,
    message: &str,
    details: &Bound<'_, PyDict>,
) -> PyResult<PyErr> {
    static BUILD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let build = BUILD.import(py, "tpad._errors", "build")?;
    Ok(PyErr::from_value(build.call((kind, message), Some(details))?))
}

//! What a service needs to know of the request that it answers.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Status};
use tpad_engine::EngineError;

use super::status;
use crate::edge::{RequestDeadline, RequestId};

/// One request's deadline and name.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// When the answer has to be complete.
    pub(super) deadline: Instant,
    id: Option<RequestId>,
}

impl Call {
    pub(super) fn of<T>(request: &Request<T>, default_deadline: Duration) -> Self {
        let deadline = request.extensions().get::<RequestDeadline>();
        Self {
            deadline: deadline.map_or_else(|| Instant::now() + default_deadline, |set| set.0),
            id: request.extensions().get::<RequestId>().cloned(),
        }
    }

    /// The request's name in logs and errors; empty where nobody gave it one.
    pub(super) fn id(&self) -> &str {
        self.id.as_ref().map_or("", RequestId::as_str)
    }

    pub(super) fn refuse(&self, error: &EngineError) -> Status {
        status::of(error, self, &[])
    }
}

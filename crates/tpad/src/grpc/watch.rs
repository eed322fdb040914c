//! Watching a model: what it serves, now and whenever that changes.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tonic::Status;
use tpad_engine::{Engine, EngineError};
use tpad_proto::v1::{ModelSummary, WatchModelResponse};

use super::call::Call;
use super::model::summary;

/// A watch, and what its client knows.
struct Watch {
    engine: Arc<Engine>,
    model: String,
    changes: watch::Receiver<u64>,
    call: Call,
    known: Option<ModelSummary>,
}

/// The model as it is now, then what it changes to.
pub(super) fn model(
    engine: Arc<Engine>,
    model: String,
    call: Call,
) -> BoxStream<'static, Result<WatchModelResponse, Status>> {
    let changes = engine.watch_models();
    let watch = Watch { engine, model, changes, call, known: None };
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(model) => Some((Ok(WatchModelResponse { model: Some(model) }), Some(watch))),
            Err(status) => Some((Err(status), None)),
        }
    })
    .boxed()
}

impl Watch {
    async fn next(&mut self) -> Result<ModelSummary, Status> {
        loop {
            if self.known.is_some() && self.changes.changed().await.is_err() {
                return Err(self.call.refuse(&EngineError::Stopping));
            }
            // Marked before the model is looked at, so that no change is lost.
            self.changes.mark_unchanged();
            let view = self.engine.view(&self.model);
            let now = summary(view.map_err(|error| self.call.refuse(&error))?);
            if self.known.as_ref() != Some(&now) {
                self.known = Some(now.clone());
                return Ok(now);
            }
        }
    }
}

//! Watching a model: what it serves, now and whenever that changes.

use futures::stream::{BoxStream, StreamExt as _};
use tonic::Status;
use tpad_proto::v1;

use crate::call::Call;
use crate::{Client, Error, ModelSummary};

/// A model that is followed. Dropping it cancels the call.
pub struct ModelWatch {
    messages: BoxStream<'static, Result<v1::WatchModelResponse, Status>>,
    call: Call,
}

impl Client {
    /// The model now, and again whenever it serves something else, is refused
    /// something newer, or recovers. The client's deadline covers the whole watch:
    /// see [`with_deadline`](Client::with_deadline).
    ///
    /// # Errors
    /// The daemon's refusal: [`Kind::NotFound`](crate::Kind::NotFound) for a model
    /// that it does not have.
    pub async fn watch_model(&self, model: &str) -> Result<ModelWatch, Error> {
        let message = v1::WatchModelRequest { model: model.to_owned() };
        let call = self.call();
        call.attempt(|| async {
            let mut service = self.models();
            let answer = call.wait(service.watch_model(call.request(message.clone())));
            let answer = answer.await?.map_err(|status| call.error(&status))?;
            Ok(ModelWatch { messages: answer.into_inner().boxed(), call: call.clone() })
        })
        .await
    }
}

impl ModelWatch {
    /// What the model is now, as soon as that is news; the first comes at once.
    /// `None` when the daemon ended the watch without an error. Nothing is lost
    /// when the returned future is dropped.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) when the model was unloaded,
    /// [`Kind::Unavailable`](crate::Kind::Unavailable) when the daemon drains; a
    /// broken connection. Nothing comes after an error.
    pub async fn next(&mut self) -> Option<Result<ModelSummary, Error>> {
        let error = match self.call.wait(self.messages.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(message))) => return Some(Ok(message.model.unwrap_or_default().into())),
            Ok(Some(Err(status))) => self.call.error(&status),
            Err(error) => error,
        };
        self.messages = futures::stream::empty().boxed();
        Some(Err(error))
    }
}

impl std::fmt::Debug for ModelWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelWatch").finish_non_exhaustive()
    }
}

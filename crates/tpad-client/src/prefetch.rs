//! Prefetch: blocks brought to the daemon's memory before they are asked for.

use futures::stream::{BoxStream, StreamExt as _};
use serde::Serialize;
use tonic::Status;
use tpad_proto::v1;

use crate::call::Call;
use crate::{Amount, Client, Error, Scope};

/// How far a prefetch is: the sums so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Prefetched {
    /// The manifest's number.
    pub revision: u64,
    /// The daemon's count of swaps.
    pub generation: u64,
    /// What was asked for.
    pub asked: Amount,
    /// What lay in host memory.
    pub there: Amount,
    /// What lies there now.
    pub fetched: Amount,
    /// What memory had no room for: a guess pushes out nothing that has a budget,
    /// and does not wait.
    pub no_room: Amount,
    /// What could not be read.
    pub failed: Amount,
}

/// A prefetch under way. Dropping it cancels it; what is on its way arrives.
pub struct Prefetch {
    messages: BoxStream<'static, Result<v1::PrefetchResponse, Status>>,
    call: Call,
}

impl Client {
    /// Brings blocks to the daemon's host memory, after every fetch that waits.
    ///
    /// # Errors
    /// The daemon's refusal: [`Kind::NotFound`](crate::Kind::NotFound) names what
    /// exists.
    pub async fn prefetch(&self, model: &str, scope: Scope) -> Result<Prefetch, Error> {
        let message = v1::PrefetchRequest { model: model.to_owned(), scope: Some(scope.into()) };
        let call = self.call();
        call.attempt(|| async {
            let mut service = self.experts();
            let answer = call.wait(service.prefetch(call.request(message.clone())));
            let answer = answer.await?.map_err(|status| call.error(&status))?;
            Ok(Prefetch { messages: answer.into_inner().boxed(), call: call.clone() })
        })
        .await
    }
}

impl Prefetch {
    /// How far it is, several times a second; the first comes at once, and after
    /// the one with all that was done comes `None`.
    ///
    /// # Errors
    /// The first failure of a block, after all others were tried; a broken
    /// connection. Nothing comes after an error.
    pub async fn next(&mut self) -> Option<Result<Prefetched, Error>> {
        let error = match self.call.wait(self.messages.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(message))) => return Some(Ok(message.into())),
            Ok(Some(Err(status))) => self.call.error(&status),
            Err(error) => error,
        };
        self.messages = futures::stream::empty().boxed();
        Some(Err(error))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn finish(mut self) -> Result<Prefetched, Error> {
        let mut last = Prefetched::default();
        while let Some(news) = self.next().await {
            last = news?;
        }
        Ok(last)
    }
}

impl std::fmt::Debug for Prefetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefetch").finish_non_exhaustive()
    }
}

impl From<v1::PrefetchResponse> for Prefetched {
    fn from(message: v1::PrefetchResponse) -> Self {
        let v1::PrefetchResponse { revision, generation, asked, there, fetched, no_room, failed } =
            message;
        Self {
            revision,
            generation,
            asked: asked.into(),
            there: there.into(),
            fetched: fetched.into(),
            no_room: no_room.into(),
            failed: failed.into(),
        }
    }
}

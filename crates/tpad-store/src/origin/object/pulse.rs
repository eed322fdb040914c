//! Whether the store answers at all.
//!
//! A store that is gone costs each reader all of its attempts, and one that
//! hangs costs it a timeout for each. Once some attempts in a row had no
//! answer, one small question at a time is put to the store before anything
//! else, and all readers share how it ends: they fail soon while it stays
//! silent, and the first answer lets all of them through.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, Shared};
use futures::{FutureExt as _, TryFutureExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::time::timeout;

use crate::OriginError;

/// Attempts in a row without an answer after which the store counts as silent.
/// One alone may be a connection that a healthy store closed while it rested.
const UNANSWERED: u32 = 2;

/// How long one reader waits for the answer that all wait for. The question
/// itself has the timeouts of the options: a slow store is not a silent one.
const PATIENCE: Duration = Duration::from_secs(1);

type Question = Shared<BoxFuture<'static, Result<(), OriginError>>>;

/// What all readers of one store know of it.
#[derive(Default)]
pub(super) struct Pulse {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    unanswered: u32,
    /// Polled by whoever waits for it, so no task outlives the readers.
    question: Option<Question>,
}

#[derive(Debug, thiserror::Error)]
#[error("the store does not answer")]
struct Silent;

impl Pulse {
    /// Whether the store's last attempts had no answer.
    pub(super) fn is_silent(&self) -> bool {
        self.lock().unanswered >= UNANSWERED
    }

    /// Takes note of how an attempt ended.
    pub(super) fn note<T>(&self, result: &Result<T, OriginError>) {
        let mut state = self.lock();
        match result {
            Err(error) if !error.is_answer() => {
                state.unanswered = state.unanswered.saturating_add(1);
            }
            _ => *state = State::default(),
        }
    }

    /// Returns at once while the store is well; else when it has answered.
    ///
    /// # Errors
    /// When it has not, or not soon enough; `object` is what the caller wants.
    pub(super) async fn awaited(
        &self,
        store: &Arc<dyn ObjectStore>,
        prefix: &Path,
        object: &str,
    ) -> Result<(), OriginError> {
        let question = {
            let mut state = self.lock();
            if state.unanswered < UNANSWERED {
                return Ok(());
            }
            state.question.get_or_insert_with(|| ask(Arc::clone(store), prefix)).clone()
        };
        let Ok(answer) = timeout(PATIENCE, question.clone()).await else {
            let silent = object_store::Error::Generic { store: "origin", source: Silent.into() };
            return Err(OriginError::of(object, silent));
        };
        let mut state = self.lock();
        if state.question.as_ref().is_some_and(|current| current.ptr_eq(&question)) {
            state.question = None;
            if answer.is_ok() {
                state.unanswered = 0;
            }
        }
        answer.map_err(|error| error.about(object))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for something that need not exist: any answer will do.
fn ask(store: Arc<dyn ObjectStore>, prefix: &Path) -> Question {
    let location: Path = prefix.parts().chain(Path::from("tpad").parts()).collect();
    let asked = async move { store.head(&location).await.map(drop) };
    let asked = asked.map_err(|error| OriginError::of("", error));
    let asked = asked.or_else(async |error| if error.is_answer() { Ok(()) } else { Err(error) });
    asked.boxed().shared()
}

#[cfg(test)]
mod tests {
    use object_store::client::{HttpError, HttpErrorKind};
    use object_store::memory::InMemory;

    use super::*;

    fn unanswered() -> Result<(), OriginError> {
        let source = HttpError::new(HttpErrorKind::Connect, std::io::Error::other("refused"));
        let error = object_store::Error::Generic { store: "S3", source: source.into() };
        Err(OriginError::of("s3://b/m/shard", error))
    }

    #[tokio::test]
    async fn a_store_is_silent_after_attempts_in_a_row_and_well_after_any_answer() {
        let pulse = Pulse::default();
        let nonsense = object_store::Error::Generic { store: "S3", source: "nonsense".into() };
        let nonsense = OriginError::of("s3://b/m/shard", nonsense);
        for answer in [Ok(()), Err(OriginError::NotFound { object: "x".into() }), Err(nonsense)] {
            for _ in 0..UNANSWERED {
                assert!(!pulse.is_silent());
                pulse.note(&unanswered());
            }
            assert!(pulse.is_silent());
            pulse.note(&answer);
            assert!(!pulse.is_silent(), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_to_the_question_lets_everyone_through() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let pulse = Pulse::default();
        (0..UNANSWERED).for_each(|_| pulse.note(&unanswered()));
        // There is no such object, which is an answer.
        let asked = pulse.awaited(&store, &Path::from("m"), "s3://b/m/shard").await;
        assert!(asked.is_ok() && !pulse.is_silent(), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_hanging_store_fails_within_a_second_and_keeps_the_question() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let pulse = Pulse::default();
        (0..UNANSWERED).for_each(|_| pulse.note(&unanswered()));
        let (answer, hanging) = tokio::sync::oneshot::channel::<()>();
        let question = hanging.map(|_| Ok(())).boxed().shared();
        pulse.lock().question = Some(question);
        let began = tokio::time::Instant::now();
        let prefix = Path::from("m");
        let readers = [(); 3].map(|()| pulse.awaited(&store, &prefix, "s3://b/m/shard"));
        for end in futures::future::join_all(readers).await {
            let error = end.expect_err("nobody answers");
            assert!(error.to_string().contains("does not answer"), "{error}");
            assert_eq!(error.kind(), crate::ErrorKind::Unavailable);
        }
        assert_eq!(began.elapsed(), PATIENCE);
        answer.send(()).expect("the question is still asked");
        let end = pulse.awaited(&store, &prefix, "s3://b/m/shard").await;
        assert!(end.is_ok() && !pulse.is_silent(), "{end:?}");
    }
}

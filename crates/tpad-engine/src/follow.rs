//! Following a root: looking for a newer activation record or, while there is
//! none, a higher revision, and loading what it names.
//!
//! A look is a listing. What is refused leaves in service what is served; the
//! status says why, and each look tries again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use tokio::time::timeout;

use crate::Generation;
use crate::load::LoadError;
use crate::locate::{Latest, latest};
use crate::model::{Loader, Model, Wish};

impl Model {
    /// Looks at the root every `interval` until the model ends, but not while it
    /// stays on a revision.
    pub(crate) async fn follow(
        &self,
        loader: &Loader,
        interval: Duration,
        changed: &(impl Fn() + Send),
    ) {
        const STAYS: &str = "the root cannot be followed: what is served stays";
        loop {
            tokio::select! {
                () = self.ended() => return,
                () = tokio::time::sleep(jittered(interval)) => {}
            }
            let Some(serving) = self.serving().filter(|_| !self.is_pinned()) else { continue };
            let followed = match is_current(&serving).await {
                Ok(true) if !self.recovered() => continue,
                Ok(true) => Ok(()),
                Ok(false) => self.attempt(loader, Wish::Look).await.map(|_| ()),
                Err(error) => Err(error),
            };
            if let Err(error) = followed {
                self.failed(&error, interval, &loader.shared, STAYS);
            }
            changed();
        }
    }
}

/// Whether the root has nothing newer than what is served.
pub(crate) async fn is_current(serving: &Generation) -> Result<bool, LoadError> {
    let root = serving.root();
    let looked = timeout(serving.patience(), latest(root)).await;
    let looked = looked.map_err(|_| LoadError::Deadline(serving.patience()))?;
    let found = looked.map_err(|source| LoadError::List { root: root.url().into(), source })?;
    Ok(match found {
        Some(Latest::Activation(number)) => serving.activation() == Some(number),
        Some(Latest::Revision(number)) => {
            serving.activation().is_none() && serving.revision() == number
        }
        // Whoever empties a root takes nothing out of service.
        None => true,
    })
}

/// A tenth more or less, so that daemons which began together do not all ask at
/// once.
pub(crate) fn jittered(interval: Duration) -> Duration {
    let dice = RandomState::new().build_hasher().finish() % 1024;
    let part = u32::try_from(dice).unwrap_or_default();
    interval * 9 / 10 + interval / 5 * part / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_differ_by_a_tenth_at_most() {
        let interval = Duration::from_secs(100);
        let all: Vec<Duration> = (0..200).map(|_| jittered(interval)).collect();
        let range = Duration::from_secs(90)..=Duration::from_secs(110);
        assert!(all.iter().all(|one| range.contains(one)), "{all:?}");
        assert!(all.iter().any(|one| *one != all[0]));
    }
}

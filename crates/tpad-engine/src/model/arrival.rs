//! Before a swap: the tiers that a revision adds are brought home while the
//! revision before it is served, so that nobody's first request for them waits
//! for the store.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Loader, Model};
use crate::Generation;
use crate::follow::{is_current, jittered};

/// How the wait for a revision's added tiers ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// They are at home as far as they fit, or it took long enough: swap.
    Arrived,
    /// The root names another revision by now: load that.
    Superseded,
    /// Somebody asked for a reload, which goes first.
    GaveWay,
}

/// What a model is about to serve, until this is dropped. Placement sees it in the
/// place of what the model serves.
pub(super) struct Coming<'m> {
    model: &'m Model,
    loader: &'m Loader,
}

impl<'m> Coming<'m> {
    fn announce(model: &'m Model, loader: &'m Loader, generation: &Arc<Generation>) -> Self {
        model.coming.store(Some(Arc::clone(generation)));
        loader.changed();
        Self { model, loader }
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.model.coming.store(None);
        self.loader.changed();
    }
}

impl Model {
    /// Brings the tiers that `coming` adds to `serving` home, until `deadline` at
    /// the latest, until somebody asks for a `reload`, or while it `follows` the root
    /// until that names another. What is announced stays so as long as the caller
    /// holds it.
    pub(super) async fn bring_home<'m>(
        &'m self,
        loader: &'m Loader,
        serving: &Generation,
        coming: &Arc<Generation>,
        deadline: Instant,
        follows: bool,
        mut reload: Option<Pin<&mut Notified<'_>>>,
    ) -> (Arrival, Option<Coming<'m>>) {
        let added = added(serving, coming);
        // Another major version may have other bytes for what is served: both at
        // home would push each other out.
        let major = |generation: &Generation| generation.manifest().model_version.major;
        let breaks = major(serving) != major(coming);
        if added.is_empty() || breaks || deadline <= Instant::now() {
            return (Arrival::Arrived, None);
        }
        let (revision, tiers) = (coming.revision(), added.join(", "));
        tracing::info!(revision, tiers, "bringing added tiers home before the swap");
        let announced = Coming::announce(self, loader, coming);
        let superseded = async {
            loop {
                match loader.follow.filter(|_| follows) {
                    Some(interval) => sleep(jittered(interval)).await,
                    None => std::future::pending().await,
                }
                // While the store is away nobody knows of anything newer.
                if matches!(is_current(coming).await, Ok(false)) {
                    return;
                }
            }
        };
        let asked = async {
            match &mut reload {
                Some(asked) => asked.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let arrival = tokio::select! {
            () = coming.places().wait(&added) => Arrival::Arrived,
            () = sleep_until(deadline) => {
                tracing::warn!(revision, tiers, "not at home in time: served from where they are");
                Arrival::Arrived
            }
            () = asked => Arrival::GaveWay,
            () = superseded => Arrival::Superseded,
        };
        (arrival, Some(announced))
    }
}

/// Tiers that can be served of `coming` alone.
fn added(serving: &Generation, coming: &Generation) -> Vec<String> {
    let ids = coming.manifest().tiers.iter().map(|tier| tier.id.to_string());
    ids.filter(|id| coming.catalog().tier(id).is_ok() && serving.catalog().tier(id).is_err())
        .collect()
}

/// When a wait has to be over so that whoever set this deadline learns of the swap.
pub(super) fn in_time_for(deadline: Instant) -> Instant {
    const TO_ANSWER: Duration = Duration::from_millis(500);
    deadline.checked_sub(TO_ANSWER).unwrap_or(deadline)
}

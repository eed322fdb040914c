//! One attempt at loading a model: whose turn it is, what is loaded, and the swap.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::arrival::{Arrival, in_time_for};
use super::{Loader, Model, Target};
use crate::Generation;
use crate::generation::Shared;
use crate::load::{LoadError, check_succession, load};

/// Who wants a model loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    /// The daemon itself, which follows the root.
    Look,
    /// Somebody who waits for the answer.
    Reload(Target, Instant),
}

/// What an attempt to load a model came to.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// This is served from now on.
    Swapped(Arc<Generation>),
    /// This is served already, from the same document.
    Same(Arc<Generation>),
    /// Somebody asked for a reload meanwhile, which does this one's work.
    GaveWay,
    /// The model or the engine ends.
    Ended,
}

impl Model {
    /// Loads the model once. What is served stays when that fails, and when the
    /// root has the same document still. Dropping the future gives the attempt
    /// up.
    pub(crate) async fn attempt(&self, loader: &Loader, wish: Wish) -> Result<Attempt, LoadError> {
        let span = tracing::info_span!("load", model = %self.config.name);
        let attempt = async {
            let _alone = self.turn(wish).await;
            loop {
                if let Some(attempt) = self.try_once(loader, wish).await? {
                    return Ok(attempt);
                }
            }
        };
        tokio::select! {
            biased;
            () = self.end.cancelled() => Ok(Attempt::Ended),
            attempt = attempt.instrument(span) => attempt,
        }
    }

    /// Waits for whoever loads. One who follows the root and only waits for tiers
    /// makes way for one who asks.
    async fn turn(&self, wish: Wish) -> tokio::sync::MutexGuard<'_, ()> {
        /// It may have begun to wait just after it was asked.
        const AGAIN: Duration = Duration::from_millis(100);
        if let Wish::Look = wish {
            return self.loading.lock().await;
        }
        loop {
            self.asked.notify_waiters();
            if let Ok(turn) = tokio::time::timeout(AGAIN, self.loading.lock()).await {
                return turn;
            }
        }
    }

    /// Loads what the root names; `None` when it names another revision by the
    /// time that this one could be served.
    async fn try_once(&self, loader: &Loader, wish: Wish) -> Result<Option<Attempt>, LoadError> {
        let (target, in_time, reload) = match wish {
            Wish::Look => (Target::Known, None, Some(self.asked.notified())),
            Wish::Reload(target, deadline) => (target, Some(in_time_for(deadline)), None),
        };
        let mut reload = pin!(reload);
        if let Some(mut reload) = reload.as_mut().as_pin_mut() {
            // From here on, not from the first time that it is waited for.
            reload.as_mut().enable();
        }
        let (place, number) =
            (self.place(target), || loader.swaps.fetch_add(1, Ordering::Relaxed) + 1);
        // Who serves something already learns that the store is away.
        let kept = self.serving.load().is_none();
        let loaded =
            load(&self.config, &place, loader.enforcement, number, kept, &loader.shared).await?;
        let serving = self.serving.load_full();
        if let Some(serving) = &serving {
            check_succession(serving, &loaded).await?;
        }
        if self.end.is_cancelled() {
            return Ok(Some(Attempt::Ended));
        }
        let generation = Arc::new(loaded);
        let patient = Instant::now() + loader.swap_patience;
        let deadline = in_time.map_or(patient, |in_time| in_time.min(patient));
        let (arrival, announced) = match &serving {
            None => (Arrival::Arrived, None),
            Some(serving) => {
                let (follows, reload) = (place.pinned.is_none(), reload.as_pin_mut());
                self.bring_home(loader, serving, &generation, deadline, follows, reload).await
            }
        };
        Ok(match arrival {
            Arrival::Arrived => {
                self.choose(target);
                let attempt = self.swap(&generation, &loader.shared);
                // After the swap: placement goes on without a step back.
                drop(announced);
                Some(attempt)
            }
            Arrival::Superseded => None,
            Arrival::GaveWay => Some(Attempt::GaveWay),
        })
    }

    fn swap(&self, generation: &Arc<Generation>, shared: &Shared) -> Attempt {
        let (revision, number) = (generation.revision(), generation.number());
        let known = self.serving.load_full();
        let same = known.filter(|known| known.says_the_same(generation));
        let attempt = match same {
            Some(known) => {
                if generation.stale().is_none() && known.confirm(generation) {
                    tracing::info!(revision, "the store answers: it has the same revision");
                }
                Attempt::Same(known)
            }
            None => {
                for warning in generation.warnings() {
                    tracing::warn!(warning, "odd manifest");
                }
                for tier in &generation.manifest().tiers {
                    if let Some(reason) = generation.catalog().skipped(&tier.id) {
                        tracing::warn!(tier = %tier.id, reason, "tier skipped");
                    }
                }
                if let Some(reason) = generation.stale() {
                    tracing::warn!(reason, "the store is away: the last good revision is served");
                }
                if let Some(old) = self.serving.swap(Some(Arc::clone(generation))) {
                    old.retire();
                    if old.breaks_with(generation) {
                        shared.devices.forget_uses(&old);
                    }
                }
                shared.metrics.loaded(&self.config.name, revision, number);
                tracing::info!(revision, generation = number, "model loaded");
                Attempt::Swapped(Arc::clone(generation))
            }
        };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        attempt
    }
}

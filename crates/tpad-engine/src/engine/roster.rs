//! The engine's models, which come and go.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::model::{Model, ModelView};

/// The models, in the order in which they came. Readers see one state of it and
/// never wait.
#[derive(Debug)]
pub(super) struct Roster {
    models: ArcSwap<Vec<Arc<Model>>>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Roster {
    pub(super) fn new(models: Vec<Arc<Model>>) -> Self {
        Self { models: ArcSwap::from_pointee(models), changing: Mutex::new(()) }
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Model>> {
        self.models.load().iter().find(|model| model.config.name == name).cloned()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.models.load().iter().map(|model| model.config.name.clone()).collect()
    }

    pub(super) fn views(&self) -> Vec<ModelView> {
        self.models.load().iter().map(|model| model.view()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.models.load().len()
    }

    /// Adds a model, whose name is free.
    pub(super) fn add(&self, model: Arc<Model>) {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut models = Vec::clone(&self.models.load());
        models.push(model);
        self.models.store(Arc::new(models));
    }

    pub(super) fn remove(&self, name: &str) -> Option<Arc<Model>> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut models = Vec::clone(&self.models.load());
        let at = models.iter().position(|model| model.config.name == name)?;
        let removed = models.remove(at);
        self.models.store(Arc::new(models));
        Some(removed)
    }
}

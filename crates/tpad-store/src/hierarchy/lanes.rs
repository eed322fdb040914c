//! A gate for each origin: one that hangs keeps its places from its own reads
//! and from no other origin's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::Origin;
use crate::gate::Gate;

/// The ranges in flight of each origin.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Places of each gate.
    places: u64,
    /// By URL: generations and models on one root share one.
    gates: Mutex<HashMap<String, Weak<Gate>>>,
}

impl Lanes {
    pub(super) fn new(places: u64) -> Self {
        Self { places, gates: Mutex::default() }
    }

    /// The origin's gate, for as long as someone uses it.
    pub(super) fn of(&self, origin: &dyn Origin) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(origin.url()).and_then(Weak::upgrade) {
            return gate;
        }
        // Few origins are read at a time, and new ones come rarely.
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Gate::new(self.places);
        gates.insert(origin.url().to_owned(), Arc::downgrade(&gate));
        gate
    }
}

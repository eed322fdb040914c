//! What a reply keeps from others until it is over.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

/// A permit in a response's extensions. The edge keeps it until the client has
/// taken the reply or lost it: a reply that is whole before its first byte is sent
/// takes memory for as long.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Held {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Arc::new(permit) }
    }
}

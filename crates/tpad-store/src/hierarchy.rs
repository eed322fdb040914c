//! The levels in front of the origin.

mod config;
mod error;

use std::sync::Arc;

use tokio::time::timeout_at;
use tpad_manifest::BlockId;

pub use config::{DramConfig, FetchTuning, HierarchyConfig};
pub use error::{ReadError, StoreError};

use crate::{Arena, BlockBytes, BlockFetch, Level, Medium, Origin, ReadOptions, StoreMetrics};

/// A block and the medium that it came from.
#[derive(Clone, Debug)]
pub struct Served {
    /// The image.
    pub bytes: BlockBytes,
    /// Where it was.
    pub medium: Medium,
}

/// What a store holds and does.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StoreStatus {
    /// Blocks being filled.
    pub fills: usize,
}

/// The levels in front of the origins.
#[derive(Debug)]
pub struct Hierarchy {
    metrics: StoreMetrics,
}

impl Hierarchy {
    /// Starts a hierarchy.
    ///
    /// # Errors
    /// When bounds contradict each other.
    pub fn new(
        config: HierarchyConfig,
        lower: Vec<Arc<dyn Level>>,
        metrics: StoreMetrics,
    ) -> Result<Arc<Self>, StoreError> {
        drop((config, lower));
        Ok(Arc::new(Self { metrics }))
    }

    /// Reads a block.
    ///
    /// # Errors
    /// When the origin fails or its bytes are not the block.
    pub async fn read(
        &self,
        origin: &Arc<dyn Origin>,
        fetch: &Arc<BlockFetch>,
        options: ReadOptions,
    ) -> Result<Served, ReadError> {
        let id = fetch.id;
        fetch.check().map_err(|problem| ReadError::Fetch { id, problem })?;
        let late = ReadError::Deadline { id };
        let read = timeout_at(options.deadline, self.fill(origin, fetch, options)).await;
        let read = read.unwrap_or(Err(late));
        self.metrics.read(read.as_ref().map(|_| ()).map_err(ReadError::kind));
        read
    }

    async fn fill(
        &self,
        origin: &Arc<dyn Origin>,
        fetch: &BlockFetch,
        options: ReadOptions,
    ) -> Result<Served, ReadError> {
        let id = fetch.id;
        let size = usize::try_from(fetch.bytes)
            .map_err(|_| ReadError::Fetch { id, problem: "the image is larger than memory" })?;
        let arena = Arena::new(fetch.bytes + (1 << 20));
        let slot = arena.slot(size).ok().flatten();
        let mut image = slot.ok_or(ReadError::Fetch { id, problem: "no memory" })?;
        for part in &fetch.parts {
            let span = usize::try_from(part.at).ok().zip(usize::try_from(part.bytes).ok());
            let into = span.and_then(|(at, bytes)| image.get_mut(at..at.checked_add(bytes)?));
            let into = into.ok_or(ReadError::Fetch { id, problem: "a part lies outside" })?;
            let read = origin.read_range(&part.object, part.offset, into, options.deadline).await;
            self.metrics.origin_request(
                read.as_ref().map(|()| part.bytes).map_err(crate::OriginError::kind),
            );
            read.map_err(|source| ReadError::Origin { id, source })?;
        }
        let found = BlockId::of(&image);
        if found != id {
            self.metrics.verify_failed(Medium::ObjectStore);
            return Err(ReadError::Digest { id, origin: origin.url().to_owned(), found });
        }
        Ok(Served { bytes: image.freeze(), medium: Medium::ObjectStore })
    }

    /// The fastest medium that holds the block.
    #[must_use]
    pub fn resident(&self, _id: &BlockId) -> Option<Medium> {
        None
    }

    /// What the store holds and does.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        StoreStatus { fills: 0 }
    }

    /// Waits for every task to end.
    pub async fn shutdown(&self) {}
}

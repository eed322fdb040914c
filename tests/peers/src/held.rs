//! Blocks of tpad's daemon on this machine, used where it keeps them.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tokio::runtime::Runtime;
use tpad_client::{AcquireOptions, Handoff};
use tpad_manifest::{BlockKey, ExpertKey};

use crate::closed_loop::Fetch;

/// The tier that an import without a plan makes.
const TIER: &str = "base";

/// A worker that asks for each block by a message on the handoff socket.
#[derive(Debug)]
pub struct Acquire {
    runtime: Runtime,
    handoff: Handoff,
    model: String,
    bytes: usize,
}

impl Acquire {
    /// Connects, for experts of `bytes` of a model.
    ///
    /// # Errors
    /// When there is no such socket, or this user may not use it.
    pub fn connect(socket: &Path, model: &str, bytes: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handoff = runtime.block_on(Handoff::connect_to(socket)).context("connecting")?;
        Ok(Self { runtime, handoff, model: model.to_owned(), bytes })
    }
}

impl Fetch for Acquire {
    /// Acquires, reads a byte, and lets go; the daemon is told before this returns. Nothing
    /// is moved, so no bytes are counted.
    fn fetch(&mut self, key: usize) -> Result<u64> {
        let expert = u32::try_from(key)?;
        let key = ExpertKey { tier: TIER.parse()?, group: 0, expert };
        let keys = [BlockKey::Expert { key, layer: 0 }];
        self.runtime.block_on(async {
            let options = AcquireOptions::default();
            let mut acquired = self.handoff.acquire(&self.model, &keys, options).await?;
            let block = acquired.blocks.pop().context("no answer")??;
            if block.len() != self.bytes || std::hint::black_box(block.first()).is_none() {
                bail!("{} bytes in place of {}", block.len(), self.bytes);
            }
            drop(block);
            // The connection's task has its turn, which sends the release.
            tokio::task::yield_now().await;
            anyhow::Ok(0)
        })
    }
}

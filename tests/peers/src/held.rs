//! Blocks of tpad's daemon on this machine, used where it keeps them.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tokio::runtime::Runtime;
use tpad_client::{AcquireOptions, Handoff, HandoffOptions};
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
        let options = HandoffOptions { directories: false, ..HandoffOptions::default() };
        let handoff = Handoff::connect_with(socket, options);
        let handoff = runtime.block_on(handoff).context("connecting")?;
        Ok(Self { runtime, handoff, model: model.to_owned(), bytes })
    }
}

impl Fetch for Acquire {
    /// Acquires, reads a byte, and lets go; the daemon is told before this returns. Nothing
    /// is moved, so no bytes are counted.
    fn fetch(&mut self, key: usize) -> Result<u64> {
        let expert = u32::try_from(key)?;
        let keys = [key_of(expert)?];
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

/// A worker that finds blocks in the daemon's directory, without a message.
#[derive(Debug)]
pub struct Hold {
    handoff: Handoff,
    model: String,
    keys: Vec<BlockKey>,
    bytes: usize,
    // After what runs on it.
    _runtime: Runtime,
}

impl Hold {
    /// Connects, and acquires each of so many experts of `bytes` of a model once.
    ///
    /// # Errors
    /// When there is no such socket, this user may not use it, or the experts do not come.
    pub fn connect(socket: &Path, model: &str, bytes: usize, keys: usize) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let keys = (0..u32::try_from(keys)?).map(key_of).collect::<Result<Vec<_>>>()?;
        let handoff = runtime.block_on(async {
            let handoff = Handoff::connect_to(socket).await.context("connecting")?;
            for key in &keys {
                let acquired =
                    handoff.acquire(model, std::slice::from_ref(key), AcquireOptions::default());
                drop(acquired.await?.blocks.pop().context("no answer")??);
            }
            anyhow::Ok(handoff)
        })?;
        Ok(Self { handoff, model: model.to_owned(), keys, bytes, _runtime: runtime })
    }
}

impl Fetch for Hold {
    /// Finds and holds the block, reads a byte, and lets go.
    fn fetch(&mut self, key: usize) -> Result<u64> {
        let key = self.keys.get(key).context("a key beyond those that were acquired")?;
        let block = self.handoff.hold(&self.model, key).context("it is in no directory")?;
        if block.len() != self.bytes || std::hint::black_box(block.first()).is_none() {
            bail!("{} bytes in place of {}", block.len(), self.bytes);
        }
        Ok(0)
    }
}

fn key_of(expert: u32) -> Result<BlockKey> {
    let key = ExpertKey { tier: TIER.parse()?, group: 0, expert };
    Ok(BlockKey::Expert { key, layer: 0 })
}

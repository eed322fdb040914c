//! A worker of a real daemon: acquires every expert of a model on the device.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tpad_client::{AcquireOptions, Client, Gpu, Handoff, HandoffOptions, HeldDeviceBlock};
use tpad_cuda::fault::checksum;
use tpad_manifest::{BlockId, BlockKey};

use super::{receive, send};
use crate::stage::Machine;

/// What it is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Acquire every expert of the model and hold it.
    Hold,
    /// Hold all of it by the directory alone.
    HoldDirectly,
    /// Acquire a block that is there and let go of it, so often.
    Acquire {
        /// How often.
        times: u32,
        /// Whether by the directory, or by a call.
        directly: bool,
    },
    /// Compare what it holds with the blocks' digests.
    Check,
    /// Launch work that reads the first block late, and let go of everything at once.
    ReadLate {
        /// How late, in milliseconds.
        delay_ms: u64,
    },
    /// Wait for that work: whether it read the block.
    Late,
}

/// What it answers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// All of it is held.
    Held {
        /// Since its CUDA context was ready.
        millis: f64,
        /// Experts.
        blocks: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// How long it took, in microseconds.
    Took {
        /// The median.
        median: f64,
        /// The 99th percentile.
        p99: f64,
    },
    /// Whether all of it is right.
    Right(bool),
    /// The work is launched.
    Launched,
}

struct Worker {
    gpu: Gpu,
    address: String,
    model: String,
    keys: Vec<BlockKey>,
    handoff: Option<Handoff>,
    held: Vec<HeldDeviceBlock>,
    late: Option<(Box<dyn tpad_cuda::fault::LateRead>, u64)>,
}

pub(super) fn play(arguments: &mut impl Iterator<Item = OsString>) -> Result<()> {
    let driver = Machine::from_arguments(arguments)?.driver()?;
    let mut next = || arguments.next().and_then(|text| text.into_string().ok());
    let (address, model) = (next().context("no address")?, next().context("no model")?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Its context is there from here on.
    let gpu = Gpu::on(&driver, "0")?;
    gpu.device().memory()?;
    let mut worker =
        Worker { gpu, address, model, keys: vec![], handoff: None, held: vec![], late: None };
    let stdin = std::io::stdin();
    let ready = Instant::now();
    while let Some((ask, _)) = receive::<Ask>(stdin.as_fd())? {
        let answer = match ask {
            Ask::Hold => runtime.block_on(worker.hold(ready))?,
            Ask::HoldDirectly => worker.hold_directly()?,
            Ask::Acquire { times, directly: false } => runtime.block_on(worker.acquire(times))?,
            Ask::Acquire { times, directly: true } => worker.find(times)?,
            Ask::Check => worker.check()?,
            Ask::ReadLate { delay_ms } => worker.read_late(Duration::from_millis(delay_ms))?,
            Ask::Late => worker.late()?,
        };
        send(stdin.as_fd(), &answer, None)?;
    }
    Ok(())
}

impl Worker {
    async fn hold(&mut self, ready: Instant) -> Result<Answer> {
        let handoff = Handoff::connect(&self.address).await?;
        let client = Client::connect(&self.address).await?;
        let mut listed = client.list_blocks(&self.model, None);
        self.keys.clear();
        while let Some(block) = listed.next().await {
            let key = block?.key;
            if matches!(key, BlockKey::Expert { .. }) {
                self.keys.push(key);
            }
        }
        for keys in self.keys.chunks(handoff.daemon().keys) {
            let options = AcquireOptions::default();
            let acquired = handoff.acquire_on(&self.gpu, &self.model, keys, options).await?;
            for block in acquired.blocks {
                self.held.push(block?);
            }
        }
        self.handoff = Some(handoff);
        Ok(self.holds(ready))
    }

    fn holds(&self, since: Instant) -> Answer {
        let millis = since.elapsed().as_secs_f64() * 1e3;
        let bytes = self.held.iter().map(|block| block.image_bytes() as u64).sum();
        Answer::Held { millis, blocks: self.held.len() as u64, bytes }
    }

    fn hold_directly(&mut self) -> Result<Answer> {
        let handoff = self.handoff.as_ref().context("it holds nothing yet")?;
        let began = Instant::now();
        let held = |key| handoff.hold_on(&self.gpu, &self.model, key);
        let held = self.keys.iter().map(held).collect::<Option<Vec<_>>>();
        let leased = std::mem::replace(&mut self.held, held.context("the directory lacks one")?);
        let answer = self.holds(began);
        drop(leased);
        self.gpu.drain();
        Ok(answer)
    }

    fn find(&self, times: u32) -> Result<Answer> {
        let handoff = self.handoff.as_ref().context("it holds nothing yet")?;
        let mut took = Vec::new();
        for key in self.keys.iter().cycle().take(times as usize) {
            let began = Instant::now();
            let block = handoff.hold_on(&self.gpu, &self.model, key);
            took.push(began.elapsed().as_secs_f64() * 1e6);
            drop(block.context("the directory lacks one")?);
            if self.gpu.pending() > 1000 {
                // Each keeps a cell until the device's work is done.
                self.gpu.drain();
            }
        }
        Ok(quantiles(took))
    }

    async fn acquire(&mut self, times: u32) -> Result<Answer> {
        let options = HandoffOptions { directories: false, ..HandoffOptions::default() };
        let address = self.address.trim_start_matches("unix://");
        let socket = tpad_client::handoff_socket(Path::new(address));
        let handoff = Handoff::connect_with(&socket, options).await?;
        let mut took = Vec::new();
        for key in self.keys.iter().cycle().take(times as usize) {
            let keys = std::slice::from_ref(key);
            let began = Instant::now();
            let options = AcquireOptions::default();
            let acquired = handoff.acquire_on(&self.gpu, &self.model, keys, options).await?;
            let block = acquired.blocks.into_iter().next().context("no answer")??;
            took.push(began.elapsed().as_secs_f64() * 1e6);
            drop(block);
        }
        Ok(quantiles(took))
    }

    fn check(&self) -> Result<Answer> {
        for block in &self.held {
            let image = block.read(0..block.image_bytes())?;
            if BlockId::of(&image) != *block.id() {
                return Ok(Answer::Right(false));
            }
        }
        Ok(Answer::Right(!self.held.is_empty()))
    }

    fn read_late(&mut self, delay: Duration) -> Result<Answer> {
        let block = self.held.first().context("it holds nothing yet")?;
        let (memory, offset) = block.memory();
        let bytes = block.image_bytes() as u64 / 8 * 8;
        let read = block.read(0..usize::try_from(bytes)?)?;
        let device = self.gpu.device();
        // The first launch compiles the work.
        device.read_late(memory, offset, bytes, Duration::ZERO)?.wait()?;
        let late = device.read_late(memory, offset, bytes, delay)?;
        self.late = Some((late, checksum(&read)));
        self.held.clear();
        Ok(Answer::Launched)
    }

    fn late(&mut self) -> Result<Answer> {
        let Some((late, expected)) = self.late.take() else { bail!("nothing was launched") };
        Ok(Answer::Right(late.checksum()? == expected))
    }
}

fn quantiles(mut took: Vec<f64>) -> Answer {
    took.sort_by(f64::total_cmp);
    let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or(f64::NAN);
    Answer::Took { median: at(50), p99: at(99) }
}

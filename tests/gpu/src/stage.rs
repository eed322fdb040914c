//! What a case plays on: a driver, host memory, blocks of known content.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;
use tpad_cuda::{Device, Driver, DriverKind, StandIn};
use tpad_hbm::{DeviceBlock, DeviceBudget, DeviceId, HbmConfig, HbmError, HbmLevel, HbmMetrics};
use tpad_manifest::BlockId;
use tpad_store::{Arena, BlockBytes, CacheClass, ReadOptions, Urgency};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// What a case plays on.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The devices.
    pub driver: Arc<dyn Driver>,
    /// How another process comes to the same ones.
    pub machine: Machine,
    /// This program, to be run as another process.
    pub program: PathBuf,
    /// How often processes are killed.
    pub kills: u32,
    /// Streams that a level copies on.
    pub streams: usize,
}

/// How a process comes to its devices.
#[derive(Clone, Debug)]
pub enum Machine {
    /// By NVIDIA's driver.
    Cuda,
    /// By a directory.
    StandIn {
        /// Where the memory lies.
        directory: PathBuf,
        /// How many devices there are.
        devices: u32,
        /// What each has.
        bytes: u64,
    },
}

impl Machine {
    /// The driver.
    ///
    /// # Errors
    /// When there is none.
    pub fn driver(&self) -> Result<Arc<dyn Driver>> {
        match self {
            Self::Cuda => tpad_cuda::cuda().context("there is no GPU"),
            Self::StandIn { directory, devices, bytes } => {
                Ok(StandIn::on(directory, *devices, *bytes))
            }
        }
    }

    /// The arguments that bring another process here.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        match self {
            Self::Cuda => vec!["cuda".into()],
            Self::StandIn { directory, devices, bytes } => vec![
                "stand-in".into(),
                directory.into(),
                devices.to_string().into(),
                bytes.to_string().into(),
            ],
        }
    }

    /// From such arguments.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_arguments(arguments: &mut impl Iterator<Item = OsString>) -> Result<Self> {
        let mut next = |what: &str| arguments.next().with_context(|| format!("no {what}"));
        match next("machine")?.to_str() {
            Some("cuda") => Ok(Self::Cuda),
            Some("stand-in") => {
                let directory = next("directory")?.into();
                let devices = next("devices")?.to_string_lossy().parse()?;
                let bytes = next("bytes")?.to_string_lossy().parse()?;
                Ok(Self::StandIn { directory, devices, bytes })
            }
            other => anyhow::bail!("{other:?} is no machine"),
        }
    }
}

/// A level with one arena that feeds it.
#[derive(Debug)]
pub struct Scene {
    /// The level.
    pub level: HbmLevel,
    /// What it counts.
    pub metrics: HbmMetrics,
    /// Host memory, registered.
    pub arena: Arc<Arena>,
    /// The first device.
    pub device: DeviceId,
}

impl Stage {
    /// A level over the first device.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn scene(&self, capacity_bytes: u64, host_bytes: u64) -> Result<Scene> {
        let streams = self.streams;
        Scene::with_streams(&self.driver, &[0], capacity_bytes, &[], host_bytes, streams)
    }

    /// The first device, opened again.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn device(&self) -> Result<Arc<dyn Device>> {
        Ok(self.driver.open(&tpad_cuda::DeviceName::Index(0))?)
    }

    /// Whether it is a GPU.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        self.driver.kind() == DriverKind::Cuda
    }

    /// Waits until as much of the first device's memory is free again as was: what a
    /// killed process had comes back a little after it.
    ///
    /// # Errors
    /// When it does not.
    pub async fn memory_returns(&self, before: u64) -> Result<u64> {
        let (device, deadline) = (self.device()?, Instant::now() + Duration::from_secs(20));
        loop {
            let free = device.memory()?.free_bytes;
            // Contexts come and go with some of the driver's own.
            if free + self.slack() >= before {
                return Ok(free);
            }
            ensure!(Instant::now() < deadline, "{before} bytes were free, {free} are now");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What of free memory may differ for other reasons.
    #[must_use]
    pub fn slack(&self) -> u64 {
        if self.is_gpu() { 64 * MIB } else { 0 }
    }
}

impl Scene {
    /// A level over these devices, with budgets.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(
        driver: &Arc<dyn Driver>,
        devices: &[u32],
        capacity_bytes: u64,
        budgets: &[(&str, u64)],
        host_bytes: u64,
    ) -> Result<Self> {
        let streams = HbmConfig::STREAMS;
        Self::with_streams(driver, devices, capacity_bytes, budgets, host_bytes, streams)
    }

    /// The same with so many streams.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn with_streams(
        driver: &Arc<dyn Driver>,
        devices: &[u32],
        capacity_bytes: u64,
        budgets: &[(&str, u64)],
        host_bytes: u64,
        streams: usize,
    ) -> Result<Self> {
        let device = |index: &u32| DeviceBudget {
            device: tpad_cuda::DeviceName::Index(*index),
            capacity_bytes,
        };
        let class_budgets: BTreeMap<String, u64> =
            budgets.iter().map(|(class, bytes)| ((*class).to_owned(), *bytes)).collect();
        let config =
            HbmConfig { devices: devices.iter().map(device).collect(), class_budgets, streams };
        let metrics = HbmMetrics::default();
        let level = HbmLevel::open(driver, &config, metrics.clone())?;
        let arena = Arena::new(host_bytes);
        if let Some(host) = level.host_memory() {
            arena.observe(host);
        }
        let device = DeviceId(devices.first().copied().unwrap_or(0));
        Ok(Self { level, metrics, arena, device })
    }

    /// A block in host memory, of [`content`].
    ///
    /// # Errors
    /// When there is no room.
    pub fn block(&self, seed: u64, bytes: u64) -> Result<BlockBytes> {
        host_block(&self.arena, seed, bytes)
    }

    /// Has the level bring the block of a seed to a device.
    ///
    /// # Errors
    /// When it fails.
    pub async fn promote(
        &self,
        seed: u64,
        class: &str,
        source: &BlockBytes,
        device: DeviceId,
        options: ReadOptions,
    ) -> Result<Option<DeviceBlock>, HbmError> {
        self.level.promote(&id(seed), &CacheClass::from(class), source, device, options).await
    }

    /// Brings a block of [`content`] to the first device, as a demand of class `a`.
    ///
    /// # Errors
    /// When it fails or is refused.
    pub async fn bring(&self, seed: u64, bytes: u64) -> Result<DeviceBlock> {
        let block = self.block(seed, bytes)?;
        let promoted = self.promote(seed, "a", &block, self.device, demand(30)).await?;
        promoted.with_context(|| format!("block {seed} was refused"))
    }

    /// Brings a block as a prefetch of a class, or not.
    ///
    /// # Errors
    /// When it fails.
    pub async fn offer(&self, seed: u64, bytes: u64, class: &str) -> Result<Option<DeviceBlock>> {
        let block = self.block(seed, bytes)?;
        Ok(self.promote(seed, class, &block, self.device, prefetch(30)).await?)
    }

    /// What the level's metrics say, by name and labels as in the text format.
    ///
    /// # Errors
    /// When there is no such line.
    pub fn counted(&self, line: &str) -> Result<f64> {
        let status = metrics_text(&self.metrics)?;
        let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        Ok(found.with_context(|| format!("{line} is not in\n{status}"))?.parse()?)
    }
}

fn metrics_text(metrics: &HbmMetrics) -> Result<String> {
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// A block in host memory, of [`content`].
///
/// # Errors
/// When there is no room.
pub fn host_block(arena: &Arc<Arena>, seed: u64, bytes: u64) -> Result<BlockBytes> {
    let mut slot = arena.slot(usize::try_from(bytes)?)?.context("no host memory")?;
    fill(seed, &mut slot);
    Ok(slot.freeze())
}

/// The name of the block of a seed. Levels never check it: their source is verified.
#[must_use]
pub fn id(seed: u64) -> BlockId {
    BlockId::of(&seed.to_le_bytes())
}

/// What the block of a seed holds.
#[must_use]
pub fn content(seed: u64, bytes: u64) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(bytes).unwrap_or(0)];
    fill(seed, &mut content);
    content
}

fn fill(seed: u64, into: &mut [u8]) {
    // SplitMix64: every word of every seed is another one.
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for word in into.chunks_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bytes = (mixed ^ (mixed >> 31)).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// Whether a block on a device is whole.
///
/// # Errors
/// When it is not, or cannot be read.
pub fn check(block: &DeviceBlock, seed: u64) -> Result<()> {
    let mut there = vec![0; usize::try_from(block.bytes())?];
    block.read(0, &mut there)?;
    ensure!(there == content(seed, block.bytes()), "block {seed} is not what it was: {block:?}");
    Ok(())
}

/// Someone waits, for so many seconds.
#[must_use]
pub fn demand(seconds: u64) -> ReadOptions {
    ReadOptions::demand(Instant::now() + Duration::from_secs(seconds))
}

/// Nobody waits.
#[must_use]
pub fn prefetch(seconds: u64) -> ReadOptions {
    ReadOptions { urgency: Urgency::Prefetch, ..demand(seconds) }
}

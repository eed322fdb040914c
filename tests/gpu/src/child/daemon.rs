//! A daemon: fills blocks and shares them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tpad_hbm::DeviceBlock;
use tpad_store::BlockBytes;

use super::{receive, send};
use crate::stage::{MIB, Machine, Scene, demand, prefetch};

/// What a daemon is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Fill blocks and hold them: block `n` has the id of `n` and the content of
    /// `n % contents`.
    Fill {
        /// The first block's number.
        first: u64,
        /// How many.
        count: u64,
        /// Bytes of each.
        bytes: u64,
        /// How many different contents.
        contents: u64,
        /// Seconds that each may wait; 0 is a prefetch, which does not.
        patience: u64,
    },
    /// Send the slabs of all that is held, and where it lies.
    Share,
    /// Fill blocks beside those that are held, for ever.
    Churn {
        /// Bytes of each.
        bytes: u64,
    },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To a fill.
    Filled {
        /// Blocks that are there.
        filled: u64,
        /// Blocks that were refused.
        refused: u64,
        /// What the level has of the device.
        mapped: u64,
    },
    /// A slab; its descriptor comes along.
    Slab {
        /// Its number.
        slab: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// A block in a slab that was sent.
    Block {
        /// What its content is of.
        content: u64,
        /// The slab's number.
        slab: u64,
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// All was sent.
    Shared,
}

pub(super) fn play(arguments: &mut impl Iterator<Item = OsString>) -> Result<()> {
    let driver = Machine::from_arguments(arguments)?.driver()?;
    let capacity = arguments.next().context("no capacity")?.to_string_lossy().parse()?;
    let host = arguments.next().context("no host memory")?.to_string_lossy().parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let scene = runtime.block_on(async { Scene::open(&driver, &[0], capacity, &[], host) })?;
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let mut held: Vec<(u64, DeviceBlock)> = Vec::new();
    // What is shared stays so until the process ends, as for a worker that does not.
    let mut shared = Vec::new();
    let mut sources: BTreeMap<(u64, u64), BlockBytes> = BTreeMap::new();
    while let Some((ask, _)) = receive::<Ask>(socket)? {
        match ask {
            Ask::Fill { first, count, bytes, contents, patience } => {
                let mut refused = 0;
                for number in first..first + count {
                    let content = number % contents;
                    let source = match sources.get(&(content, bytes)) {
                        Some(source) => source.clone(),
                        None => {
                            let source = scene.block(content, bytes)?;
                            sources.insert((content, bytes), source.clone());
                            source
                        }
                    };
                    let options = if patience > 0 { demand(patience) } else { prefetch(60) };
                    let fill = scene.promote(number, "a", &source, scene.device, options);
                    match runtime.block_on(fill)? {
                        Some(block) => held.push((content, block)),
                        None => refused += 1,
                    }
                }
                let mapped = scene.level.status().devices.iter().map(|d| d.mapped_bytes).sum();
                let filled = held.len() as u64;
                send(socket, &Answer::Filled { filled, refused, mapped }, None)?;
            }
            Ask::Share => {
                let mut sent = BTreeSet::new();
                for (content, block) in &held {
                    let place = block.place();
                    if sent.insert(place.slab) {
                        let slab = block.shared_slab();
                        let descriptor = slab.descriptor()?;
                        let answer = Answer::Slab { slab: slab.id(), bytes: slab.bytes() };
                        send(socket, &answer, Some(descriptor.as_fd()))?;
                        shared.push(slab);
                    }
                    let (slab, offset, bytes) = (place.slab, place.offset, block.bytes());
                    let answer = Answer::Block { content: *content, slab, offset, bytes };
                    send(socket, &answer, None)?;
                }
                send(socket, &Answer::Shared, None)?;
            }
            Ask::Churn { bytes } => {
                let source = scene.block(u64::MAX, bytes.min(4 * MIB))?;
                for number in 1 << 32.. {
                    let fill = scene.promote(number, "b", &source, scene.device, demand(60));
                    runtime.block_on(fill)?;
                }
            }
        }
    }
    Ok(())
}

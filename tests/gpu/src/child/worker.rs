//! A worker: imports slabs and reads what lies there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tpad_cuda::{DeviceName, Memory};
use tpad_manifest::BlockId;

use super::{receive, send};
use crate::stage::Machine;

/// What a worker is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Map a slab; its descriptor comes along. The device goes by its identity.
    Import {
        /// The slab's number.
        slab: u64,
        /// Its bytes.
        bytes: u64,
        /// The device's identity.
        device: String,
    },
    /// Unmap it.
    Forget {
        /// The slab's number.
        slab: u64,
    },
    /// Read a span.
    Read {
        /// The slab's number.
        slab: u64,
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// Write to it.
    Write {
        /// The slab's number.
        slab: u64,
        /// Where.
        offset: u64,
    },
}

/// What it answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is mapped.
    Imported {
        /// How long that took.
        nanos: u64,
    },
    /// It is not mapped any more.
    Forgotten,
    /// The digest of what is there.
    Read {
        /// Its text.
        digest: String,
    },
    /// It was written.
    Written,
    /// The driver refused.
    Refused {
        /// Its words.
        error: String,
    },
}

pub(super) fn play(arguments: &mut impl Iterator<Item = OsString>) -> Result<()> {
    let driver = Machine::from_arguments(arguments)?.driver()?;
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let mut devices = BTreeMap::new();
    let mut slabs: BTreeMap<u64, Arc<dyn Memory>> = BTreeMap::new();
    while let Some((ask, descriptor)) = receive::<Ask>(socket)? {
        let refused = |error: tpad_cuda::CudaError| Answer::Refused { error: error.to_string() };
        let answer = match ask {
            Ask::Import { slab, bytes, device } => {
                let device = match devices.entry(device) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        let device = driver.open(&DeviceName::Uuid(entry.key().clone()))?;
                        entry.insert(device)
                    }
                };
                let descriptor = descriptor.context("a slab comes with its descriptor")?;
                let began = Instant::now();
                match device.import(descriptor.as_fd(), bytes) {
                    Ok(memory) => {
                        let nanos = u64::try_from(began.elapsed().as_nanos())?;
                        slabs.insert(slab, memory);
                        Answer::Imported { nanos }
                    }
                    Err(error) => refused(error),
                }
            }
            Ask::Forget { slab } => {
                slabs.remove(&slab);
                Answer::Forgotten
            }
            Ask::Read { slab, offset, bytes } => {
                let memory = slabs.get(&slab).context("no such slab")?;
                let mut there = vec![0; usize::try_from(bytes)?];
                match memory.read(offset, &mut there) {
                    Ok(()) => Answer::Read { digest: BlockId::of(&there).to_string() },
                    Err(error) => refused(error),
                }
            }
            Ask::Write { slab, offset } => {
                let memory = slabs.get(&slab).context("no such slab")?;
                memory.write(offset, &[0xEE; 256]).map_or_else(refused, |()| Answer::Written)
            }
        };
        send(socket, &answer, None)?;
    }
    Ok(())
}

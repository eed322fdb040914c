//! What the programs of the side-by-side benchmark share.
//!
//! `side-by-side` starts the servers and the clients and reads what the clients
//! print; `peer-load` is the client of every peer that has no better one;
//! `raw-tcp` and `generated-tonic` are servers. `README.md` says what is compared
//! and how.

pub mod closed_loop;
pub mod cpu;
pub mod exchange;
pub mod grpc;
pub mod held;
pub mod s3;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// The values of a directory with files named `BYTES-KEY`: a list for each size, by
/// key.
///
/// # Errors
/// When a file cannot be read, is not as long as its name says, or a key is missing.
pub fn values(from: &std::path::Path) -> Result<Vec<Vec<Vec<u8>>>> {
    let mut sizes: BTreeMap<usize, BTreeMap<usize, Vec<u8>>> = BTreeMap::new();
    for entry in from.read_dir().with_context(|| from.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let parts = name.to_str().and_then(|name| name.split_once('-'));
        let numbers = parts.and_then(|(bytes, key)| Some((bytes.parse().ok()?, key.parse().ok()?)));
        let Some((bytes, key)) = numbers else { continue };
        let value = std::fs::read(entry.path())?;
        if value.len() != bytes {
            bail!("{} has {} bytes", entry.path().display(), value.len());
        }
        sizes.entry(bytes).or_default().insert(key, value);
    }
    let whole = |of: &BTreeMap<usize, Vec<u8>>| of.keys().copied().eq(0..of.len());
    if sizes.is_empty() || !sizes.values().all(whole) {
        bail!("{} has no values, or not every key of a size", from.display());
    }
    Ok(sizes.into_values().map(|of| of.into_values().collect()).collect())
}

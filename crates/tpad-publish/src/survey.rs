//! A survey of a checkpoint: its shards, their headers, its small files.
//! Nothing but headers and small files is read.

mod files;
mod select;
mod weight_map;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Digest, FileRecord, check_object_path};
use tpad_store::{ErrorKind, Listing, ObjectEntry, ObjectOrigin, Origin as _, OriginError};

use crate::shard::{self, HeaderFault, ShardError, ShardTensor};
use crate::{ImportError, Phase, Progress};
use select::{CONFIG, INDEX, SINGLE, Selection};

/// The largest index file that is read; the largest published has 15 MB.
const MAX_INDEX_BYTES: u64 = 128 << 20;

/// Headers that are read at once: with the largest headers that are legal,
/// this many fit in half a gigabyte.
const HEADERS: usize = 8;

/// Objects that are looked at at once.
const LOOKS: usize = 16;

/// Directories below the root that are looked into, for weights that someone
/// may have meant.
const DIRECTORIES: usize = 32;

/// What is read of a shard at first; most headers are in it.
const PROBE_BYTES: u64 = 128 << 10;

/// How long reading one header may take.
const HEADER_DEADLINE: Duration = Duration::from_secs(120);

/// What is known of a checkpoint without reading its weights.
pub(crate) struct Survey {
    /// The shards that hold the checkpoint, by path.
    pub(crate) shards: BTreeMap<Arc<str>, ObjectEntry>,
    /// The tensors of all shards.
    pub(crate) tensors: Vec<ShardTensor>,
    /// `config.json`; an empty object when there is none.
    pub(crate) config: Value,
    /// Whether there is a `config.json`.
    pub(crate) configured: bool,
    /// The small files that travel with the model.
    pub(crate) files: BTreeMap<String, FileRecord>,
    /// What a person may want to know.
    pub(crate) notes: Vec<String>,
}

/// Surveys the checkpoint at `root`.
pub(crate) async fn survey(
    root: &ObjectOrigin,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Survey, ImportError> {
    let work = take(root, progress);
    stop.run_until_cancelled(work).await.unwrap_or(Err(ImportError::Cancelled))
}

async fn take(root: &ObjectOrigin, progress: &dyn Progress) -> Result<Survey, ImportError> {
    let mut entries = inventory(root).await?;
    let names: Vec<&str> = entries.keys().map(String::as_str).collect();
    let mut notes = Vec::new();
    let (paths, weight_map) = match select::select(root.url(), &names)? {
        Selection::Index(index) => {
            let document = root.get(&index, MAX_INDEX_BYTES).await?;
            let map = weight_map::parse(&index, &document)?;
            (map.shards(), Some(map))
        }
        Selection::Shards(shards) => (shards, None),
    };
    notes.extend(select::ignored(&names, &paths));
    let shards = find_shards(root, &mut entries, paths).await?;
    let tensors = headers(root, &shards, progress).await?;
    refuse_duplicates(&tensors)?;
    if let Some(map) = &weight_map {
        map.check(&tensors)?;
    }
    let config = config(root, &entries).await?;
    let configured = config.is_some();
    let config = config.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let files = files::record(root, &entries, &mut notes).await?;
    Ok(Survey { shards, tensors, config, configured, files, notes })
}

/// The objects at the root itself and in the directories below it or, where a
/// server cannot list them, those that a checkpoint is known to have.
async fn inventory(root: &ObjectOrigin) -> Result<BTreeMap<String, ObjectEntry>, ImportError> {
    let by_path = |entry: ObjectEntry| (entry.path.clone(), entry);
    match root.list_directory("").await {
        Ok(Listing { objects, directories }) => {
            let mut entries: BTreeMap<_, _> = objects.into_iter().map(by_path).collect();
            for directory in directories.iter().take(DIRECTORIES) {
                // What is there is told and not imported: a directory that
                // cannot be listed, such as lost+found, takes nothing away.
                if let Ok(below) = root.list_directory(directory).await {
                    entries.extend(below.objects.into_iter().map(by_path));
                }
            }
            Ok(entries)
        }
        Err(OriginError::Unsupported { .. }) => {
            let known = [CONFIG, INDEX, SINGLE].into_iter().chain(files::KNOWN.iter().copied());
            let mut entries = BTreeMap::new();
            for path in known {
                match root.entry(path).await {
                    Ok(entry) => entries.extend([by_path(entry)]),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(entries)
        }
        Err(error) => Err(error.into()),
    }
}

/// The shards' entries: those of the inventory, and those that it did not list.
async fn find_shards(
    root: &ObjectOrigin,
    entries: &mut BTreeMap<String, ObjectEntry>,
    paths: Vec<String>,
) -> Result<BTreeMap<Arc<str>, ObjectEntry>, ImportError> {
    let mut shards = BTreeMap::new();
    let mut unlisted = Vec::new();
    for path in paths {
        check_object_path(&path)
            .map_err(|source| OriginError::Path { path: path.clone(), source })?;
        match entries.remove(&path) {
            Some(entry) => {
                shards.insert(Arc::from(path), entry);
            }
            None => unlisted.push(path),
        }
    }
    let looks = unlisted.into_iter().map(async |path| match root.entry(&path).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Err(path)),
        Err(error) => Err(ImportError::from(error)),
        Ok(entry) => Ok(Ok((Arc::from(path), entry))),
    });
    let looks: Vec<Result<_, String>> =
        futures::stream::iter(looks).buffered(LOOKS).try_collect().await?;
    let mut missing = Vec::new();
    for look in looks {
        match look {
            Ok(shard) => shards.extend([shard]),
            Err(path) => missing.push(path),
        }
    }
    if missing.is_empty() {
        Ok(shards)
    } else {
        Err(ImportError::MissingShards { shards: missing, more: 0 })
    }
}

async fn config(
    root: &ObjectOrigin,
    entries: &BTreeMap<String, ObjectEntry>,
) -> Result<Option<Value>, ImportError> {
    if !entries.contains_key(CONFIG) {
        return Ok(None);
    }
    let document = root.get(CONFIG, files::MAX_BYTES).await?;
    serde_json::from_slice(&document)
        .map(Some)
        .map_err(|error| ImportError::Config { problem: error.to_string() })
}

async fn headers(
    root: &ObjectOrigin,
    shards: &BTreeMap<Arc<str>, ObjectEntry>,
    progress: &dyn Progress,
) -> Result<Vec<ShardTensor>, ImportError> {
    progress.begin(Phase::Headers, shards.len() as u64);
    let reads = shards.iter().map(async |(path, entry)| {
        let tensors = header(root, path, entry.bytes).await?;
        progress.advance(1);
        Ok::<_, ImportError>(tensors)
    });
    let lists: Vec<Vec<ShardTensor>> =
        futures::stream::iter(reads).buffered(HEADERS).try_collect().await?;
    Ok(lists.into_iter().flatten().collect())
}

/// Reads one shard's header.
async fn header(
    root: &ObjectOrigin,
    path: &Arc<str>,
    file_bytes: u64,
) -> Result<Vec<ShardTensor>, ImportError> {
    let refuse = |fault| ImportError::Shard(ShardError { object: path.clone(), fault });
    let deadline = Instant::now() + HEADER_DEADLINE;
    let mut bytes = vec![0; length(PROBE_BYTES.min(file_bytes))];
    root.read_range(path, 0, &mut bytes, deadline).await?;
    let end = shard::header_end(&bytes, file_bytes).map_err(refuse)?;
    let (probed, end) = (bytes.len(), length(end));
    if end > probed {
        bytes.resize(end, 0);
        let into = &mut bytes[probed..];
        root.read_range(path, probed as u64, into, deadline).await?;
    }
    bytes.truncate(end);
    let object = path.clone();
    let parse = move || shard::parse_header(&object, &bytes[shard::PREFIX_BYTES..], file_bytes);
    let parsed: Result<_, HeaderFault> = crate::blocking::blocking(parse).await;
    parsed.map_err(refuse)
}

fn refuse_duplicates(tensors: &[ShardTensor]) -> Result<(), ImportError> {
    let mut by_name: Vec<&ShardTensor> = tensors.iter().collect();
    by_name.sort_unstable_by(|a, b| (&a.name, &a.object).cmp(&(&b.name, &b.object)));
    match by_name.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(ImportError::DuplicateTensor {
            name: pair[0].name.clone(),
            first: pair[0].object.clone(),
            second: pair[1].object.clone(),
        }),
        None => Ok(()),
    }
}

/// Whether the shards are still what the survey found.
pub(crate) async fn unchanged(root: &ObjectOrigin, survey: &Survey) -> Result<(), ImportError> {
    let looks = survey.shards.iter().map(async |(path, before)| {
        let now = root.entry(path).await?;
        let identity = |entry: &ObjectEntry| (entry.bytes, entry.etag.clone(), entry.modified_ms);
        if identity(&now) == identity(before) {
            Ok(())
        } else {
            Err(ImportError::Changed { object: path.to_string() })
        }
    });
    futures::stream::iter(looks).buffer_unordered(LOOKS).try_collect().await
}

fn file_record(object: &str, bytes: &Bytes) -> FileRecord {
    FileRecord { object: object.to_owned(), bytes: bytes.len() as u64, digest: Digest::of(bytes) }
}

/// Bytes that are about to be in memory.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

//! Writes a checkpoint: shards in parallel, then their index and the
//! configuration, all in a hidden directory that is renamed at the end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::config::config;
use super::{Draft, SynthError, SynthSpec, Synthesized};
use crate::{Phase, Progress};

/// How much of a tensor is made and written at once: large enough for the
/// write to cost nothing, small enough for every thread to hold one.
const PIECE_BYTES: u64 = 4 << 20;

/// Space that headers, the index and the file system's own records may take.
const SPARE_BYTES: u64 = 64 << 20;

/// A shard to write: a header and the tensors behind it.
struct Shard {
    name: String,
    header: Vec<u8>,
    tensors: Vec<Draft>,
    path: PathBuf,
}

/// A part of a shard.
enum Piece {
    Header { shard: usize },
    Tensor { shard: usize, tensor: usize, at: u64, offset: u64, bytes: usize },
}

pub(super) fn write(
    spec: &SynthSpec,
    drafts: Vec<Draft>,
    out: &Path,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Synthesized, SynthError> {
    let (tensors, tensor_bytes) =
        (drafts.len(), drafts.iter().map(|draft| draft.bytes).sum::<u64>());
    refuse_occupied(out)?;
    let unfinished = Unfinished::beside(out)?;
    require_space(&unfinished.path, tensor_bytes.saturating_add(SPARE_BYTES))?;
    let groups = divide(drafts, spec.shard_bytes);
    let shards = name(groups, &unfinished.path);
    progress.begin(Phase::Writing, tensor_bytes);
    write_pieces(spec, &shards, progress, stop)?;
    write_documents(spec, &shards, tensor_bytes, &unfinished.path)?;
    if stop.is_cancelled() {
        return Err(SynthError::Cancelled);
    }
    let shards = shards.len();
    unfinished.rename(out)?;
    Ok(Synthesized { path: out.to_owned(), shards, tensors, tensor_bytes })
}

fn refuse_occupied(out: &Path) -> Result<(), SynthError> {
    let occupied = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => true,
        Err(error) => return Err(failed(out, error)),
    };
    if occupied { Err(SynthError::Occupied(out.to_owned())) } else { Ok(()) }
}

fn require_space(path: &Path, needed: u64) -> Result<(), SynthError> {
    let space = rustix::fs::statvfs(path).map_err(|error| failed(path, error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < needed {
        return Err(SynthError::Space { path: path.to_owned(), free, needed });
    }
    Ok(())
}

/// The directory that is being filled. Dropped before it is renamed, it is
/// removed with everything in it.
struct Unfinished {
    path: PathBuf,
    renamed: bool,
}

impl Unfinished {
    fn beside(out: &Path) -> Result<Self, SynthError> {
        let absolute = std::path::absolute(out).map_err(|error| failed(out, error))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(SynthError::Occupied(out.to_owned()));
        };
        fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        let name = format!(".{}.unfinished-{}", name.to_string_lossy(), std::process::id());
        let path = parent.join(name);
        fs::create_dir(&path).map_err(|error| failed(&path, error))?;
        Ok(Self { path, renamed: false })
    }

    fn rename(mut self, out: &Path) -> Result<(), SynthError> {
        fs::rename(&self.path, out).map_err(|error| failed(out, error))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed is named so that a person can.
            let _left = fs::remove_dir_all(&self.path);
        }
    }
}

/// Fills shards one after the other, as `save_pretrained` does.
fn divide(drafts: Vec<Draft>, shard_bytes: u64) -> Vec<Vec<Draft>> {
    let mut groups: Vec<Vec<Draft>> = Vec::new();
    let mut room = 0u64;
    for draft in drafts {
        match groups.last_mut() {
            Some(group) if draft.bytes <= room => {
                room -= draft.bytes;
                group.push(draft);
            }
            _ => {
                room = shard_bytes.saturating_sub(draft.bytes);
                groups.push(vec![draft]);
            }
        }
    }
    groups
}

fn name(groups: Vec<Vec<Draft>>, directory: &Path) -> Vec<Shard> {
    let count = groups.len();
    let name = |(n, mut tensors): (usize, Vec<Draft>)| {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", n + 1),
        };
        // The order in which the safetensors library writes.
        tensors.sort_by(|a, b| (b.dtype.bits(), &a.name).cmp(&(a.dtype.bits(), &b.name)));
        let header = header(&tensors);
        let path = directory.join(&name);
        Shard { name, header, tensors, path }
    };
    groups.into_iter().enumerate().map(name).collect()
}

/// The header with its length in front, padded to eight bytes.
fn header(tensors: &[Draft]) -> Vec<u8> {
    let mut map = Map::new();
    map.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut end = 0u64;
    for tensor in tensors {
        let begin = end;
        end += tensor.bytes;
        let entry = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        });
        map.insert(tensor.name.clone(), entry);
    }
    let mut json = Value::Object(map).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

fn pieces(shards: &[Shard]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (shard, Shard { header, tensors, .. }) in shards.iter().enumerate() {
        pieces.push(Piece::Header { shard });
        let mut start = header.len() as u64;
        for (tensor, draft) in tensors.iter().enumerate() {
            let mut at = 0;
            while at < draft.bytes {
                let bytes = PIECE_BYTES.min(draft.bytes - at);
                let length = usize::try_from(bytes).unwrap_or(usize::MAX);
                pieces.push(Piece::Tensor { shard, tensor, at, offset: start + at, bytes: length });
                at += bytes;
            }
            start += draft.bytes;
        }
    }
    pieces
}

fn write_pieces(
    spec: &SynthSpec,
    shards: &[Shard],
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<(), SynthError> {
    let pieces = pieces(shards);
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        let mut buffer = Vec::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = match stop.is_cancelled() {
                true => Err(SynthError::Cancelled),
                false => write_piece(spec, shards, piece, &mut buffer),
            };
            match result {
                Ok(bytes) => progress.advance(bytes),
                Err(error) => {
                    next.store(pieces.len(), Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                    return;
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

fn write_piece(
    spec: &SynthSpec,
    shards: &[Shard],
    piece: &Piece,
    buffer: &mut Vec<u8>,
) -> Result<u64, SynthError> {
    let (shard, bytes, offset, done) = match *piece {
        Piece::Header { shard } => (&shards[shard], &*shards[shard].header, 0, 0),
        Piece::Tensor { shard, tensor, at, offset, bytes } => {
            let draft = &shards[shard].tensors[tensor];
            buffer.resize(bytes, 0);
            draft.fill.write(key(spec.seed, &draft.name), at, buffer);
            (&shards[shard], &**buffer, offset, bytes as u64)
        }
    };
    // Opened for each piece: a checkpoint may have more shards than a process
    // may have files.
    File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&shard.path)
        .and_then(|file| file.write_all_at(bytes, offset))
        .map_err(|error| failed(&shard.path, error))?;
    Ok(done)
}

/// A tensor's stream of random bits: its own, so that neither the order of
/// tensors nor the division into shards changes a value.
fn key(seed: u64, name: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("tpad synth 2026-11 tensor values");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    *hasher.finalize().as_bytes()
}

fn write_documents(
    spec: &SynthSpec,
    shards: &[Shard],
    tensor_bytes: u64,
    directory: &Path,
) -> Result<(), SynthError> {
    let put = |name: &str, value: &Value| {
        let path = directory.join(name);
        fs::write(&path, format!("{value:#}\n")).map_err(|error| failed(&path, error))
    };
    if shards.len() > 1 {
        let weight_map: BTreeMap<&str, &str> = shards
            .iter()
            .flat_map(|shard| shard.tensors.iter().map(|draft| (&*draft.name, &*shard.name)))
            .collect();
        let index = json!({ "metadata": { "total_size": tensor_bytes }, "weight_map": weight_map });
        put("model.safetensors.index.json", &index)?;
    }
    put("generation_config.json", &json!({ "do_sample": false }))?;
    put("config.json", &config(spec))
}

fn failed(path: &Path, error: io::Error) -> SynthError {
    SynthError::Io { path: path.to_owned(), error }
}

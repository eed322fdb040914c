//! The directory under the level: where files are, and how they are opened.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::sync::oneshot;
use tpad_manifest::BlockId;

use super::file::{self, Fault, Header, Page};
use super::reader::{Answer, NvmeIo, Reader, Unread, Way};
use crate::{Arena, BlockBytes, CacheClass, SlotMut, Urgency};

/// The layout's version is part of the path: another version's files are left
/// alone, and a downgrade finds its own.
const LAYOUT: &str = "tpad-cache-v1";

/// The file whose lock says that a process uses the directory.
const LOCK: &str = "lock";

/// A cache directory that this process alone uses.
#[derive(Debug)]
pub(super) struct Disk {
    blocks: PathBuf,
    unfinished: PathBuf,
    documents: PathBuf,
    /// Whether files are read and written past the page cache.
    direct: bool,
    reader: Reader,
    /// Why the reader is not the one that was asked for.
    fallback: Option<String>,
    next: AtomicU64,
    root: PathBuf,
    /// Locked as long as it is open: the kernel lets go of it however the
    /// process ends.
    lock: Mutex<File>,
}

impl Disk {
    /// Opens the directory, makes it if need be, removes what a killed process left
    /// unfinished, and chooses how to read. To be called where blocking is allowed.
    pub(super) fn open(path: &Path, io: NvmeIo) -> io::Result<Self> {
        let root = path.join(LAYOUT);
        let [blocks, unfinished, documents] =
            ["blocks", "unfinished", "documents"].map(|name| root.join(name));
        for directory in [&blocks, &unfinished, &documents] {
            fs::create_dir_all(directory)?;
        }
        let lock = Mutex::new(locked(&root)?);
        for entry in fs::read_dir(&unfinished)? {
            remove(&entry?.path())?;
        }
        let direct = takes_direct(&unfinished.join("probe"))?;
        let probe = Probe::write(unfinished.join("probe"), direct)?;
        let (reader, fallback) = choose(io, &probe)?;
        drop(probe);
        let next = AtomicU64::new(0);
        Ok(Self { blocks, unfinished, documents, direct, reader, fallback, next, root, lock })
    }

    /// What reads blocks.
    pub(super) const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Why the reader is not the one that was asked for, or would be preferred.
    pub(super) fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    pub(super) const fn is_direct(&self) -> bool {
        self.direct
    }

    pub(super) fn documents(&self) -> &Path {
        &self.documents
    }

    /// Makes what somebody removed under us: people empty caches like that. If the
    /// lock went too it is taken anew, unless another process has it by now.
    fn restore(&self) -> io::Result<()> {
        {
            let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            let held = lock.metadata()?;
            let there = fs::metadata(self.root.join(LOCK)).ok();
            if there.is_none_or(|there| (there.dev(), there.ino()) != (held.dev(), held.ino())) {
                fs::create_dir_all(&self.root)?;
                *lock = locked(&self.root)?;
            }
        }
        for directory in [&self.blocks, &self.unfinished, &self.documents] {
            if !directory.is_dir() {
                fs::create_dir_all(directory)?;
            }
        }
        Ok(())
    }

    /// Bytes that may still be written.
    pub(super) fn free(&self) -> io::Result<u64> {
        self.restore()?;
        let stat = rustix::fs::statvfs(&self.blocks)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Writes a block's file. What was begun and failed leaves nothing behind.
    pub(super) fn write(&self, header: &Header, bytes: &BlockBytes) -> io::Result<()> {
        let path = self.path(&header.id);
        let unfinished = self.unfinished();
        let written = create(&unfinished, self.direct)
            .and_then(|file| file::write(&file, header, bytes))
            .and_then(|()| match fs::rename(&unfinished, &path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    path.parent().map_or(Ok(()), fs::create_dir_all)?;
                    fs::rename(&unfinished, &path)
                }
                renamed => renamed,
            });
        if written.is_err() {
            // The first failure is the one to tell; the next start removes it too.
            let _left = remove(&unfinished);
        }
        written
    }

    /// Begins to read a block's file into a slot of the image's size.
    pub(super) fn read(
        &self,
        id: &BlockId,
        slot: SlotMut,
        urgency: Urgency,
    ) -> oneshot::Receiver<Answer> {
        self.reader.read(id, self.path(id), self.direct, slot, urgency)
    }

    /// Removes a block's file, if it is there.
    pub(super) fn remove(&self, id: &BlockId) -> io::Result<()> {
        remove(&self.path(id))
    }

    /// Calls `found` with each block on disk and what its file takes, until it
    /// says stop; removes what is no block's file.
    pub(super) fn scan(&self, mut found: impl FnMut(Header, u64) -> Found) -> io::Result<()> {
        for directory in fs::read_dir(&self.blocks)? {
            let directory = directory?.path();
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                // It would keep blocks from being written there.
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    remove(&directory)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for entry in entries {
                let path = entry?.path();
                let found = match inspect(&path) {
                    Ok(Some((header, bytes))) if self.path(&header.id) == path => {
                        found(header, bytes)
                    }
                    Ok(_) => Found::Remove,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Keep,
                    Err(error) => return Err(error),
                };
                match found {
                    Found::Keep => {}
                    Found::Remove => remove(&path)?,
                    Found::Stop => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// A new name for a file that is being written.
    pub(super) fn unfinished(&self) -> PathBuf {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.unfinished.join(n.to_string())
    }

    fn path(&self, id: &BlockId) -> PathBuf {
        let name = id.to_string();
        // Two levels: a directory with a million files is slow to list.
        self.blocks.join(name.get(..2).unwrap_or("00")).join(name)
    }
}

/// The lock of a directory that no other process uses.
fn locked(root: &Path) -> io::Result<File> {
    let path = root.join(LOCK);
    // Not kept open for writing, which would keep an operator from making the
    // file system read-only.
    drop(File::options().create(true).append(true).open(&path)?);
    let lock = File::open(&path)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let problem = format!("{} is in use by another process", root.display());
            Err(io::Error::new(io::ErrorKind::ResourceBusy, problem))
        }
        Err(error) => Err(error.into()),
    }
}

/// What becomes of a file that the scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It stays.
    Keep,
    /// It goes.
    Remove,
    /// Nobody wants to know more.
    Stop,
}

/// Whether the file system takes direct reads and writes.
fn takes_direct(path: &Path) -> io::Result<bool> {
    let probed = create(path, true).and_then(|file| {
        let mut page = Page::new();
        rustix::io::pwrite(&file, page.get(), 0)?;
        rustix::io::pread(open(path, true)?, page.get_mut(), 0)?;
        Ok(())
    });
    remove(path)?;
    match probed {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// A block's file to try readers with. Dropped, it is gone.
struct Probe {
    path: PathBuf,
    direct: bool,
    id: BlockId,
    block: BlockBytes,
    arena: Arc<Arena>,
}

impl Probe {
    /// The image of the probe: some pages and a bit.
    const BYTES: usize = 2 * file::PAGE + 1;

    fn write(path: PathBuf, direct: bool) -> io::Result<Self> {
        // Room for what is written and for what is read back.
        let arena = Arena::new(16 * file::PAGE as u64);
        let mut slot = slot(&arena)?;
        let pattern = (0..=u8::MAX).cycle();
        slot.iter_mut().zip(pattern).for_each(|(byte, of_pattern)| *byte = of_pattern);
        let block = slot.freeze();
        let probe = Self { path, direct, id: BlockId::of(&block), block, arena };
        let header = Header::of(&probe.id, &CacheClass::from("probe"), &probe.block);
        file::write(&create(&probe.path, direct)?, &header, &probe.block)?;
        Ok(probe)
    }

    /// Whether this reader brings the block.
    fn read(&self, reader: &Reader) -> io::Result<()> {
        let slot = slot(&self.arena)?;
        let path = self.path.clone();
        let answer = reader.read(&self.id, path, self.direct, slot, Urgency::Demand);
        match answer.blocking_recv() {
            Ok(Ok((_, slot))) if slot[..] == self.block[..] => Ok(()),
            Ok(Ok(_)) => Err(io::Error::other("it read other bytes than were written")),
            Ok(Err(Unread { fault: Fault::Disk(error), .. })) => Err(error),
            Ok(Err(unread)) => Err(io::Error::other(format!("{:?}", unread.fault))),
            Err(_ended) => Err(io::Error::other("it ended without an answer")),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // The next start removes what is left.
        let _left = remove(&self.path);
    }
}

fn slot(arena: &Arc<Arena>) -> io::Result<SlotMut> {
    arena.slot(Probe::BYTES)?.ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// The reader that was asked for or, where that one reads nothing, threads; and why.
fn choose(io: NvmeIo, probe: &Probe) -> io::Result<(Reader, Option<String>)> {
    let tried = |way| {
        let reader = Reader::start(way)?;
        probe.read(&reader)?;
        match reader.failed() {
            None => Ok(reader),
            // Others brought the block in its place.
            Some(problem) => Err(io::Error::other(problem)),
        }
    };
    let fallback = match io {
        NvmeIo::Threads => None,
        NvmeIo::Auto | NvmeIo::IoUring => match tried(Way::IoUring) {
            Ok(reader) => return Ok((reader, None)),
            Err(error) => Some(format!("io_uring: {error}")),
        },
    };
    Ok((tried(Way::Threads)?, fallback))
}

/// A file's header and size, if it is a whole block's file.
fn inspect(path: &Path) -> io::Result<Option<(Header, u64)>> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(None);
    }
    let file = open(path, false)?;
    let bytes = file.metadata()?.len();
    let mut page = Page::new();
    let read = rustix::io::pread(&file, page.get_mut(), 0)?;
    let header = Header::read(page.get().get(..read).unwrap_or_default()).ok();
    Ok(header.filter(|header| header.file_bytes() == Some(bytes)).map(|header| (header, bytes)))
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        removed => removed,
    }
}

/// A block's file, to read; `direct` past the page cache.
pub(super) fn open(path: &Path, direct: bool) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let flags = if direct { flags | OFlags::DIRECT } else { flags };
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn create(path: &Path, direct: bool) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let flags = if direct { flags | OFlags::DIRECT } else { flags };
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
}

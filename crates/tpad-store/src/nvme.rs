//! Local disk as a level: one file for each block, named by its id.
//!
//! A file is written under another name and renamed when it is whole, so a
//! process that is killed leaves whole files and leftovers that the next start
//! removes. What a file holds is checked each time it is read: its header
//! against the block that is asked for, its image against the checksum that the
//! header keeps, piece by piece as it comes. A disk that is full or read-only is read on; one that fails is
//! left alone for a while. Neither is a reader's concern.

mod disk;
mod documents;
mod file;
mod reader;
mod service;
mod table;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, watch};
use tpad_manifest::BlockId;

use self::disk::{Disk, Found};
pub use self::documents::DocumentCache;
use self::documents::Shelf;
use self::file::{Fault, Header, file_bytes};
pub use self::reader::NvmeIo;
use self::reader::Unread;
use self::service::{Service, is_refusal};
use self::table::{NoRoom, Table};
use crate::level::{Check, Health, Level, LevelError, LevelRead, LevelReader, LevelUsage};
use crate::{BlockBytes, CacheClass, Medium, SlotMut, StoreError, StoreMetrics, Urgency};

/// Files that are written at once.
const WRITES: usize = 8;

/// How long until a directory that could not be opened is tried again; it doubles.
const FIRST_TRY: Duration = Duration::from_millis(100);
/// How long at most.
const LAST_TRY: Duration = Duration::from_secs(10);

/// The most that documents take, however large the level is.
const MOST_DOCUMENT_BYTES: u64 = 4 << 30;

/// Where blocks are kept on disk, and how much of it they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeConfig {
    /// The cache directory. One process uses it at a time.
    pub path: PathBuf,
    /// What files may take. Never exceeded, but for a document that is being
    /// replaced: its last version stays until the new one is whole.
    pub capacity_bytes: u64,
    /// What the file system keeps free, whoever else writes to it: before it has
    /// less, blocks go.
    pub free_floor_bytes: u64,
    /// How it is read.
    pub io: NvmeIo,
}

impl NvmeConfig {
    /// What documents may take: an eighth, which holds the indexes of what fits
    /// in the rest many times over.
    const fn document_bytes(&self) -> u64 {
        let share = self.capacity_bytes / 8;
        if share < MOST_DOCUMENT_BYTES { share } else { MOST_DOCUMENT_BYTES }
    }

    /// What blocks may take.
    #[must_use]
    pub const fn block_bytes(&self) -> u64 {
        self.capacity_bytes - self.document_bytes()
    }
}

/// Blocks on local disk.
///
/// **Invariant:** what a read returns with its check was admitted under that id,
/// whatever happened to the files in between.
#[derive(Debug)]
pub struct NvmeLevel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NvmeConfig,
    metrics: StoreMetrics,
    service: Service,
    table: Mutex<Table>,
    writes: Arc<Semaphore>,
    documents: Mutex<Shelf>,
    scanning: watch::Sender<bool>,
    /// The level is gone: a scan ends.
    gone: AtomicBool,
}

impl NvmeLevel {
    /// The level over `config.path`, and a scan of what is there, which goes on
    /// in the background. A directory that cannot be used is no error: the level
    /// is out of service until it can. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When a bound makes no sense.
    pub fn open(config: NvmeConfig, metrics: StoreMetrics) -> Result<Arc<Self>, StoreError> {
        if config.capacity_bytes == 0 {
            let (key, remedy) = ("levels.nvme.capacity", "name a size, or remove levels.nvme.path");
            return Err(StoreError::Bound { key, value: 0, remedy });
        }
        let inner = Arc::new(Inner {
            service: Service::new(config.path.clone(), config.io),
            config,
            metrics,
            table: Mutex::default(),
            writes: Arc::new(Semaphore::new(WRITES)),
            documents: Mutex::default(),
            scanning: watch::Sender::new(true),
            gone: AtomicBool::new(false),
        });
        tokio::spawn(keep_opening(Arc::downgrade(&inner)));
        Ok(Arc::new(Self { inner }))
    }

    /// Whether what was on disk at the start is still being looked at.
    #[must_use]
    pub fn is_scanning(&self) -> bool {
        *self.inner.scanning.borrow()
    }

    /// Returns when that is over.
    pub async fn scanned(&self) {
        let mut scanning = self.inner.scanning.subscribe();
        // The sender lives in `self`, so the channel is open.
        let _ = scanning.wait_for(|scanning| !scanning).await;
    }

    /// Small documents beside the blocks.
    #[must_use]
    pub fn documents(&self) -> DocumentCache {
        DocumentCache::of(&self.inner)
    }

    /// What blocks of this class take, headers and padding included.
    #[must_use]
    pub fn kept_of(&self, class: &CacheClass) -> LevelUsage {
        let account = self.inner.table().of(class.as_str());
        let capacity = self.inner.config.block_bytes();
        LevelUsage { blocks: account.blocks, bytes: account.bytes, capacity }
    }

    /// What the file of an image takes.
    #[must_use]
    pub fn file_bytes(image_bytes: u64) -> Option<u64> {
        file_bytes(image_bytes)
    }

    /// From here on blocks of these classes are at home here: others never push
    /// them out.
    pub fn set_homes(&self, classes: impl IntoIterator<Item = CacheClass>) {
        let homes: BTreeSet<String> =
            classes.into_iter().map(|class| class.as_str().to_owned()).collect();
        self.inner.table().set_homes(homes);
    }
}

impl Drop for NvmeLevel {
    fn drop(&mut self) {
        self.inner.gone.store(true, Ordering::Release);
    }
}

#[async_trait]
impl Level for NvmeLevel {
    fn medium(&self) -> Medium {
        Medium::Nvme
    }

    fn contains(&self, id: &BlockId) -> bool {
        self.inner.table().contains(id)
    }

    fn settle(&self, id: &BlockId) -> bool {
        self.inner.table().touch(id)
    }

    async fn read(
        &self,
        id: &BlockId,
        slot: SlotMut,
        urgency: Urgency,
    ) -> Result<LevelRead, LevelError> {
        if !self.inner.table().touch(id) {
            return Ok(LevelRead::Miss(slot));
        }
        let Some(disk) = self.inner.service.disk() else { return Ok(LevelRead::Miss(slot)) };
        // Dropped after the receiver, if nobody waits for the answer any more.
        let mut unanswered = Unanswered(Some(Arc::clone(&disk)));
        let answer = disk.read(id, slot, urgency).await;
        unanswered.0 = None;
        let Unread { fault, slot } = match answer {
            Ok(Ok((_, slot))) => return Ok(LevelRead::Hit { slot, check: Check::Held }),
            Ok(Err(unread)) => unread,
            Err(_ended) => return Err(LevelError::new("a read ended without an answer")),
        };
        match fault {
            Fault::Missing => {}
            Fault::Damaged(problem) => {
                self.inner.metrics.verify_failed(Medium::Nvme);
                tracing::warn!(level = "nvme", block = %id, problem, "damaged file removed");
            }
            Fault::Disk(error) => {
                return Err(LevelError::new(format!("reading block {id}: {error}")));
            }
        }
        self.remove(id).await?;
        slot.map(LevelRead::Miss).ok_or_else(|| LevelError::new("the level is closed"))
    }

    fn hurry(&self, id: &BlockId) {
        if let Some(disk) = self.inner.service.disk() {
            disk.reader().hurry(id);
        }
    }

    fn progress(&self) -> u64 {
        self.inner.service.disk().map_or(0, |disk| disk.reader().progress())
    }

    async fn admit(
        &self,
        id: &BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
    ) -> Result<bool, LevelError> {
        if self.contains(id) {
            return Ok(true);
        }
        // Nobody waits for a write: over the bound it is dropped.
        let Ok(permit) = Arc::clone(&self.inner.writes).try_acquire_owned() else {
            return Ok(false);
        };
        if !self.inner.service.may_write() {
            return Ok(false);
        }
        let (inner, id, class, bytes) =
            (Arc::clone(&self.inner), *id, class.clone(), bytes.clone());
        blocking(move || {
            let _permit = permit;
            inner.write(&id, &class, &bytes)
        })
        .await
    }

    async fn remove(&self, id: &BlockId) -> Result<(), LevelError> {
        let (inner, id) = (Arc::clone(&self.inner), *id);
        blocking(move || {
            if let Some(disk) = inner.service.disk() {
                inner.drop_file(&disk, &id);
            }
            Ok(())
        })
        .await
    }

    fn usage(&self) -> LevelUsage {
        let table = self.inner.table();
        let capacity = self.inner.config.block_bytes();
        LevelUsage { blocks: table.blocks(), bytes: table.bytes(), capacity }
    }

    fn health(&self) -> Health {
        match self.inner.service.problem() {
            None => Health::Ok,
            Some(problem) if self.inner.service.disk().is_some() => Health::ReadOnly(problem),
            Some(problem) => Health::Broken(problem),
        }
    }

    fn takes(&self) -> bool {
        self.inner.service.may_write()
    }

    fn note(&self) -> Option<String> {
        let disk = self.inner.service.disk()?;
        let files = if disk.is_direct() {
            "direct reads and writes"
        } else {
            "buffered reads and writes: the file system takes no direct ones"
        };
        let scanning = if self.is_scanning() { "; what was there is being looked at" } else { "" };
        Some(format!("{files}{scanning}"))
    }

    fn reader(&self) -> Option<LevelReader> {
        let disk = self.inner.service.disk()?;
        let (io, failed) = (disk.reader().way().as_str(), disk.reader().failed());
        let reason = failed.map(|problem| format!("io_uring failed: {problem}"));
        Some(LevelReader { io, reason: reason.or_else(|| disk.fallback().map(str::to_owned)) })
    }

    async fn close(&self) {
        if let Some(disk) = self.inner.service.disk() {
            disk.reader().close().await;
        }
    }
}

impl Inner {
    /// Opens the directory and, the first time, looks at what is there.
    fn open(self: &Arc<Self>) -> io::Result<Arc<Disk>> {
        let (disk, first) = self.service.open()?;
        if first {
            let (inner, disk) = (Arc::clone(self), Arc::clone(&disk));
            self.scanning.send_replace(true);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = inner.scan(&disk) {
                    tracing::warn!(level = "nvme", %error, "not all of the cache directory was read");
                }
                inner.scanning.send_replace(false);
            });
        }
        Ok(disk)
    }

    fn scan(&self, disk: &Disk) -> io::Result<()> {
        let capacity = self.config.block_bytes();
        disk.scan(|header, bytes| {
            if self.gone.load(Ordering::Acquire) {
                return Found::Stop;
            }
            match self.table().found(header.id, &header.class, bytes, capacity) {
                true => Found::Keep,
                false => Found::Remove,
            }
        })?;
        let (blocks, bytes) = {
            let table = self.table();
            (table.blocks(), table.bytes())
        };
        tracing::info!(level = "nvme", blocks, bytes, "cache directory read");
        Ok(())
    }

    fn write(
        self: &Arc<Self>,
        id: &BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
    ) -> Result<bool, LevelError> {
        let disk = match self.open() {
            Ok(disk) => disk,
            Err(error) => {
                self.service.refused(error.to_string());
                return Ok(false);
            }
        };
        let Some(needed) = file_bytes(bytes.len() as u64) else { return Ok(false) };
        let free = match disk.free() {
            Ok(free) => free,
            Err(error) => return Err(LevelError::new(format!("looking at the disk: {error}"))),
        };
        let short = self.config.free_floor_bytes.saturating_add(needed).saturating_sub(free);
        let capacity = self.config.block_bytes();
        let reserved = self.table().reserve(id, class.as_str(), needed, capacity, short);
        let victims = match reserved {
            Ok(victims) => victims,
            Err(NoRoom::Full) if short > 0 => {
                let floor = self.config.free_floor_bytes;
                let problem = format!(
                    "the disk has {free} bytes free, levels.nvme.free_floor keeps {floor}, and no \
                     block may go"
                );
                self.service.refused(problem);
                return Ok(false);
            }
            Err(NoRoom::Full | NoRoom::Known) => return Ok(false),
        };
        let mut removed = Ok(());
        for victim in victims {
            removed = removed.and_then(|()| disk.remove(&victim.id));
            if removed.is_ok() {
                self.table().deleted(&victim.id);
                self.metrics.level_evicted(Medium::Nvme);
            } else {
                self.table().restore(victim);
            }
        }
        let header = Header::of(id, class, bytes);
        match removed.and_then(|()| disk.write(&header, bytes)) {
            Ok(()) => {
                self.table().written(id, class.as_str(), needed);
                self.service.wrote();
                Ok(true)
            }
            Err(error) => {
                self.table().failed(id, needed);
                if !is_refusal(&error) {
                    return Err(LevelError::new(format!("writing block {id}: {error}")));
                }
                self.service.refused(error.to_string());
                Ok(false)
            }
        }
    }

    /// Forgets a block and removes its file. One that cannot be removed is found
    /// again at the next start, and checked again when it is read.
    fn drop_file(&self, disk: &Disk, id: &BlockId) {
        if !self.table().forget(id) {
            return;
        }
        if let Err(error) = disk.remove(id) {
            tracing::warn!(level = "nvme", block = %id, %error, "a file cannot be removed");
        }
        self.table().deleted(id);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read whose answer did not come: what was not begun of it is dropped, with its slot.
struct Unanswered(Option<Arc<Disk>>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(disk) = &self.0 {
            disk.reader().purge();
        }
    }
}

/// Opens the directory, and tries again while that fails: the process before this
/// one may still be using it. Ends when the level is gone.
async fn keep_opening(level: Weak<Inner>) {
    let mut pause = FIRST_TRY;
    loop {
        let Some(inner) = level.upgrade() else { return };
        let opened = blocking(move || {
            let opened = inner.open();
            if let Err(error) = &opened {
                inner.service.refused(error.to_string());
                inner.scanning.send_replace(false);
            } else {
                inner.service.wrote();
            }
            Ok(opened.is_ok())
        });
        if !matches!(opened.await, Ok(false)) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_TRY);
    }
}

/// Runs what may wait for the disk on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LevelError> + Send + 'static,
) -> Result<T, LevelError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(LevelError::new(format!("a disk task ended early: {error}"))),
    }
}

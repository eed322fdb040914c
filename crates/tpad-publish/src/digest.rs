//! Digests of block images, read from an origin mostly forwards, many at a
//! time, in bounded memory.
//!
//! Small images that lie near each other are read together: what separates two
//! tensors by a little is read and dropped rather than asked for around. An
//! image larger than a window is read and digested window by window.

mod batch;
#[cfg(test)]
mod tests;
mod window;

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_manifest::BlockId;
use tpad_store::{BlockFetch, ErrorKind, Origin, OriginError};

use crate::Progress;

/// Bytes of images that are read together: large enough to keep a disk or an
/// object store streaming, small enough for a dozen to be in memory.
const WINDOW_BYTES: u64 = 16 << 20;

/// The most that one request asks for: object stores give one connection about
/// this much a second or two.
const READ_BYTES: usize = 8 << 20;

/// Requests in flight for one window.
const READS: usize = 4;

/// How long one request may take, its retries included.
const READ_DEADLINE: Duration = Duration::from_secs(300);

/// What reading and digesting one image came to, by the image's number.
pub(crate) type Digested = (usize, Result<BlockId, OriginError>);

/// How digesting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Every image was reported.
    All,
    /// The receiver wanted no more.
    Stopped,
    /// Interrupted from outside.
    Cancelled,
}

/// What digesting needs around it.
pub(crate) struct Digester<'a> {
    /// Where the bytes are.
    pub(crate) origin: &'a dyn Origin,
    /// Who hears of it.
    pub(crate) progress: &'a dyn Progress,
    /// Ends it early.
    pub(crate) stop: &'a CancellationToken,
}

impl Digester<'_> {
    /// Digests `images` and hands the results to `receive`, each image once, in
    /// no particular order. One that cannot be read does not keep another from
    /// being digested, unless it is the store that fails.
    pub(crate) async fn run(
        &self,
        images: &[BlockFetch],
        mut receive: impl FnMut(Vec<Digested>) -> ControlFlow<()>,
    ) -> Ended {
        let buffers = Buffers::default();
        let work =
            batch::plan(images).into_iter().map(|batch| self.digest(images, batch, &buffers));
        let mut results = futures::stream::iter(work).buffer_unordered(concurrency());
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ended::Cancelled,
                result = results.next() => match result {
                    None => return Ended::All,
                    Some(result) => if receive(result).is_break() {
                        return Ended::Stopped;
                    },
                },
            }
        }
    }

    async fn digest(
        &self,
        images: &[BlockFetch],
        batch: Vec<usize>,
        buffers: &Buffers,
    ) -> Vec<Digested> {
        if let [image] = *batch
            && images[image].bytes > WINDOW_BYTES
        {
            return vec![(image, self.digest_large(&images[image], buffers).await)];
        }
        match self.digest_batch(images, &batch, buffers).await {
            Ok(digests) => return batch.into_iter().zip(digests.into_iter().map(Ok)).collect(),
            // Its retries are spent: whoever asks next waits as long to hear the same.
            Err(error) if is_of_store(error.kind()) => {
                return batch.into_iter().map(|image| (image, Err(error.clone()))).collect();
            }
            // Something in the batch cannot be read: find out what.
            Err(_) => {}
        }
        let mut results = Vec::with_capacity(batch.len());
        for image in batch {
            results.push((image, self.digest_large(&images[image], buffers).await));
        }
        results
    }

    /// Fills pieces of memory from pieces of objects.
    async fn read(&self, pieces: Vec<(&str, u64, &mut [u8])>) -> Result<(), OriginError> {
        let reads = pieces.into_iter().flat_map(|(object, offset, into)| {
            let starts = (offset..).step_by(READ_BYTES);
            into.chunks_mut(READ_BYTES).zip(starts).map(move |(into, offset)| {
                self.origin.read_range(object, offset, into, Instant::now() + READ_DEADLINE)
            })
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
        while let Some(read) = reads.next().await {
            read?;
        }
        Ok(())
    }
}

/// Whether a failure tells of the store rather than of what it holds.
pub(crate) fn is_of_store(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Unavailable
        | ErrorKind::Denied
        | ErrorKind::DeadlineExceeded
        | ErrorKind::ResourceExhausted
        | ErrorKind::Cancelled
        | ErrorKind::Internal => true,
        ErrorKind::NotFound
        | ErrorKind::DataLoss
        | ErrorKind::InvalidArgument
        | ErrorKind::FailedPrecondition => false,
    }
}

/// Windows in flight: enough to keep every core busy while others are read.
fn concurrency() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).saturating_mul(2).clamp(4, 16)
}

/// Memory that is used again: fresh pages cost more than the reads that fill
/// them.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// A buffer of at least this size; its bytes are anything.
    fn take(&self, bytes: usize) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = spare.unwrap_or_default();
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        buffer
    }

    fn give(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

//! One image at a time, through windows.

use futures::StreamExt as _;
use tpad_manifest::BlockId;
use tpad_store::{BlockFetch, OriginError};

use super::{Buffers, Digester, WINDOW_BYTES};
use crate::blocking::blocking;

/// Windows of one image in memory: one is digested while the next is read.
const WINDOWS: usize = 2;

impl Digester<'_> {
    /// Digests an image of any size.
    pub(super) async fn digest_large(
        &self,
        image: &BlockFetch,
        buffers: &Buffers,
    ) -> Result<BlockId, OriginError> {
        let starts = (0..image.bytes).step_by(usize::try_from(WINDOW_BYTES).unwrap_or(usize::MAX));
        let reads = starts.map(|start| self.read_window(image, start, buffers));
        let mut windows = std::pin::pin!(futures::stream::iter(reads).buffered(WINDOWS));
        let mut hasher = blake3::Hasher::new();
        while let Some(window) = windows.next().await {
            let (buffer, bytes) = window?;
            let work = move || {
                hasher.update_rayon(&buffer[..bytes]);
                (hasher, buffer)
            };
            let (returned, buffer) = blocking(work).await;
            hasher = returned;
            buffers.give(buffer);
            self.progress.advance(bytes as u64);
        }
        Ok(hasher.finalize().into())
    }

    /// Reads the image's bytes from `start` on, at most a window of them.
    async fn read_window(
        &self,
        image: &BlockFetch,
        start: u64,
        buffers: &Buffers,
    ) -> Result<(Vec<u8>, usize), OriginError> {
        let end = image.bytes.min(start + WINDOW_BYTES);
        let in_window = |at: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
        let bytes = in_window(end);
        let mut buffer = buffers.take(bytes);
        let mut pieces = Vec::new();
        let mut rest = &mut buffer[..bytes];
        let mut at = start;
        // Parts are in the image's order.
        for part in &image.parts {
            let (from, to) = (part.at.max(start), (part.at + part.bytes).min(end));
            if from >= to {
                continue;
            }
            let (padding, after) =
                std::mem::take(&mut rest).split_at_mut(in_window(from) - in_window(at));
            padding.fill(0);
            let (into, after) = after.split_at_mut(in_window(to) - in_window(from));
            pieces.push((&*part.object, part.offset + (from - part.at), into));
            (rest, at) = (after, to);
        }
        rest.fill(0);
        match self.read(pieces).await {
            Ok(()) => Ok((buffer, bytes)),
            Err(error) => {
                buffers.give(buffer);
                Err(error)
            }
        }
    }
}

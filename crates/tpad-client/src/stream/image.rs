//! Memory for images, used again and again: fresh memory costs a page fault for
//! every 4 KiB, which is more than copying them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The most memory that is taken for bytes which have not come: a larger image
/// grows as it arrives, so a claim alone costs nothing.
const TRUST_BYTES: usize = 64 << 20;

/// Smaller images are not worth keeping memory for: the allocator keeps it.
const SMALL_BYTES: usize = 64 << 10;

/// Memory that was used and waits for the next image.
#[derive(Debug)]
pub(crate) struct Buffers {
    limit: usize,
    free: Mutex<Vec<Box<[u8]>>>,
}

/// An image on its way in.
#[derive(Debug)]
pub(crate) struct Image {
    lent: Lent,
    filled: usize,
}

/// Memory that goes back when nobody looks at it any more.
#[derive(Debug)]
struct Lent {
    memory: Box<[u8]>,
    /// What of it is the image.
    bytes: usize,
    buffers: Arc<Buffers>,
}

impl Buffers {
    /// Keeps up to `limit` bytes.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Arc::new(Self { limit, free: Mutex::default() })
    }

    /// Memory for an image of `bytes`, which are announced.
    pub(crate) fn image(self: &Arc<Self>, bytes: usize) -> Image {
        let memory = self.take(bytes).unwrap_or_else(|| {
            let trusted = bytes.min(TRUST_BYTES);
            // Zeroes that the system brings when they are written to, page by page.
            vec![0; trusted].into()
        });
        Image { lent: Lent { memory, bytes, buffers: Arc::clone(self) }, filled: 0 }
    }

    /// The smallest that does; none that is twice as large, which would go to waste.
    fn take(&self, bytes: usize) -> Option<Box<[u8]>> {
        if bytes < SMALL_BYTES {
            return None;
        }
        let mut free = self.lock();
        let fits = |memory: &[u8]| (bytes..bytes.saturating_mul(2)).contains(&memory.len());
        let best = free.iter().enumerate().filter(|(_, memory)| fits(memory));
        let best = best.min_by_key(|(_, memory)| memory.len()).map(|(at, _)| at)?;
        Some(free.swap_remove(best))
    }

    /// Keeps `memory`, in the place of what has waited longest if need be.
    fn give_back(&self, memory: Box<[u8]>) {
        if memory.len() < SMALL_BYTES || memory.len() > self.limit {
            return;
        }
        let mut gone = Vec::new();
        let mut free = self.lock();
        let mut kept: usize = free.iter().map(|memory| memory.len()).sum();
        while kept + memory.len() > self.limit {
            let oldest = free.remove(0);
            kept -= oldest.len();
            gone.push(oldest);
        }
        free.push(memory);
        drop(free);
        // Not under the lock: giving memory back to the system takes time.
        drop(gone);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Box<[u8]>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    /// Where the next bytes go: empty when the image is whole.
    pub(crate) fn unfilled(&mut self) -> &mut [u8] {
        let Lent { memory, bytes, .. } = &mut self.lent;
        if self.filled == memory.len() && self.filled < *bytes {
            // As much again as came.
            let more = memory.len().max(SMALL_BYTES).min(*bytes - memory.len());
            let mut larger = std::mem::take(memory).into_vec();
            larger.reserve_exact(more);
            larger.resize(larger.len() + more, 0);
            *memory = larger.into();
        }
        let end = memory.len().min(*bytes);
        &mut memory[self.filled..end]
    }

    /// All that there was room for came.
    pub(crate) fn fill(&mut self) {
        self.filled = self.lent.memory.len().min(self.lent.bytes);
    }

    /// The image; what did not come is not part of it.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        self.lent.bytes = self.filled;
        Bytes::from_owner(self.lent)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.give_back(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(buffers: &Arc<Buffers>, bytes: usize, with: u8) -> Bytes {
        let mut image = buffers.image(bytes);
        while !image.unfilled().is_empty() {
            image.unfilled().fill(with);
            image.fill();
        }
        image.into_bytes()
    }

    #[test]
    fn memory_is_used_again_once_nobody_looks_at_it() {
        let buffers = Buffers::new(1 << 20);
        let first = whole(&buffers, 300_000, 1);
        let (at, tensor) = (first.as_ptr(), first.slice(1000..2000));
        drop(first);
        let second = whole(&buffers, 300_000, 2);
        assert_ne!(second.as_ptr(), at, "a tensor is still looked at");
        assert!(tensor.iter().all(|byte| *byte == 1));
        drop(tensor);
        let third = whole(&buffers, 200_000, 3);
        assert_eq!(third.as_ptr(), at);
        assert!(third.len() == 200_000 && third.iter().all(|byte| *byte == 3));
        assert!(second.iter().all(|byte| *byte == 2));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes() {
        let buffers = Buffers::new(1 << 20);
        let sizes = [400_000, 500_000, 300_000, 2 << 20];
        drop(sizes.map(|bytes| whole(&buffers, bytes, 9)));
        let kept: Vec<usize> = buffers.lock().iter().map(|memory| memory.len()).collect();
        assert_eq!(kept, [500_000, 300_000]);
        assert!(buffers.take(100_000).is_none(), "far too large");
        assert!(buffers.take(260_000).is_some_and(|memory| memory.len() == 300_000));
    }

    #[test]
    fn a_claim_alone_takes_no_memory() {
        let mut image = Buffers::new(0).image(usize::MAX);
        assert_eq!(image.unfilled().len(), TRUST_BYTES);
        image.fill();
        assert_eq!(image.unfilled().len(), TRUST_BYTES);
        assert_eq!(image.into_bytes().len(), TRUST_BYTES);
    }

    #[test]
    fn an_empty_image_is_whole() {
        assert!(whole(&Buffers::new(0), 0, 0).is_empty());
    }
}

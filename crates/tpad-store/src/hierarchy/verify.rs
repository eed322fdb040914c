//! Verification of what lower levels read: no byte leaves the hierarchy before it.
//! What an origin sends is digested on arrival (`origin.rs`).

use std::sync::Arc;

use tpad_manifest::BlockId;

use crate::gate::Gate;
use crate::level::{Check, crc64_nvme};
use crate::{SlotMut, Urgency};

/// Below this a digest takes less than the 500 µs for which a task may keep its
/// thread, and less than handing it over.
pub(super) const INLINE_BYTES: usize = 128 << 10;
/// Above this a digest is computed by several threads.
const PARALLEL_BYTES: usize = 1 << 20;

/// A slot's bytes are not what they should be.
#[derive(Debug)]
pub(super) struct Wrong {
    /// The slot, to be filled again.
    pub(super) slot: SlotMut,
}

/// Gives the slot back if its bytes satisfy `check`. Large ones are checked on
/// the blocking pool, as many at once as `gate` has places.
///
/// # Errors
/// The slot with other bytes, or `None` when the pool is gone: the runtime ends.
pub(super) async fn verify(
    gate: &Arc<Gate>,
    id: BlockId,
    check: Check,
    urgency: Urgency,
    slot: SlotMut,
) -> Result<SlotMut, Option<Wrong>> {
    if check == Check::Held {
        return Ok(slot);
    }
    if slot.len() <= INLINE_BYTES {
        return compare(id, check, slot).map_err(Some);
    }
    let permit = gate.enter(1, urgency).await;
    let compared = tokio::task::spawn_blocking(move || {
        let compared = compare(id, check, slot);
        drop(permit);
        compared
    });
    match compared.await {
        Ok(compared) => compared.map_err(Some),
        Err(_ended) => Err(None),
    }
}

fn compare(id: BlockId, check: Check, slot: SlotMut) -> Result<SlotMut, Wrong> {
    let right = match check {
        Check::Digest => digest(&slot) == id,
        Check::Held => true,
        Check::Crc64Nvme(expected) => crc64_nvme(&slot) == expected,
    };
    if right { Ok(slot) } else { Err(Wrong { slot }) }
}

fn digest(bytes: &[u8]) -> BlockId {
    let mut hasher = blake3::Hasher::new();
    if bytes.len() >= PARALLEL_BYTES {
        hasher.update_rayon(bytes);
    } else {
        hasher.update(bytes);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arena;

    #[tokio::test]
    async fn one_wrong_bit_is_found_at_every_size() {
        let gate = Gate::new(1);
        for bytes in [1, INLINE_BYTES, INLINE_BYTES + 1, PARALLEL_BYTES, PARALLEL_BYTES + 1] {
            let arena = Arena::new(4 << 20);
            let mut slot = arena.slot(bytes).expect("mapped").expect("room");
            slot.fill(7);
            let id = BlockId::of(&slot);
            let crc = Check::Crc64Nvme(crc64_nvme(&slot));
            for check in [Check::Digest, crc] {
                slot = verify(&gate, id, check, Urgency::Demand, slot).await.expect("right");
                slot[bytes / 2] ^= 0x10;
                let wrong = verify(&gate, id, check, Urgency::Demand, slot).await;
                slot = wrong.expect_err("wrong").expect("compared").slot;
                slot[bytes / 2] ^= 0x10;
            }
        }
    }
}

//! What a tier takes in each level, from its index header alone.

use tpad_manifest::{IndexHeader, Placement, TierNeed, TierRecord};

use crate::{NvmeLevel, slot_bytes};

/// What a tier's blocks take where they are kept: never less than they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// In host memory, as slots.
    pub dram: u64,
    /// On disk, as files.
    pub nvme: u64,
    /// What of `dram` routers may take.
    pub routers: u64,
}

impl Footprint {
    /// Of the tier with this header. Exact where all experts have one size; else
    /// every block is taken for the most that its size may be padded by.
    #[must_use]
    pub fn of(tier: &TierRecord, header: &IndexHeader) -> Self {
        let mut sizes = header.templates.iter().map(|template| template.image_bytes().ok());
        let first = sizes.next().flatten();
        let uniform = first.filter(|_| sizes.all(|size| size == first));
        let experts = tier.groups.iter().map(|group| u64::from(group.experts));
        let experts = experts.fold(0, u64::saturating_add);
        let mut sum = Self::default();
        for segment in &header.segments {
            let (blocks, bytes) = (segment.blocks, segment.image_bytes);
            let exact = uniform.and_then(|image| {
                let others = blocks.checked_sub(experts)?;
                let rest = bytes.checked_sub(image.checked_mul(experts)?)?;
                // Without a router nothing may be left over.
                (others > 0 || rest == 0).then_some(())?;
                let dram = slot_bytes(image)?.checked_mul(experts)?;
                let nvme = NvmeLevel::file_bytes(image)?.checked_mul(experts)?;
                Some((dram, nvme, others, rest))
            });
            let (dram, nvme, others, rest) = exact.unwrap_or((0, 0, blocks, bytes));
            let slots = padded(others, rest);
            let routers = if exact.is_some() { slots } else { padded(1, bytes / blocks.max(1)) };
            sum.dram = sum.dram.saturating_add(dram).saturating_add(slots);
            // A page more for each: the file's header.
            sum.nvme = sum.nvme.saturating_add(nvme).saturating_add(padded(others * 2, rest));
            sum.routers = sum.routers.saturating_add(routers);
        }
        sum
    }

    /// What the tier needs of a place, its own part of host memory if it has one.
    #[must_use]
    pub fn need(&self, tier: &TierRecord, dram: Option<u64>) -> TierNeed {
        let bytes = if tier.placement == Placement::Nvme { self.nvme } else { self.dram };
        TierNeed { tier: tier.id.to_string(), placement: tier.placement, bytes, dram }
    }
}

/// The most that blocks of so many bytes in all take: a page each, or a 32nd.
const fn padded(blocks: u64, bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 32).saturating_add(blocks.saturating_mul(4096))
}

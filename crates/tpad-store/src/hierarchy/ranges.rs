//! From a block's parts to the ranges that are asked for.

use std::sync::Arc;

use crate::arena::SlotPart;
use crate::{BlockFetch, FetchPart, FetchTuning, SlotMut};

/// A range is collected beside the slot only up to this size: such buffers are
/// not part of any budget. Larger parts go to the slot each on its own, where
/// bytes cost more than one more request.
const COLLECT_BYTES: u64 = 1 << 20;

/// One request to the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) object: Arc<str>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// What of it goes where. Contiguous on both sides there is one piece, and
    /// the range is read into the slot; otherwise it is collected and copied.
    pub(super) pieces: Vec<Piece>,
}

/// A piece of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The first byte within the range.
    pub(super) from: u64,
    /// The first byte within the image.
    pub(super) at: u64,
    pub(super) bytes: u64,
}

/// The ranges of a block: neighbours in an object are fetched together, large
/// parts are split.
pub(super) fn ranges(fetch: &BlockFetch, tuning: &FetchTuning) -> Vec<Range> {
    let mut parts: Vec<&FetchPart> = fetch.parts.iter().filter(|part| part.bytes > 0).collect();
    parts.sort_by(|a, b| (&a.object, a.offset).cmp(&(&b.object, b.offset)));
    let mut ranges: Vec<Range> = Vec::new();
    for part in parts {
        let joined = ranges.last_mut().is_some_and(|range| join(range, part, tuning));
        if !joined {
            ranges.push(Range {
                object: Arc::clone(&part.object),
                offset: part.offset,
                bytes: part.bytes,
                pieces: vec![Piece { from: 0, at: part.at, bytes: part.bytes }],
            });
        }
    }
    ranges.into_iter().flat_map(|range| split(range, tuning.part_bytes.max(1))).collect()
}

/// Adds a part to the range before it, if that is worth it.
fn join(range: &mut Range, part: &FetchPart, tuning: &FetchTuning) -> bool {
    if range.object != part.object {
        return false;
    }
    // Checked when the fetch was: no end of a part overflows. Parts are sorted,
    // and may overlap in the object.
    let end = range.offset + range.bytes;
    let joined = end.max(part.offset + part.bytes) - range.offset;
    let from = part.offset - range.offset;
    if let [only] = &mut range.pieces[..]
        && part.offset == end
        && part.at == only.at + only.bytes
    {
        only.bytes += part.bytes;
        range.bytes = joined;
        return true;
    }
    let near = part.offset.saturating_sub(end) <= tuning.gap_bytes;
    if !near || joined > COLLECT_BYTES {
        return false;
    }
    range.pieces.push(Piece { from, at: part.at, bytes: part.bytes });
    range.bytes = joined;
    true
}

/// Cuts a range that is one piece into parts of at most `part_bytes`.
fn split(range: Range, part_bytes: u64) -> Vec<Range> {
    let [piece] = range.pieces[..] else { return vec![range] };
    let mut parts = Vec::new();
    let mut from = 0;
    while from < piece.bytes {
        let bytes = part_bytes.min(piece.bytes - from);
        parts.push(Range {
            object: Arc::clone(&range.object),
            offset: range.offset + from,
            bytes,
            pieces: vec![Piece { from: 0, at: piece.at + from, bytes }],
        });
        from += bytes;
    }
    parts
}

/// An image in parts.
#[derive(Debug)]
pub(super) struct Carved {
    /// What each piece of each range fills.
    pub(super) targets: Vec<Vec<SlotPart>>,
    /// What no range covers, zeroed.
    pub(super) padding: Vec<SlotPart>,
}

/// Cuts the slot's image into what each piece of each range fills, and zeroes the
/// rest. `None` if pieces overlap or leave the image.
pub(super) fn carve(slot: SlotMut, ranges: &[Range]) -> Option<Carved> {
    let mut order: Vec<(usize, usize, usize, usize)> = Vec::new();
    for (range, of_range) in ranges.iter().enumerate() {
        for (number, piece) in of_range.pieces.iter().enumerate() {
            let at = usize::try_from(piece.at).ok()?;
            order.push((at, usize::try_from(piece.bytes).ok()?, range, number));
        }
    }
    order.sort_unstable();
    let mut targets: Vec<Vec<(usize, SlotPart)>> = ranges.iter().map(|_| Vec::new()).collect();
    let mut padding = Vec::new();
    let image = slot.len();
    let mut rest = slot.cut(image, image).pop()?;
    for (at, bytes, range, number) in order {
        let unused = rest.split_to(at.checked_sub(rest.at())?);
        if !unused.is_empty() {
            padding.push(unused);
        }
        let target = rest.split_to(bytes);
        if target.at() != at || target.len() != bytes {
            return None;
        }
        targets.get_mut(range)?.push((number, target));
    }
    // Also of an image without a byte: then the slot itself is nowhere else.
    if !rest.is_empty() || image == 0 {
        padding.push(rest);
    }
    padding.iter_mut().for_each(|part| part.bytes_mut().fill(0));
    let in_order = |mut of_range: Vec<(usize, SlotPart)>| {
        of_range.sort_unstable_by_key(|(number, _)| *number);
        of_range.into_iter().map(|(_, target)| target).collect()
    };
    Some(Carved { targets: targets.into_iter().map(in_order).collect(), padding })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tpad_manifest::BlockId;

    use super::*;
    use crate::Arena;

    fn fetch(parts: &[(&str, u64, u64, u64)]) -> BlockFetch {
        let part = |(object, offset, bytes, at): &(&str, u64, u64, u64)| FetchPart {
            object: Arc::from(*object),
            offset: *offset,
            bytes: *bytes,
            at: *at,
        };
        BlockFetch {
            id: BlockId::of(b""),
            bytes: 1 << 30,
            parts: parts.iter().map(part).collect(),
            class: "a".into(),
        }
    }

    fn shown(fetch: &BlockFetch, gap_bytes: u64, part_bytes: u64) -> Vec<(u64, u64, usize)> {
        let tuning = FetchTuning { gap_bytes, part_bytes, ..FetchTuning::default() };
        let ranges = ranges(fetch, &tuning);
        ranges.iter().map(|range| (range.offset, range.bytes, range.pieces.len())).collect()
    }

    #[test]
    fn neighbours_are_fetched_together() {
        let near = fetch(&[("a", 0, 100, 0), ("a", 150, 100, 256), ("b", 250, 10, 512)]);
        assert_eq!(shown(&near, 50, 1000), [(0, 250, 2), (250, 10, 1)]);
        assert_eq!(shown(&near, 49, 1000), [(0, 100, 1), (150, 100, 1), (250, 10, 1)]);
    }

    #[test]
    fn what_is_contiguous_on_both_sides_is_one_piece() {
        let one = fetch(&[("a", 256, 256, 256), ("a", 0, 256, 0)]);
        assert_eq!(shown(&one, 0, 1 << 20), [(0, 512, 1)]);
        assert_eq!(shown(&one, 0, 200), [(0, 200, 1), (200, 200, 1), (400, 112, 1)]);
    }

    #[test]
    fn large_neighbours_go_to_the_slot_each() {
        let large = fetch(&[("a", 0, 3 << 20, 256), ("a", 3 << 20, 3 << 20, 0)]);
        assert_eq!(shown(&large, 0, 8 << 20), [(0, 3 << 20, 1), (3 << 20, 3 << 20, 1)]);
    }

    fn scattered(pieces: &[(u64, u64)]) -> Range {
        let pieces = pieces.iter().map(|(at, bytes)| Piece { from: 0, at: *at, bytes: *bytes });
        Range { object: "a".into(), offset: 0, bytes: 0, pieces: pieces.collect() }
    }

    /// A slot of ten bytes that held something.
    fn slot() -> SlotMut {
        let arena = Arena::new(1 << 20);
        let mut slot = arena.slot(10).expect("mapped").expect("room");
        slot.fill(9);
        slot
    }

    #[test]
    fn what_no_piece_covers_is_zeroed() {
        let ranges = [scattered(&[(7, 2), (1, 1)]), scattered(&[(3, 3)])];
        let Carved { targets, padding } = carve(slot(), &ranges).expect("inside");
        let sizes: Vec<Vec<usize>> =
            targets.iter().map(|of_range| of_range.iter().map(SlotPart::len).collect()).collect();
        assert_eq!(sizes, [vec![2, 1], vec![3]]);
        let parts = targets.into_iter().flatten().chain(padding).collect();
        let slot = SlotMut::joined(parts).expect("all of them");
        assert_eq!(slot[..], [0, 9, 0, 9, 9, 9, 0, 9, 9, 0]);
    }

    #[test]
    fn pieces_that_overlap_or_leave_are_refused() {
        assert!(carve(slot(), &[scattered(&[(0, 5), (4, 2)])]).is_none());
        assert!(carve(slot(), &[scattered(&[(8, 3)])]).is_none());
        assert!(carve(slot(), &[scattered(&[(11, 0)])]).is_none());
    }

    proptest! {
        /// However parts lie: every byte of the image comes once, from the byte
        /// of the object that its part names.
        #[test]
        fn every_byte_comes_from_its_place(
            parts in prop::collection::vec((0u8..3, 0u64..2000, 1u64..500), 0..12),
            gap_bytes in 0u64..300,
            part_bytes in 1u64..700,
        ) {
            let mut at = 0;
            let parts: Vec<FetchPart> = parts
                .into_iter()
                .map(|(object, offset, bytes)| {
                    let part = FetchPart { object: object.to_string().into(), offset, bytes, at };
                    at += bytes + offset % 7;
                    part
                })
                .collect();
            let fetch = BlockFetch { parts, ..fetch(&[]) };
            let tuning = FetchTuning { gap_bytes, part_bytes, ..FetchTuning::default() };
            let source = |fetch: &BlockFetch| {
                let mut bytes = std::collections::BTreeMap::new();
                for part in &fetch.parts {
                    for n in 0..part.bytes {
                        bytes.insert(part.at + n, (part.object.clone(), part.offset + n));
                    }
                }
                bytes
            };
            let mut fetched = std::collections::BTreeMap::new();
            for range in ranges(&fetch, &tuning) {
                for piece in &range.pieces {
                    prop_assert!(piece.from + piece.bytes <= range.bytes);
                    for n in 0..piece.bytes {
                        let place = (range.object.clone(), range.offset + piece.from + n);
                        prop_assert_eq!(fetched.insert(piece.at + n, place), None);
                    }
                }
            }
            prop_assert_eq!(fetched, source(&fetch));
        }
    }
}

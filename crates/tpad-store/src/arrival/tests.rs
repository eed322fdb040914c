use std::io::Write as _;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::Arena;

/// An image that does not repeat over spans.
fn image(bytes: usize) -> Vec<u8> {
    let mut image = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut image);
    image
}

/// What an image comes to whose parts end at `cuts`, come in `order`, and of which
/// `spoiled` is another byte than it was.
fn arrived(
    image: &[u8],
    cuts: &[usize],
    order: &[usize],
    spoiled: Option<usize>,
) -> (Vec<u8>, BlockId) {
    let arena = Arena::new(1 << 30);
    let slot = arena.slot(image.len()).expect("mapped").expect("room");
    let held = arena.usage().held;
    let (arrival, mut spans, mut whole) = Arrival::new(image.len());
    let mut rest = slot.cut(image.len(), usize::MAX).remove(0);
    let mut parts: Vec<_> = cuts.iter().map(|end| rest.split_to(end - rest.at())).collect();
    parts.push(rest);
    let mut parts: Vec<_> = parts.into_iter().map(Some).collect();
    for n in order {
        let part = parts[*n].take().expect("it comes once");
        if part.is_empty() {
            continue;
        }
        let start = part.at();
        let mut source = image[start..start + part.len()].to_vec();
        if let Some(byte) = spoiled.and_then(|at| source.get_mut(at.checked_sub(start)?)) {
            *byte ^= 0x10;
        }
        let mut intake = Intake::new(Arc::clone(&arrival), part);
        // Unevenly, and not to the ends of spans.
        for chunk in source.chunks(100_003) {
            intake.write_all(chunk).expect("room");
        }
        assert_eq!((intake.left(), intake.write(b"more").expect("nothing")), (0, 0));
        drop(intake);
        while let Ok(span) = spans.try_recv() {
            whole.add(span.digest());
        }
    }
    assert_eq!(arena.usage().held, held, "it arrives in its slot and nowhere else");
    let (slot, id) = whole.joined().expect("all of it");
    let bytes = slot.to_vec();
    drop(slot);
    assert_eq!(arena.usage().held, 0);
    (bytes, id)
}

#[test]
fn an_image_of_every_number_of_spans_has_its_digest() {
    for spans in 0..=9 {
        for bytes in [spans * SPAN_BYTES, spans * SPAN_BYTES + 1, spans * SPAN_BYTES + 70_000] {
            if bytes == 0 {
                continue;
            }
            let image = image(bytes);
            assert_eq!(arrived(&image, &[], &[0], None), (image.clone(), BlockId::of(&image)));
        }
    }
}

#[test]
fn an_image_without_a_byte_has_its_digest() {
    let arena = Arena::new(1 << 20);
    let slot = arena.slot(0).expect("mapped").expect("room");
    let (arrival, mut spans, mut whole) = Arrival::new(0);
    arrival.take(slot.cut(0, 1).remove(0));
    whole.add(spans.try_recv().expect("it is whole").digest());
    assert_eq!(whole.joined().expect("all of it").1, BlockId::of(b""));
}

#[test]
fn a_spoiled_byte_of_any_span_and_part_gives_another_digest() {
    let image = image(3 * SPAN_BYTES + 300_000);
    let cuts = [1000, SPAN_BYTES, SPAN_BYTES + 4096, 3 * SPAN_BYTES - 1];
    let right = BlockId::of(&image);
    let ends = cuts.iter().chain([SPAN_BYTES * 2, SPAN_BYTES * 3].iter());
    let edges = ends.flat_map(|end| [end - 1, *end]).chain([0, image.len() - 1]);
    for spoiled in edges {
        let (bytes, id) = arrived(&image, &cuts, &[4, 2, 0, 3, 1], Some(spoiled));
        assert_ne!(bytes, image);
        assert_eq!(id, BlockId::of(&bytes));
        assert_ne!(id, right);
    }
}

#[test]
fn a_span_is_whole_as_soon_as_its_bytes_are_and_before_the_image_is() {
    let bytes = 2 * SPAN_BYTES + 5;
    let arena = Arena::new(1 << 30);
    let slot = arena.slot(bytes).expect("mapped").expect("room");
    let (arrival, mut spans, whole) = Arrival::new(bytes);
    let part = slot.cut(bytes, usize::MAX).remove(0);
    let mut intake = Intake::new(Arc::clone(&arrival), part);
    intake.came(SPAN_BYTES - 1);
    assert!(spans.try_recv().is_err());
    intake.came(1);
    assert_eq!(spans.try_recv().expect("the first").bytes(), SPAN_BYTES);
    intake.came(SPAN_BYTES);
    assert_eq!(spans.try_recv().expect("the second").bytes(), SPAN_BYTES);
    assert_eq!(intake.rest().len(), 5);
    drop(intake);
    assert!(whole.joined().is_none(), "it was given up");
    assert_eq!(arena.usage().held, 0);
}

#[test]
fn a_span_that_nobody_digests_any_more_takes_no_slot_along() {
    let bytes = 2 * SPAN_BYTES;
    let arena = Arena::new(1 << 30);
    let slot = arena.slot(bytes).expect("mapped").expect("room");
    let (arrival, spans, _) = Arrival::new(bytes);
    drop(spans);
    arrival.take(slot.cut(bytes, usize::MAX).remove(0));
    assert_eq!(arena.usage().held, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However an image is cut, and in whatever order its parts come: the digest is
    /// that of the bytes which came, right or wrong.
    #[test]
    fn parts_in_any_order_give_the_digest_of_the_image(
        bytes in 1usize..5 * SPAN_BYTES,
        cuts in prop::collection::vec(any::<Index>(), 0..7),
        places in prop::collection::vec(any::<u32>(), 8),
        spoiled in proptest::option::of(any::<Index>()),
    ) {
        let image = image(bytes);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes)).collect();
        cuts.sort_unstable();
        let mut order: Vec<usize> = (0..=cuts.len()).collect();
        order.sort_unstable_by_key(|n| places[*n]);
        let spoiled = spoiled.map(|at| at.index(bytes));
        let (came, id) = arrived(&image, &cuts, &order, spoiled);
        prop_assert_eq!(id, BlockId::of(&came));
        prop_assert_eq!(id == BlockId::of(&image), spoiled.is_none());
    }
}

mod bound;

use bytes::Bytes;
use futures::future::poll_fn;

use super::super::PeerName;
use super::*;
use crate::edge::EdgeMetrics;
use crate::edge::reply::Data;

const LIMIT: u64 = 64 << 20;
const CONNECTION_LIMIT: u64 = 8 << 20;

fn in_flight() -> Arc<InFlight> {
    Arc::new(InFlight::new(LIMIT, CONNECTION_LIMIT, 1, &EdgeMetrics::default()))
}

fn user(uid: u32) -> PeerName {
    PeerName::User(Some(uid))
}

async fn room(share: &Share) -> usize {
    let (stream, mut waiting) = (StreamState::current(), None);
    poll_fn(|cx| share.poll_room(&stream, &mut waiting, cx)).await
}

/// Takes what `share` gives, until it gives no more than a connection without room gets.
async fn fill(share: &Share) {
    loop {
        let more = Box::pin(room(share));
        match futures::poll!(more) {
            Poll::Ready(bytes) if has_room(share) => share.add(bytes as u64),
            _ => return,
        }
    }
}

fn has_room(share: &Share) -> bool {
    share.bytes.load(Ordering::SeqCst) < share.left().min(share.all.connection_limit)
}

/// Whether a stream of `share` that holds bytes would have to wait.
async fn is_closed(share: &Share) -> bool {
    futures::poll!(Box::pin(room(share))).is_pending()
}

#[tokio::test]
async fn peers_that_take_all_they_get_leave_a_part_to_the_next() {
    for greedy in 1..=4u32 {
        // Bounds of connections are not what is looked at here.
        let all = Arc::new(InFlight::new(LIMIT, LIMIT, 1, &EdgeMetrics::default()));
        let mut shares: Vec<Share> = Vec::new();
        for uid in 0..greedy {
            // The first has as many connections as all others have together, four times.
            let connections = if uid == 0 { 4 * greedy } else { 1 };
            shares.extend((0..connections).map(|_| all.join(user(uid))));
        }
        // In turn, as streams are polled.
        for _ in 0..4096 {
            for share in &shares {
                if share.bytes.load(Ordering::SeqCst) < share.left() {
                    share.add(LEAST_PIECE_BYTES);
                }
            }
        }
        let part = LIMIT / (u64::from(greedy) + 1);
        assert!(all.free() >= part - LEAST_PIECE_BYTES, "{greedy}: {} are free", all.free());
        let least = shares.iter().map(|share| share.bytes.load(Ordering::SeqCst)).min();
        assert!(least >= Some(LEAST_PIECE_BYTES), "{greedy}: every connection has some");
        let next = all.join(user(greedy));
        assert!(!is_closed(&next).await);
    }
}

#[tokio::test]
async fn the_gate_closes_at_the_share_and_opens_below_it() {
    let share = Arc::new(InFlight::new(LIMIT, LIMIT, 1, &EdgeMetrics::default())).join(user(1));
    fill(&share).await;
    let held = share.bytes.load(Ordering::SeqCst);
    assert!((LIMIT / 3..LIMIT / 3 + PIECE_BYTES).contains(&held), "a third of it: {held}");
    let mut waits = Box::pin(room(&share));
    assert!(futures::poll!(&mut waits).is_pending());
    share.remove(PIECE_BYTES);
    waits.await;
}

#[tokio::test]
async fn a_connection_that_holds_nothing_passes_a_closed_gate_with_a_small_piece() {
    let all = in_flight();
    let (greedy, modest) = (all.join(user(1)), all.join(user(1)));
    greedy.add(LIMIT);
    assert!(is_closed(&greedy).await);
    let small = usize::try_from(LEAST_PIECE_BYTES).expect("small");
    assert_eq!(room(&modest).await, small);
    modest.add(LEAST_PIECE_BYTES);
    let mut waits = Box::pin(room(&modest));
    assert!(futures::poll!(&mut waits).is_pending());
    modest.remove(LEAST_PIECE_BYTES);
    assert_eq!(waits.await, small);
    assert!(is_closed(&greedy).await);
}

#[tokio::test]
async fn at_its_own_bound_a_connection_gives_small_pieces_to_streams_without_any() {
    let share = in_flight().join(user(1));
    fill(&share).await;
    assert_eq!(share.bytes.load(Ordering::SeqCst), CONNECTION_LIMIT);
    let small = usize::try_from(LEAST_PIECE_BYTES).expect("small");
    assert_eq!(room(&share).await, small, "a stream that holds nothing");
    let share = Arc::new(share);
    let (stream, mut waiting) = (StreamState::current(), None);
    let piece = Data::new(Bytes::new(), vec![0; small].into(), &stream, &share);
    let mut next = Box::pin(poll_fn(|cx| share.poll_room(&stream, &mut waiting, cx)));
    assert!(futures::poll!(&mut next).is_pending(), "it holds one");
    drop(piece);
    assert_eq!(next.await, small);
}

#[tokio::test]
async fn room_that_others_make_wakes_a_peer_that_waits() {
    let all = in_flight();
    let (one, other) = (all.join(user(1)), all.join(user(2)));
    one.add(LIMIT - PIECE_BYTES);
    other.add(PIECE_BYTES);
    let mut waits = Box::pin(room(&other));
    assert!(futures::poll!(&mut waits).is_pending());
    one.remove(LIMIT / 2);
    waits.await;
}

#[tokio::test]
async fn a_stream_that_passes_wakes_the_next_of_its_peer() {
    let all = in_flight();
    let (first, second) = (all.join(user(1)), all.join(user(1)));
    first.add(LIMIT / 2);
    second.add(LIMIT / 2);
    let (mut one, mut two) = (Box::pin(room(&first)), Box::pin(room(&second)));
    assert!(futures::poll!(&mut one).is_pending() && futures::poll!(&mut two).is_pending());
    // Room for both, neither of which then sends anything.
    all.add_request(LIMIT);
    first.remove(LIMIT / 2 - PIECE_BYTES);
    second.remove(LIMIT / 2 - PIECE_BYTES);
    all.remove_request(LIMIT);
    one.await;
    two.await;
}

#[tokio::test]
async fn a_waiting_stream_that_goes_away_hands_its_wake_up_on() {
    let all = in_flight();
    let share = all.join(user(1));
    share.add(LIMIT);
    let (mut gone, mut next) = (Box::pin(room(&share)), Box::pin(room(&share)));
    assert!(futures::poll!(&mut gone).is_pending() && futures::poll!(&mut next).is_pending());
    share.remove(LIMIT - PIECE_BYTES);
    drop(gone);
    next.await;
    assert_eq!(all.waiting.load(Ordering::SeqCst), 0, "nobody is counted who does not wait");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_room_or_movement_is_saturated_and_no_other() {
    let all = in_flight();
    let (stuck, other) = (all.join(user(1)), all.join(user(1)));
    stuck.add(LIMIT);
    other.add(PIECE_BYTES);
    assert!(!stuck.saturated(), "just reached");
    tokio::time::advance(SATURATED_AFTER / 2).await;
    other.remove(PIECE_BYTES);
    tokio::time::advance(SATURATED_AFTER / 2).await;
    assert!(stuck.saturated(), "others' bytes are no movement of its own");
    assert!(!other.saturated(), "it holds nothing");
    stuck.remove(PIECE_BYTES);
    assert!(!stuck.saturated(), "a reply moved");
    tokio::time::advance(SATURATED_AFTER).await;
    assert!(stuck.saturated());
    stuck.remove(LIMIT - 2 * PIECE_BYTES);
    assert!(!stuck.saturated(), "room");
}

#[tokio::test]
async fn a_round_of_all_streams_is_bounded_and_pieces_are_parts_of_a_payload() {
    let share = Arc::new(in_flight().join(user(1)));
    let mut sending = Vec::new();
    for streams in 1..=256u64 {
        sending.push(share.sends());
        let piece = share.piece_bytes();
        assert!(
            (LEAST_PIECE_BYTES..=PIECE_BYTES).contains(&piece) && PIECE_BYTES.is_multiple_of(piece)
        );
        assert!(piece * streams <= ROUND_BYTES || piece == LEAST_PIECE_BYTES, "{streams}");
    }
    assert_eq!(share.piece_bytes(), LEAST_PIECE_BYTES);
    sending.truncate(1);
    assert_eq!(share.piece_bytes(), PIECE_BYTES, "alone");
}

#[test]
fn a_peers_connections_share_one_turn_and_a_lone_peer_has_longer_ones() {
    let all = in_flight();
    let many: Vec<Share> = (0..8).map(|_| all.join(user(1))).collect();
    many[0].add(1);
    assert_eq!(many[0].turn_bytes(), TURN_BYTES, "nobody else writes");
    many[1].add(1);
    assert_eq!(many[0].turn_bytes(), TURN_BYTES / 2);
    many[2..].iter().for_each(|share| share.add(1));
    assert!(many.iter().all(|share| share.turn_bytes() == LONE_TURN_BYTES), "no shorter");
    let one = all.join(user(2));
    one.add(1);
    assert_eq!(one.turn_bytes(), SHARED_TURN_BYTES);
    assert!(many.iter().all(|share| share.turn_bytes() == SHARED_TURN_BYTES / 8));
    one.remove(1);
    assert!(many.iter().all(|share| share.turn_bytes() == LONE_TURN_BYTES));
}

#[test]
fn turns_get_shorter_for_those_alone_that_share_a_thread() {
    let all = Arc::new(InFlight::new(LIMIT, LIMIT, 4, &EdgeMetrics::default()));
    let many: Vec<Share> = (0..5).map(|_| all.join(user(1))).collect();
    many[..4].iter().for_each(|share| share.add(1));
    assert_eq!(many[0].turn_bytes(), TURN_BYTES, "each has a thread");
    many[4].add(1);
    assert_eq!(many[0].turn_bytes(), TURN_BYTES / 2, "two have the same");
}

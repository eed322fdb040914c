//! What a connection may hold by itself, where few hold something and where many do.

use std::task::Waker;

use super::*;

/// A connection of a peer of its own, whose one stream takes all that it gets and is not read.
struct Unread {
    share: Arc<Share>,
    stream: Arc<StreamState>,
    pieces: Vec<Data>,
}

impl Unread {
    fn join(all: &Arc<InFlight>, uid: u32) -> Self {
        Self {
            share: Arc::new(all.join(user(uid))),
            stream: StreamState::current(),
            pieces: Vec::new(),
        }
    }

    fn take(&mut self, bytes: usize) {
        let bytes = vec![0; bytes].into();
        self.pieces.push(Data::new(Bytes::new(), bytes, &self.stream, &self.share));
    }

    /// Takes the next piece, if there is one for it.
    fn take_more(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        match self.share.poll_room(&self.stream, &mut None, &mut cx) {
            Poll::Ready(bytes) => self.take(bytes),
            Poll::Pending => return false,
        }
        true
    }

    fn held(&self) -> u64 {
        self.share.bytes.load(Ordering::SeqCst)
    }
}

/// Has all of them take pieces in turn, until there is none for any.
fn fill_in_turn(unread: &mut [Unread]) {
    let mut took = true;
    while took {
        took = false;
        for unread in unread.iter_mut() {
            took |= unread.take_more();
        }
    }
}

/// So many connections, all of which hold what everyone may, and then what they can get.
fn filled(all: &Arc<InFlight>, connections: u32) -> Vec<Unread> {
    let mut unread: Vec<_> = (0..connections).map(|uid| Unread::join(all, uid)).collect();
    let least = usize::try_from(LEAST_PIECE_BYTES).expect("small");
    unread.iter_mut().for_each(|unread| unread.take(least));
    fill_in_turn(&mut unread);
    unread
}

/// Whether each holds its part: pieces are not larger, and the last may begin below it.
fn hold_parts_of(unread: &[Unread], part: u64) -> bool {
    let piece = part.min(PIECE_BYTES);
    unread.iter().all(|unread| (part..part + piece).contains(&unread.held()))
}

#[test]
fn few_connections_hold_what_is_configured_each() {
    let all = in_flight();
    // Who holds nothing takes no part.
    let _idle: Vec<Share> = (100..200).map(|uid| all.join(user(uid))).collect();
    let few = u32::try_from(LIMIT / 2 / CONNECTION_LIMIT).expect("few");
    let mut unread = Vec::new();
    for uid in 0..few {
        unread.push(Unread::join(&all, uid));
        fill_in_turn(&mut unread);
        assert!(unread.iter().all(|unread| unread.held() == CONNECTION_LIMIT), "{uid}");
    }
    let mut another = Unread::join(&all, few);
    another.take(1);
    assert!(another.share.bound() < CONNECTION_LIMIT, "one more");
}

#[test]
fn many_connections_hold_equal_parts_of_half_of_the_limit() {
    for many in [5, 8, 17, 100, 512, 1024] {
        let all = in_flight();
        let unread = filled(&all, many);
        let part = (LIMIT / 2 / u64::from(many)).max(LEAST_PIECE_BYTES);
        let held = || unread.iter().map(Unread::held);
        assert!(hold_parts_of(&unread, part), "{many}: {part}: {:?}", held().collect::<Vec<_>>());
        assert!(held().sum::<u64>() <= LIMIT, "{many}");
    }
}

#[test]
fn a_connection_that_lets_go_of_all_gives_its_part_back_until_it_returns() {
    let all = in_flight();
    let mut unread = filled(&all, 16);
    let (leaving, staying) = unread.split_at_mut(8);
    assert!(hold_parts_of(staying, LIMIT / 2 / 16));
    leaving.iter_mut().for_each(|unread| unread.pieces.truncate(1));
    assert!(!staying.iter_mut().any(Unread::take_more), "of some: it has its part");
    leaving.iter_mut().for_each(|unread| unread.pieces.clear());
    fill_in_turn(staying);
    assert!(hold_parts_of(staying, LIMIT / 2 / 8));

    fill_in_turn(leaving);
    assert!(hold_parts_of(leaving, LIMIT / 2 / 16));
    for unread in staying {
        while unread.held() >= LIMIT / 2 / 16 {
            assert!(!unread.take_more(), "at {} it has more than its part", unread.held());
            unread.pieces.pop();
        }
        assert!(unread.take_more());
    }
}

#[test]
fn the_bounds_of_all_connections_never_come_to_more_than_the_limit() {
    let all = in_flight();
    let mut shares: Vec<Share> = Vec::new();
    // With more of them what everyone may hold comes to more by itself.
    for connections in 1..=LIMIT / LEAST_PIECE_BYTES {
        // Of few peers: these are not counted here.
        let share = all.join(user(u32::try_from(connections % 3).expect("small")));
        share.add(1);
        shares.push(share);
        let sum: u64 = shares.iter().map(Share::bound).sum();
        assert!(sum <= LIMIT, "{connections}: {sum}");
        assert!(shares.iter().all(|share| share.bound() >= LEAST_PIECE_BYTES), "{connections}");
        if connections <= LIMIT / 2 / LEAST_PIECE_BYTES {
            assert!(sum <= LIMIT / 2, "{connections}: {sum}");
        }
    }
}

//! What a queue hands out, and whom it wakes. Nobody reads here.

use rustix::event::{EventfdFlags, eventfd};

use super::*;

#[test]
fn demand_goes_before_prefetch_and_so_does_what_is_hurried() {
    // Nobody reads: what is handed out next is looked at.
    let queue = Queue::new(4, Vec::new());
    let scene = Scene::new(Way::Threads);
    let blocks: Vec<_> = (0..4).map(|n| scene.block(n, 3 * PIECE_BYTES)).collect();
    let mut answers = Vec::new();
    for ((id, path, image), urgency) in blocks.iter().zip([
        Urgency::Prefetch,
        Urgency::Prefetch,
        Urgency::Demand,
        Urgency::Prefetch,
    ]) {
        let (answer, answered) = oneshot::channel();
        let slot = scene.slot(image.len());
        queue.push(Job { id: *id, path: path.clone(), direct: true, slot, answer }, urgency);
        answers.push(answered);
    }
    // The fourth is wanted by now; the second's reader has left.
    queue.hurry(&blocks[3].0);
    drop(answers.remove(1));
    let (mut order, mut held) = (Vec::new(), Vec::new());
    while held.len() < 2 * PIECES + 2 {
        match queue.wait().expect("it is open") {
            queue::Task::Open(job, urgency) => {
                order.push(blocks.iter().position(|block| block.0 == job.id).expect("known"));
                queue.begin(job, urgency);
            }
            queue::Task::Read(piece) => held.push(piece),
        }
    }
    assert_eq!(order, [2, 3, 0]);
    let (demanded, prefetched) = held.split_at(2 * PIECES);
    assert!(demanded.iter().all(|piece| piece.urgency == Urgency::Demand));
    assert!(prefetched.iter().all(|piece| piece.urgency == Urgency::Prefetch));
    // The first block has more, but prefetches have half of the places.
    assert!(matches!(queue.take(0), queue::Taken::Nothing));
    queue.finish(held.pop().expect("one"));
    let next = queue.take(0);
    assert!(matches!(&next, queue::Taken::Task(queue::Task::Read(_))), "{next:?}");
    queue.close();
    assert!(matches!(queue.take(0), queue::Taken::Closed));
}

#[test]
fn a_piece_that_was_hurried_in_flight_is_given_back_as_demand() {
    let queue = Queue::new(8, Vec::new());
    let scene = Scene::new(Way::Threads);
    let (one, other) = (scene.block(1, 5000), scene.block(2, 5000));
    let mut answers = Vec::new();
    let mut prefetch = |(id, path, image): &(BlockId, PathBuf, Vec<u8>)| {
        let (answer, answered) = oneshot::channel();
        answers.push(answered);
        let slot = scene.slot(image.len());
        let job = Job { id: *id, path: path.clone(), direct: true, slot, answer };
        queue.push(job, Urgency::Prefetch);
    };
    prefetch(&one);
    prefetch(&other);
    let mut flying = Vec::new();
    while flying.len() < 4 {
        match queue.wait().expect("it is open") {
            queue::Task::Open(job, urgency) => queue.begin(job, urgency),
            queue::Task::Read(piece) => flying.push(piece),
        }
    }
    assert!(flying.iter().all(|piece| piece.urgency == Urgency::Prefetch));
    // All places of prefetches are taken, and someone waits for the second by now.
    queue.hurry(&other.0);
    flying.into_iter().for_each(|piece| queue.give_back(piece));
    // Once more, as it would be when those who take over fail too.
    for _ in 0..2 {
        let mut again = Vec::new();
        while let queue::Taken::Task(queue::Task::Read(piece)) = queue.take(0) {
            again.push((*piece.id(), piece.urgency, piece));
        }
        let order: Vec<_> = again.iter().map(|(id, urgency, _)| (*id, *urgency)).collect();
        let (demanded, prefetched) = ((other.0, Urgency::Demand), (one.0, Urgency::Prefetch));
        assert_eq!(order, [demanded, demanded, prefetched, prefetched]);
        again.into_iter().for_each(|(_, _, piece)| queue.give_back(piece));
    }
    queue.close();
}

#[test]
fn a_ring_that_took_what_another_was_woken_for_is_not_woken_in_an_idle_ones_place() {
    let bell = || Arc::new(eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"));
    let bells: Vec<queue::Bell> = (0..3).map(|_| bell()).collect();
    let queue = Queue::new(4, bells.clone());
    let rung = |n: usize| rustix::io::read(&bells[n], &mut [0; 8]).is_ok();
    let scene = Scene::new(Way::Threads);
    let (id, path, _) = scene.block(1, 5000);
    let mut answers = Vec::new();
    let mut push = || {
        let (answer, answered) = oneshot::channel();
        answers.push(answered);
        let slot = scene.slot(5000);
        queue.push(Job { id, path: path.clone(), direct: true, slot, answer }, Urgency::Demand);
    };
    for ring in 0..3 {
        assert!(matches!(queue.take(ring), queue::Taken::Nothing));
    }
    push();
    assert_eq!([rung(0), rung(1), rung(2)], [true, false, false]);
    // The second comes by first, and may be full with it.
    assert!(matches!(queue.take(1), queue::Taken::Task(_)));
    push();
    assert_eq!([rung(0), rung(1), rung(2)], [false, false, true]);
    queue.close();
}

/// The pieces of a block of three, its header being one.
const PIECES: usize = 4;

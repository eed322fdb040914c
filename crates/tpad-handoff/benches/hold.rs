//! What a worker pays for a block that it finds in shared memory, and the daemon for
//! a look at who reads: `cargo bench -p tpad-handoff`.
//!
//! A daemon and a worker in one process, with a large model's blocks. Each line is
//! the median of some rounds, and for threads what each of them waits.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::error::Error;
use std::hint::black_box;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tpad_handoff::{
    DEFAULT_CELLS, Directory, DirectoryView, Entry, Hazards, Place, Uses, UsesView, Workers,
};

/// 60 layers of 256 experts.
const BLOCKS: u32 = 60 * 256;
/// What all layers use for one token, held until the next one.
const HELD: usize = 480;
const TIMES: u32 = 1_000_000;
const ROUNDS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let sent = |file: BorrowedFd<'_>| file.try_clone_to_owned();
    let (workers, directory) = (Workers::new(), Directory::create(BLOCKS, 1)?);
    for ordinal in 0..BLOCKS {
        let place = Place::new(1, ordinal).ok_or("too many blocks")?;
        directory.publish(ordinal, Entry::new(1, place))?;
    }
    let worker = workers.admit(DEFAULT_CELLS, 1)?;
    let taken = UsesView::create(BLOCKS, 1)?;
    let view = DirectoryView::receive(sent(directory.descriptor())?)?;
    let hazards = Arc::new(Hazards::receive(sent(worker.descriptor())?)?);
    let uses = Uses::receive(sent(taken.descriptor())?)?;

    let ordinal = |n: u32| n.wrapping_mul(7) % BLOCKS;
    let one = |n: u32| {
        black_box(Hazards::hold(&*hazards, &view, ordinal(n)).expect("it is there")).entry();
    };
    let shared = |n: u32| {
        let by = Arc::clone(&hazards);
        black_box(Hazards::hold(by, &view, ordinal(n)).expect("it is there")).entry();
    };
    say("hold and let go", median(1, TIMES, || one));
    say("the same, by an Arc", median(1, TIMES, || shared));
    say("the same, two threads", median(2, TIMES, || one));
    say("the same, two threads, by an Arc", median(2, TIMES, || shared));
    let kept = || {
        let mut kept = std::collections::VecDeque::new();
        let (hazards, view) = (&*hazards, &view);
        move |n: u32| {
            if kept.len() == HELD {
                kept.pop_front();
            }
            kept.push_back(Hazards::hold(hazards, view, ordinal(n)).expect("it is there"));
        }
    };
    say("hold, and let go of what was held 480 before", median(1, TIMES, kept));
    say("count a use", median(1, TIMES, || |n| uses.count(ordinal(n))));
    say("look at a worker's hazards", median(1, 1000, || |_| drop(black_box(workers.named()))));
    let drained = || {
        |_| {
            uses.count(0);
            taken.drain(|ordinal, uses| _ = black_box((ordinal, uses)));
        }
    };
    say("count a use and drain the counters", median(1, 1000, drained));
    Ok(())
}

/// What one call takes, where every thread has its own `work`.
fn median<W: FnMut(u32)>(threads: u32, times: u32, work: impl Fn() -> W + Sync) -> Duration {
    let mut rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| (0..times).for_each(work()));
                }
            });
            start.elapsed() / times
        })
        .collect();
    rounds.sort_unstable();
    rounds[ROUNDS / 2]
}

fn say(what: &str, took: Duration) {
    println!("{:>6} ns  {what}", took.as_nanos());
}

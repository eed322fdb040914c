use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::sync::atomic::AtomicUsize;

use futures::task::noop_waker;
use hyper::rt::Executor as _;
use tokio::sync::oneshot;

use super::*;
use crate::edge::in_flight::{InFlight, PeerName, Share};
use crate::edge::line::Line;

const LIMIT: Duration = Duration::from_secs(10);

/// A connection of which nothing but its streams is there.
struct Rig {
    streams: Streams,
    share: Arc<Share>,
    turn: Arc<Turn>,
    rounds: Rounds,
    metrics: EdgeMetrics,
}

impl Rig {
    fn new() -> Self {
        let metrics = EdgeMetrics::default();
        let all = Arc::new(InFlight::new(64 << 20, 64 << 20, 1, &metrics));
        let share = Arc::new(all.join(PeerName::User(None)));
        let turn = Arc::new(Turn::new(Arc::clone(&share), None));
        let tails = Arc::new(Tails::default());
        let streams = Streams::new(LIMIT, Window::new(), tails, metrics.clone());
        Self { streams, share, turn, rounds: Rounds::new(), metrics }
    }

    fn poll<C: Future>(&mut self, connection: Pin<&mut C>, waker: &Waker) -> Poll<C::Output> {
        let Self { streams, turn, rounds, .. } = self;
        rounds.poll(connection, streams, turn, &Context::from_waker(waker))
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Count {
    fn waker() -> (Arc<Self>, Waker) {
        let count = Arc::new(Self::default());
        (Arc::clone(&count), Waker::from(count))
    }

    fn woken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_request_is_read_answered_and_written_in_one_poll() {
    let mut rig = Rig::new();
    let (count, waker) = Count::waker();
    let executor = rig.streams.executor();
    let (answer, mut answered) = oneshot::channel();
    let mut request = Some(answer);
    let connection = poll_fn(|cx| {
        if let Some(answer) = request.take() {
            let waker = cx.waker().clone();
            executor.execute(async move {
                let _ = answer.send("a reply");
                // As HTTP/2 does when a stream has something to write.
                waker.wake();
            });
        }
        match answered.try_recv() {
            Ok(reply) => Poll::Ready(reply),
            Err(_) => Poll::Pending,
        }
    });
    let polled = rig.poll(pin!(connection), &waker);
    assert_eq!((polled, count.woken()), (Poll::Ready("a reply"), 0));
}

#[tokio::test]
async fn what_waits_is_woken_by_what_it_waits_for() {
    let mut rig = Rig::new();
    let (count, waker) = Count::waker();
    let (tell, told) = oneshot::channel::<()>();
    let (done, is_done) = (Arc::new(AtomicU8::new(0)), |d: &AtomicU8| d.load(Ordering::Relaxed));
    let mark = Arc::clone(&done);
    rig.streams.executor().execute(async move {
        let _ = told.await;
        mark.store(1, Ordering::Relaxed);
    });
    let mut connection = pin!(pending::<()>());
    assert!(rig.poll(connection.as_mut(), &waker).is_pending());
    assert_eq!((count.woken(), is_done(&done)), (0, 0));
    let _ = tell.send(());
    assert_eq!(count.woken(), 1);
    assert!(rig.poll(connection.as_mut(), &waker).is_pending());
    assert_eq!((count.woken(), is_done(&done)), (1, 1));
}

#[tokio::test]
async fn who_wakes_itself_for_ever_gives_the_thread_back() {
    let mut rig = Rig::new();
    let (count, waker) = Count::waker();
    let polls = Cell::new(0);
    let connection = poll_fn(|cx| {
        polls.set(polls.get() + 1);
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    });
    assert!(rig.poll(pin!(connection), &waker).is_pending());
    assert_eq!((polls.get(), count.woken()), (MOST_ROUNDS, 1));
}

#[tokio::test]
async fn a_connection_whose_turn_is_over_waits_for_its_next() {
    let mut rig = Rig::new();
    let (count, waker) = Count::waker();
    let (turn, polls) = (Arc::clone(&rig.turn), Cell::new(0));
    let mut connection = pin!(poll_fn(|cx| {
        polls.set(polls.get() + 1);
        turn.wrote(1 << 30);
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    }));
    for turns in 1..=3 {
        assert!(rig.poll(connection.as_mut(), &waker).is_pending());
        assert_eq!((polls.get(), count.woken()), (turns, turns));
    }
}

#[tokio::test]
async fn a_long_reply_is_written_after_what_others_ask_and_a_short_one_at_once() {
    for (reply, rounds) in [(LONG_BYTES, 1), (LONG_BYTES - 1, 2)] {
        let mut rig = Rig::new();
        let (_, waker) = Count::waker();
        let (share, executor) = (Arc::clone(&rig.share), rig.streams.executor());
        let polls = Cell::new(0);
        let connection = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            if polls.get() == 1 {
                let (share, waker) = (Arc::clone(&share), cx.waker().clone());
                executor.execute(async move {
                    share.add(reply);
                    waker.wake();
                });
            }
            Poll::<()>::Pending
        });
        assert!(rig.poll(pin!(connection), &waker).is_pending());
        assert_eq!(polls.get(), rounds, "{reply} bytes");
    }
}

#[tokio::test]
async fn a_panic_ends_its_stream_and_no_other() {
    let mut rig = Rig::new();
    let executor = rig.streams.executor();
    let survivor = Arc::new(());
    let held = Arc::clone(&survivor);
    executor.execute(async { panic!("on purpose") });
    executor.execute(async move {
        let _held = held;
        pending().await
    });
    assert!(rig.poll(pin!(pending::<()>()), &noop_waker()).is_pending());
    assert_eq!((rig.streams.running.len(), Arc::strong_count(&survivor)), (1, 2));
}

#[tokio::test]
async fn streams_end_with_their_connection_polled_or_not() {
    let mut rig = Rig::new();
    let executor = rig.streams.executor();
    let held = Arc::new(());
    let begin = || {
        // A stream holds the executor too.
        let (held, executor) = (Arc::clone(&held), executor.clone());
        executor.clone().execute(async move {
            let _held = (held, executor);
            pending().await
        });
    };
    begin();
    assert!(rig.poll(pin!(pending::<()>()), &noop_waker()).is_pending());
    begin();
    assert_eq!(Arc::strong_count(&held), 3);
    drop(rig);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_late_is_cut_and_counted() {
    let mut rig = Rig::new();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    rig.streams.executor().execute(async move {
        StreamState::current().set_deadline(deadline);
        pending().await
    });
    let mut connection = pin!(pending::<()>());
    let polls = poll_fn(|cx| {
        let _ = rig.poll(connection.as_mut(), cx.waker());
        if rig.streams.running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::time::timeout(Duration::from_secs(3), polls).await.expect("it is cut");
    let reason = CutReason::Deadline;
    assert_eq!(rig.metrics.streams_cut.get_or_create(&CutLabel { reason }).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_reply_is_not_taken_is_cut() {
    let mut rig = Rig::new();
    rig.streams.executor().execute(async {
        StreamState::current().sends(1 << 20);
        pending().await
    });
    let mut connection = pin!(pending::<()>());
    let polls = poll_fn(|cx| {
        let _ = rig.poll(connection.as_mut(), cx.waker());
        if rig.streams.running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    });
    let began = tokio::time::Instant::now();
    tokio::time::timeout(2 * LIMIT, polls).await.expect("it is cut");
    assert_eq!(began.elapsed().as_secs(), LIMIT.as_secs());
    let reason = CutReason::Stalled;
    assert_eq!(rig.metrics.streams_cut.get_or_create(&CutLabel { reason }).get(), 1);
}

#[tokio::test]
async fn hundreds_of_requests_begin_a_few_at_a_time() {
    let mut rig = Rig::new();
    let (count, waker) = Count::waker();
    let executor = rig.streams.executor();
    let begun = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 * BEGUN_AT_ONCE {
        let begun = Arc::clone(&begun);
        executor.execute(async move {
            begun.fetch_add(1, Ordering::Relaxed);
        });
    }
    let mut connection = pin!(pending::<()>());
    for polls in 1..=3 {
        assert!(rig.poll(connection.as_mut(), &waker).is_pending());
        assert_eq!(begun.load(Ordering::Relaxed), polls * BEGUN_AT_ONCE);
        // The last one has nothing to come back for.
        assert_eq!(count.woken(), polls.min(2));
    }
}

#[tokio::test]
async fn a_connection_that_uses_up_the_tasks_budget_leaves_its_streams_theirs() {
    let mut rig = Rig::new();
    let (tell, told) = oneshot::channel();
    let done = Arc::new(AtomicUsize::new(0));
    let mark = Arc::clone(&done);
    rig.streams.executor().execute(async move {
        let _: Result<(), _> = told.await;
        mark.fetch_add(1, Ordering::Relaxed);
    });
    let _ = tell.send(());
    let connection = poll_fn(|cx| {
        while let Poll::Ready(proceed) = tokio::task::coop::poll_proceed(cx) {
            proceed.made_progress();
        }
        Poll::<()>::Pending
    });
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        let _ = rig.poll(connection.as_mut(), cx.waker());
        Poll::Ready(())
    })
    .await;
    assert_eq!(done.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn who_waits_in_line_is_polled_for_what_is_short_and_writes_in_its_turn() {
    let line: Arc<Line> = Arc::default();
    let mut rig = Rig::new();
    rig.turn = Arc::new(Turn::new(Arc::clone(&rig.share), Some(line.place())));
    let other = line.place();
    assert!(other.has_turn(&noop_waker()));
    let (count, waker) = Count::waker();
    let (turn, short, long) = (Arc::clone(&rig.turn), Cell::new(0), Cell::new(0));
    let mut connection = pin!(poll_fn(|cx| {
        short.set(short.get() + usize::from(turn.may_write(100, cx.waker()).is_some()));
        long.set(long.get() + usize::from(turn.may_write(1 << 20, cx.waker()).is_some()));
        Poll::<()>::Pending
    }));
    for polls in 1..=2 {
        assert!(rig.poll(connection.as_mut(), &waker).is_pending());
        assert_eq!((short.get(), long.get(), count.woken()), (polls, 0, 0));
    }
    other.pass();
    assert_eq!(count.woken(), 1);
    assert!(rig.poll(connection.as_mut(), &waker).is_pending());
    assert_eq!((short.get(), long.get()), (3, 1));
    assert!(other.has_turn(&noop_waker()), "it was passed on");
}

#[tokio::test]
async fn many_short_frames_stand_in_line_as_a_long_one_does() {
    let line: Arc<Line> = Arc::default();
    let rig = Rig::new();
    let turn = Turn::new(Arc::clone(&rig.share), Some(line.place()));
    let other = line.place();
    assert!(other.has_turn(&noop_waker()));
    turn.begin();
    let frame = 16 << 10;
    let mut frames = 0;
    while turn.may_write(frame, &noop_waker()).is_some() {
        turn.wrote(frame);
        frames += 1;
    }
    assert_eq!(frames, 3);
    turn.end();
    other.pass();
    turn.begin();
    assert!(turn.may_write(frame, &noop_waker()).is_some(), "in its turn");
}

#[tokio::test]
async fn a_write_exceeds_its_turn_only_to_be_done() {
    let rig = Rig::new();
    let length = |bytes: u64| usize::try_from(bytes).expect("short");
    let turn = length(rig.share.turn_bytes());
    let most = |bytes| rig.turn.may_write(bytes, &noop_waker()).expect("its turn");
    assert_eq!(most(turn + 400), turn + 400);
    assert_eq!(most(2 * turn), turn);
}

#[tokio::test]
async fn what_a_turn_has_used_up_does_not_come_back_before_the_next() {
    let line: Arc<Line> = Arc::default();
    let rig = Rig::new();
    let turn = Turn::new(Arc::clone(&rig.share), Some(line.place()));
    turn.begin();
    assert!(turn.may_write(1 << 10, &noop_waker()).is_some(), "short ones need no place");
    turn.wrote(1 << 30);
    let other = line.place();
    assert!(other.has_turn(&noop_waker()));
    assert!(turn.may_write(1 << 10, &noop_waker()).is_none());
    turn.end();
    turn.begin();
    assert!(turn.may_write(1 << 10, &noop_waker()).is_none(), "woken by something else");
    turn.end();
    other.pass();
    turn.begin();
    assert!(turn.may_write(1 << 10, &noop_waker()).is_some());
}

#[test]
fn no_wake_of_another_thread_is_lost() {
    const WAKES: usize = 20_000;
    let (mut rig, woken) = (Rig::new(), Arc::new(AtomicUsize::new(0)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let (tell, told) = std::sync::mpsc::channel::<Waker>();
    let (counted, mut tell) = (Arc::clone(&woken), Some(tell));
    let waking = std::thread::spawn(move || {
        for waker in told {
            counted.fetch_add(1, Ordering::Relaxed);
            waker.wake();
        }
    });
    let mut asked = 0;
    let mut connection = pin!(poll_fn(|cx| {
        // Asks again as soon as it has heard, and waits for nothing else.
        if woken.load(Ordering::Relaxed) == asked {
            if asked == WAKES {
                tell = None;
                return Poll::Ready(());
            }
            asked += 1;
            let tell = tell.as_ref().expect("it listens");
            tell.send(cx.waker().clone()).expect("it listens");
        }
        Poll::Pending
    }));
    let all = poll_fn(|cx| rig.poll(connection.as_mut(), cx.waker()));
    let all = async { tokio::time::timeout(Duration::from_secs(60), all).await };
    runtime.block_on(all).expect("none is lost");
    waking.join().expect("no panic");
}

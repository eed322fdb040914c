use bytes::Buf;
use futures::StreamExt as _;
use futures::task::noop_waker_ref;
use http_body_util::{Full, StreamBody};
use tokio::sync::Semaphore;
use tracing::Span;

use super::*;
use crate::edge::account::Books;
use crate::edge::held::Held;
use crate::edge::in_flight::{InFlight, PIECE_BYTES, PeerName};
use crate::edge::metrics::EdgeMetrics;
use crate::edge::request::RequestIds;
use crate::edge::window::Window;

const REPLY: usize = 1 << 20;

/// A reply to a client that takes `window` of each stream without being asked.
fn reply(window: u32, held: Option<Held>) -> ReplyBody {
    let metrics = EdgeMetrics::default();
    let id = RequestIds::new().name(&HeaderMap::new());
    let mut account = Account::open(Books::of("m", &metrics), id, Span::none(), None);
    account.keep(held);
    let all = Arc::new(InFlight::new(64 << 20, 16 << 20, 1, &metrics));
    let share = Arc::new(all.join(PeerName::User(None)));
    let stream = Arc::new(StreamState::new(Window::of(window)));
    let body = tonic::body::Body::new(Full::new(Bytes::from(vec![7; REPLY])));
    ReplyBody::new(body, None, None, stream, share, account)
}

fn poll(reply: &mut ReplyBody) -> Poll<Option<Data>> {
    let polled = Pin::new(reply).poll_frame(&mut Context::from_waker(noop_waker_ref()));
    polled.map(|frame| frame.map(|frame| frame.expect("no error").into_data().ok().expect("data")))
}

/// Whether the reply ends while HTTP/2 holds what is before its end; it always does after that.
fn ends_early(mut reply: ReplyBody) -> bool {
    let Poll::Ready(Some(piece)) = poll(&mut reply) else { panic!("a piece") };
    assert_eq!(piece.remaining(), REPLY);
    let early = poll(&mut reply).is_ready();
    drop(piece);
    assert!(early || matches!(poll(&mut reply), Poll::Ready(None)), "it ends when it is taken");
    early
}

#[test]
fn a_reply_ends_early_within_its_clients_window_alone() {
    let length = u32::try_from(REPLY).expect("short");
    assert!(ends_early(reply(length, None)));
    assert!(!ends_early(reply(length - 1, None)));
    assert!(!ends_early(reply(0, None)));
}

#[tokio::test]
async fn what_holds_memory_until_it_is_taken_does_not_end_early() {
    let permits = Arc::new(Semaphore::new(1));
    let permit = Arc::clone(&permits).acquire_owned().await.expect("one is free");
    assert!(!ends_early(reply(u32::MAX, Some(Held::new(permit)))));
    assert_eq!(permits.available_permits(), 1, "given back with the reply");
}

/// The lengths of what a reply of such frames hands on, with room for a whole piece.
fn pieces(window: u32, frames: &[usize]) -> Vec<usize> {
    let mut reply = reply(window, None);
    let frames: Vec<_> = frames
        .iter()
        .map(|length| Ok::<_, Status>(Frame::data(Bytes::from(vec![7; *length]))))
        .collect();
    reply.inner = Some(tonic::body::Body::new(StreamBody::new(futures::stream::iter(frames))));
    let mut lengths = Vec::new();
    while let Poll::Ready(Some(piece)) = poll(&mut reply) {
        lengths.push(piece.remaining());
    }
    lengths
}

#[test]
fn what_is_short_goes_with_what_follows_it() {
    let piece = usize::try_from(PIECE_BYTES).expect("small");
    for (frames, expected) in [
        (&[400, 1 << 20][..], vec![400 + (1 << 20)]),
        (&[400], vec![400]),
        (&[400, 20, 1 << 20], vec![420, 1 << 20]),
        (&[1 << 20, 20, 1 << 20], vec![1 << 20, 20 + (1 << 20)]),
        // No crumb is left of a payload that is as long as a piece.
        (&[20, piece, 20, piece], vec![20 + piece; 2]),
        (&[20, 2 * piece], vec![piece, piece + 20]),
        (&[HEAD_BYTES + 1, 1 << 20], vec![HEAD_BYTES + 1, 1 << 20]),
    ] {
        assert_eq!(pieces(u32::MAX, frames), expected, "{frames:?}");
    }
}

#[test]
fn what_is_short_is_a_frame_of_its_own_for_who_waits_for_whole_ones() {
    for window in [0, (64 << 20) - 1] {
        let frames = [400, 1 << 20, 20, 1 << 20];
        assert_eq!(pieces(window, &frames), frames);
    }
}

#[test]
fn what_is_short_waits_for_nothing_that_is_not_there() {
    let mut reply = reply(u32::MAX, None);
    let first = futures::stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(b"mask")))]);
    let body = StreamBody::new(first.chain(futures::stream::pending()));
    reply.inner = Some(tonic::body::Body::new(body));
    assert!(matches!(poll(&mut reply), Poll::Ready(Some(piece)) if piece.remaining() == 4));
    assert!(poll(&mut reply).is_pending());
}

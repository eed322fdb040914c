use futures::task::noop_waker_ref;
use http_body_util::Full;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;
use tracing::Span;

use super::*;
use crate::edge::held::Held;
use crate::edge::in_flight::{InFlight, PeerName};
use crate::edge::request::RequestIds;
use crate::edge::window::Window;

const REPLY: usize = 1 << 20;

/// A reply to a client that takes `window` of each stream without being asked.
fn reply(window: u32, held: Option<Held>) -> ReplyBody {
    let metrics = EdgeMetrics::default();
    let id = RequestIds::new().name(&HeaderMap::new());
    let mut account = Account::open(metrics.clone(), "m".to_owned(), id, Span::none(), None);
    account.keep(held);
    let all = Arc::new(InFlight::new(64 << 20, 16 << 20, 1, Gauge::default()));
    let share = Arc::new(all.join(PeerName::User(None)));
    let stream = Arc::new(StreamState::new(Window::of(window)));
    let body = tonic::body::Body::new(Full::new(Bytes::from(vec![7; REPLY])));
    ReplyBody::new(body, None, None, stream, share, metrics, account)
}

fn poll(reply: &mut ReplyBody) -> Poll<Option<Bytes>> {
    let polled = Pin::new(reply).poll_frame(&mut Context::from_waker(noop_waker_ref()));
    polled.map(|frame| frame.map(|frame| frame.expect("no error").into_data().expect("data")))
}

/// Whether the reply ends while HTTP/2 holds what is before its end; it always does after that.
fn ends_early(mut reply: ReplyBody) -> bool {
    let Poll::Ready(Some(piece)) = poll(&mut reply) else { panic!("a piece") };
    assert_eq!(piece.len(), REPLY);
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

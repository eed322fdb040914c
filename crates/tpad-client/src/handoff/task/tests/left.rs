//! What a task leaves behind that ends with its runtime.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::*;
use crate::handoff::link::Answer;

#[tokio::test]
async fn a_call_that_the_task_left_in_its_channel_keeps_no_connection() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let paired = runtime.spawn(async move {
        let (handoff, peer) = pair(&path).await;
        (handoff, peer.socket.into_std().expect("a socket"), peer.reader)
    });
    let (handoff, socket, mut reader) = paired.await.expect("it ends");
    // What is sent with this is in the channel after its receiver has looked for the last time.
    let place = handoff.link.asks.clone().reserve_owned().await.expect("there is room");
    runtime.shutdown_background();
    handoff.link.asks.closed().await;
    let (answer, answered) = oneshot::channel();
    let message = wire::Acquire::default();
    let link = Arc::downgrade(&handoff.link);
    drop(place.send(Ask::Acquire(Call { message, link, answer: Answer::Host(answer) })));
    drop(handoff);
    socket.set_nonblocking(false).expect("it can be");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("it can be");
    assert!(!reader.fill(&socket).expect("the end, in time"));
    assert!(answered.await.is_err(), "the call is gone with the connection");
}

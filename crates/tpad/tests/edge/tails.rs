//! Replies within the window that a client gives each stream: their ends wait for nobody.

use tpad::edge::{ConnectionOutcome, ListenerKind};

use crate::raw::{DATA, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, Raw, SETTINGS};
use crate::server::{ENDLESS, Server, eventually, exact, impatient, limits};

const WIDEST: u32 = (1 << 31) - 1;

/// What the connection's own window lets through before the client says anything of it.
const FIRST_WINDOW: usize = 65_535;

#[tokio::test]
async fn a_reply_within_the_streams_window_is_over_before_it_is_taken() {
    const REPLY: usize = 1 << 20;
    let server = Server::start(limits()).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), WIDEST).await;
    writer.request(1, &exact(REPLY), &[]).await;
    let mut taken = 0;
    while taken < FIRST_WINDOW {
        taken += reader.find(|frame| frame.kind == DATA).await.expect("data").payload.len();
    }
    eventually("its task is over", || server.replies() == 0).await;
    assert!(server.in_flight_bytes() > 0, "what waits is counted");
    writer.widen(0, WIDEST >> 1).await;
    let end = loop {
        let frame = reader.find(|frame| frame.stream == 1).await.expect("the rest");
        match frame.kind {
            DATA => taken += frame.payload.len(),
            _ => break frame,
        }
    };
    assert_eq!((end.kind, end.flags & END_STREAM, taken), (HEADERS, END_STREAM, REPLY));
    eventually("all is taken", || server.in_flight_bytes() == 0).await;
}

#[tokio::test]
async fn who_does_not_take_the_rest_of_one_loses_the_connection() {
    let server = Server::start(impatient()).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), WIDEST).await;
    writer.request(1, &exact(1 << 20), &[]).await;
    let end = reader.find(|frame| frame.kind == HEADERS && frame.flags & END_STREAM != 0).await;
    assert!(end.is_none(), "{end:?}");
    assert_eq!(server.ended(ListenerKind::Tcp, ConnectionOutcome::Stalled), 1);
    eventually("its bytes are dropped", || server.in_flight_bytes() == 0).await;
}

#[tokio::test]
async fn a_window_that_is_taken_back_does_not_keep_a_reply_for_ever() {
    let server = Server::start(impatient()).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), WIDEST).await;
    // With any window at all HTTP/2 takes the reply whole.
    let little = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &10u32.to_be_bytes()].concat();
    writer.frame(SETTINGS, 0, 0, &little).await;
    writer.widen(0, WIDEST >> 1).await;
    writer.request(1, &exact(100_000), &[]).await;
    // That another stream goes on all the time is no excuse.
    writer.request(3, ENDLESS, &[]).await;
    writer.widen(3, 1 << 20).await;
    loop {
        let Some(frame) = reader.find(|frame| frame.kind == DATA).await else { break };
        let length = u32::try_from(frame.payload.len()).expect("a frame");
        if frame.stream == 1 {
            assert_eq!(length, 10, "its window");
            continue;
        }
        // The connection may have ended meanwhile.
        let _ = writer.try_widen(0, length).await && writer.try_widen(3, length).await;
    }
    assert_eq!(server.ended(ListenerKind::Tcp, ConnectionOutcome::Stalled), 1);
    eventually("nothing is kept", || server.in_flight_bytes() == 0).await;
    assert_eq!(server.replies(), 0);
}

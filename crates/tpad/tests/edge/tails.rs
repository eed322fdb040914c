//! Replies to clients that read whatever comes: their ends wait for nobody.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tpad::config::Limits;
use tpad::edge::{ConnectionOutcome, CutReason, ListenerKind};

use crate::raw::{
    ACK, CANCEL, DATA, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, PATIENCE, PING,
    RST_STREAM, Raw, Reader, SETTINGS,
};
use crate::server::{ENDLESS, Server, eventually, exact, impatient, limits};

const WIDEST: u32 = (1 << 31) - 1;
const REPLY: usize = 1 << 20;

/// What is left of the streams' windows: with none at all HTTP/2 does not take a reply whole.
const LITTLE: usize = 10;

/// A client that says that it reads whatever comes, and after its first request gives streams
/// next to no window: a reply's end is with HTTP/2, and the rest before it stays there.
async fn liar(server: &Server) -> Raw {
    let mut raw = Raw::connect(server.address(), WIDEST).await;
    raw.writer.widen(0, WIDEST >> 1).await;
    raw.writer.request(1, &exact(LITTLE), &[]).await;
    assert_eq!(rest(&mut raw.reader, 1).await, LITTLE);
    let little = u32::try_from(LITTLE).expect("little").to_be_bytes();
    let little = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &little].concat();
    raw.writer.frame(SETTINGS, 0, 0, &little).await;
    raw
}

/// The bytes of `stream` up to its end.
async fn rest(reader: &mut Reader, stream: u32) -> usize {
    let mut taken = 0;
    loop {
        let frame = reader.find(|frame| frame.stream == stream).await.expect("the rest");
        if frame.kind == DATA {
            taken += frame.payload.len();
            continue;
        }
        assert_eq!(frame.kind, HEADERS, "{frame:?}");
        if frame.flags & END_STREAM != 0 {
            return taken;
        }
    }
}

async fn is_over(server: &Server) {
    eventually("the reply is over", || server.replies() == 0 && server.in_flight_bytes() > 0).await;
}

#[tokio::test]
async fn a_reply_is_over_before_it_is_taken_and_comes_whole() {
    let server = Server::start(limits()).await;
    let Raw { mut reader, mut writer } = liar(&server).await;
    writer.request(3, &exact(REPLY), &[]).await;
    is_over(&server).await;
    writer.widen(3, 1 << 20).await;
    assert_eq!(rest(&mut reader, 3).await, REPLY);
    eventually("all is taken", || server.in_flight_bytes() == 0).await;
}

#[tokio::test]
async fn who_does_not_take_the_rest_of_one_loses_the_connection() {
    let server = Server::start(impatient()).await;
    let Raw { mut reader, mut writer } = liar(&server).await;
    writer.request(3, &exact(REPLY), &[]).await;
    let end = |frame: &crate::raw::Frame| frame.kind == HEADERS && frame.flags & END_STREAM != 0;
    assert!(reader.find(end).await.is_none(), "it was not taken");
    let stalled = || server.ended(ListenerKind::Tcp, ConnectionOutcome::Stalled);
    eventually("it is told why", || stalled() == 1).await;
    assert_eq!(server.cut(CutReason::Stalled), 1);
    eventually("its bytes are dropped", || server.in_flight_bytes() == 0).await;
}

#[tokio::test]
async fn that_another_stream_goes_on_does_not_keep_one_for_ever() {
    let limits = Limits { progress_deadline: Duration::from_millis(500), ..limits() };
    let server = Server::start(limits).await;
    let Raw { mut reader, mut writer } = liar(&server).await;
    writer.request(3, &exact(REPLY), &[]).await;
    is_over(&server).await;
    writer.request(5, ENDLESS, &[]).await;
    writer.widen(5, 1 << 20).await;
    let mut taken = 0;
    let go_on = async {
        while let Some(frame) = reader.find(|frame| frame.kind == DATA).await {
            let length = u32::try_from(frame.payload.len()).expect("a frame");
            if frame.stream == 5 {
                taken += length;
                // The connection may have ended meanwhile.
                let _ = writer.try_widen(0, length).await && writer.try_widen(5, length).await;
            }
        }
    };
    timeout(PATIENCE, go_on).await.expect("the connection ends");
    assert!(taken > 4 << 20, "{taken} bytes of the other");
    let stalled = || server.ended(ListenerKind::Tcp, ConnectionOutcome::Stalled);
    eventually("it is told why", || stalled() == 1).await;
    eventually("nothing is kept", || server.in_flight_bytes() == 0).await;
    assert_eq!(server.replies(), 0);
}

#[tokio::test]
async fn one_that_is_reset_is_forgotten() {
    let limits = Limits { progress_deadline: Duration::from_millis(500), ..limits() };
    let server = Server::start(limits).await;
    let Raw { mut reader, mut writer } = liar(&server).await;
    writer.request(5, &exact(REPLY), &[]).await;
    is_over(&server).await;
    writer.frame(RST_STREAM, 0, 5, &CANCEL.to_be_bytes()).await;
    eventually("its bytes are dropped", || server.in_flight_bytes() == 0).await;
    // Past its progress deadline, and twice that.
    sleep(Duration::from_millis(1200)).await;
    writer.request(7, &exact(LITTLE), &[]).await;
    let data = reader.find(|frame| frame.kind == DATA && frame.stream == 7).await;
    assert!(data.is_some(), "the connection stays");
    assert_eq!(server.cut(CutReason::Stalled), 0);
}

#[tokio::test]
async fn a_drain_waits_for_the_rest_of_one() {
    let server = Server::start(limits()).await;
    let Raw { mut reader, mut writer } = liar(&server).await;
    writer.request(3, &exact(REPLY), &[]).await;
    is_over(&server).await;
    let take = async move {
        reader.find(|frame| frame.kind == GOAWAY).await.expect("told to go");
        let ping = reader.find(|frame| frame.kind == PING).await.expect("asked");
        writer.frame(PING, ACK, 0, &ping.payload).await;
        // Now the server knows the last stream, and closes when nothing is left of any.
        reader.find(|frame| frame.kind == GOAWAY).await.expect("told the last stream");
        sleep(Duration::from_millis(100)).await;
        writer.widen(3, 1 << 20).await;
        assert_eq!(rest(&mut reader, 3).await, REPLY - LITTLE, "what was sent first is read");
    };
    let (report, ()) = tokio::join!(server.drain(PATIENCE), take);
    assert_eq!(report.aborted_connections, 0, "{report:?}");
}

#[tokio::test]
async fn who_gives_the_connection_little_loses_the_stream_alone() {
    let server = Server::start(impatient()).await;
    // Each stream has all it wants, the connection the window that it begins with.
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), WIDEST).await;
    writer.request(1, &exact(REPLY), &[]).await;
    let reset = reader.find(|frame| frame.kind == RST_STREAM).await.expect("a reset");
    assert_eq!((reset.stream, reset.error_code()), (1, CANCEL));
    writer.widen(0, 1 << 20).await;
    writer.request(3, &exact(LITTLE), &[]).await;
    let data = reader.find(|frame| frame.kind == DATA && frame.stream == 3).await;
    assert!(data.is_some(), "the connection stays");
}

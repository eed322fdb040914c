//! Streams whose clients do not read.

use std::collections::HashMap;
use std::time::Duration;

use tpad::config::Limits;
use tpad::edge::{ConnectionOutcome, CutReason, ListenerKind};

use crate::raw::{
    CANCEL, DATA, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, REFUSED_STREAM, RST_STREAM, Raw,
    WINDOW_UPDATE, headers,
};
use crate::server::{ENDLESS, Server, eventually, exact, impatient, limits};

/// What is handed to HTTP/2 at a time.
const PIECE_BYTES: i64 = 2 << 20;

/// The same for who has no room.
const LEAST_PIECE_BYTES: i64 = 64 << 10;

/// What HTTP/2 may hold of one stream: a send buffer and the piece that filled it.
const STREAM_BYTES: i64 = 2 * PIECE_BYTES;

#[tokio::test]
async fn twenty_thousand_never_read_streams_are_refused_beyond_the_limit() {
    let limits = limits();
    let server = Server::start(limits).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), 0).await;
    let open = async {
        for n in 0..20_000 {
            if !writer.try_frame(HEADERS, 5, n * 2 + 1, &headers(ENDLESS)).await {
                return;
            }
        }
    };
    // A connection's own bound, a piece beyond it, and a small one for each stream.
    let own = i64::try_from(limits.in_flight_bytes_per_connection).expect("small");
    let bound = own + PIECE_BYTES + i64::from(limits.streams_per_connection) * LEAST_PIECE_BYTES;
    // A client that goes on after it was told the limit and was refused is cut off.
    let count = async {
        let (mut begun, mut refused) = (0u32, 0u32);
        loop {
            let frame = reader.frame().await.expect("told why");
            match frame.kind {
                HEADERS => begun += 1,
                RST_STREAM => {
                    assert_eq!(frame.error_code(), REFUSED_STREAM);
                    refused += 1;
                }
                GOAWAY => return (begun, refused, frame.error_code()),
                _ => {}
            }
            assert!(server.in_flight_bytes() <= bound, "{}", server.in_flight_bytes());
        }
    };
    let ((), (begun, refused, code)) = tokio::join!(open, count);
    assert!(begun <= limits.streams_per_connection, "{begun} were begun");
    assert!(refused < 1000, "{refused} were refused one by one");
    assert_eq!(code, ENHANCE_YOUR_CALM);
    eventually("the connection is gone", || server.connections(ListenerKind::Tcp) == 0).await;
    assert_eq!((server.replies(), server.in_flight_bytes()), (0, 0));
}

#[tokio::test]
async fn a_client_that_keeps_to_the_limit_may_use_all_of_it() {
    let limits = limits();
    let server = Server::start(limits).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), 0).await;
    for n in 0..limits.streams_per_connection {
        writer.request(n * 2 + 1, ENDLESS, &[]).await;
    }
    for _ in 0..limits.streams_per_connection {
        reader.find(|frame| frame.kind == HEADERS).await.expect("begun");
    }
    writer.request(limits.streams_per_connection * 2 + 1, ENDLESS, &[]).await;
    let refused = reader.find(|frame| frame.kind == RST_STREAM).await.expect("refused");
    assert_eq!(refused.error_code(), REFUSED_STREAM);
    assert_eq!(server.replies(), usize::try_from(limits.streams_per_connection).expect("small"));
}

#[tokio::test]
async fn a_flood_of_mistakes_that_reset_streams_ends_the_connection() {
    let server = Server::start(limits()).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), 65_535).await;
    let flood = async {
        for n in 0..100_000u32 {
            let stream = n * 2 + 1;
            // A window beyond 2^31 - 1 is a stream error: the server must reset the stream (RFC 9113, 6.9.1).
            let opened = writer.try_frame(HEADERS, 5, stream, &headers(ENDLESS)).await;
            if !opened
                || !writer.try_frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]).await
            {
                return;
            }
        }
    };
    let goaway = async {
        let mut resets = 0u32;
        loop {
            match reader.frame().await {
                Some(frame) if frame.kind == RST_STREAM => resets += 1,
                Some(frame) if frame.kind == GOAWAY => return (resets, frame.error_code()),
                Some(_) => {}
                None => return (resets, u32::MAX),
            }
        }
    };
    let ((), (resets, code)) = tokio::join!(flood, goaway);
    assert_eq!(code, ENHANCE_YOUR_CALM, "after {resets} resets");
    assert!(resets < 1000, "{resets} resets");
    eventually("the connection is gone", || server.connections(ListenerKind::Tcp) == 0).await;
    eventually("its replies are gone", || server.replies() == 0).await;
}

#[tokio::test]
async fn a_client_that_stops_reading_a_stream_loses_it_and_nothing_else() {
    let server = Server::start(impatient()).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), 65_535).await;
    writer.widen(0, 1 << 30).await;
    // Stream 1 is never widened; stream 3 is, with every frame that comes.
    writer.request(1, ENDLESS, &[]).await;
    writer.request(3, ENDLESS, &[]).await;
    let mut taken: HashMap<u32, usize> = HashMap::new();
    let mut most = 0;
    let reset = loop {
        let frame = reader.frame().await.expect("the connection stays");
        most = most.max(server.in_flight_bytes());
        match frame.kind {
            DATA => {
                *taken.entry(frame.stream).or_default() += frame.payload.len();
                if frame.stream == 3 {
                    let length = u32::try_from(frame.payload.len()).expect("a frame");
                    writer.widen(3, length).await;
                }
            }
            RST_STREAM => break frame,
            _ => {}
        }
    };
    assert_eq!((reset.stream, reset.error_code()), (1, CANCEL));
    assert_eq!(taken[&1], 65_535, "its window's worth");
    assert_eq!(server.cut(CutReason::Stalled), 1);
    assert_eq!(server.replies(), 1, "the other stream's");
    assert!(most <= 2 * STREAM_BYTES, "{most} bytes were held");
    // The other stream goes on.
    let more = reader.find(|frame| frame.kind == DATA && frame.stream == 3).await;
    assert!(more.is_some());
}

#[tokio::test]
async fn a_whole_reply_that_is_never_read_is_not_kept() {
    let server = Server::start(impatient()).await;
    // With any window at all HTTP/2 takes the reply whole, trailers too, and nobody waits for it.
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), 10).await;
    writer.request(1, &exact(100_000), &[]).await;
    let end = reader.find(|frame| frame.kind == RST_STREAM).await.expect("an end");
    assert_eq!((end.stream, end.error_code()), (1, CANCEL));
    eventually("its bytes are dropped", || server.in_flight_bytes() == 0).await;
}

#[tokio::test]
async fn a_reply_that_is_read_slowly_is_not_cut() {
    let limits = Limits { progress_deadline: Duration::from_secs(2), ..limits() };
    let server = Server::start(limits).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), 0).await;
    writer.request(1, &exact(8 << 20), &[]).await;
    reader.find(|frame| frame.kind == HEADERS).await.expect("headers");
    // 64 KiB at a time, with a pause: more than the progress deadline in all.
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let mut taken = 0;
    while taken < 8 << 20 {
        pause.tick().await;
        writer.widen(0, 1 << 16).await;
        writer.widen(1, 1 << 16).await;
        let before = taken;
        while taken < before + (1 << 16) {
            let frame = reader.find(|frame| frame.stream == 1).await.expect("a frame");
            assert_eq!(frame.kind, DATA, "{frame:?}");
            taken += frame.payload.len();
        }
    }
    let end = reader.find(|frame| frame.stream == 1).await.expect("the end");
    assert_eq!((end.kind, end.flags & END_STREAM), (HEADERS, END_STREAM));
    assert_eq!(server.cut(CutReason::Stalled), 0);
}

#[tokio::test]
async fn a_socket_that_is_never_read_is_closed() {
    let server = Server::start(impatient()).await;
    let mut raw = Raw::connect(server.address(), (1 << 31) - 1).await;
    // Windows without end and a client that never touches its socket again.
    raw.writer.widen(0, 1 << 30).await;
    raw.writer.request(1, ENDLESS, &[]).await;
    eventually("it is served", || server.replies() == 1).await;
    let stalled = || server.ended(ListenerKind::Tcp, ConnectionOutcome::Stalled);
    eventually("the connection is cut", || stalled() == 1).await;
    eventually("its bytes are dropped", || server.in_flight_bytes() == 0).await;
    assert_eq!(server.replies(), 0);
}

#[tokio::test]
async fn the_bytes_that_all_clients_together_leave_unread_are_bounded() {
    const LIMIT: u64 = 8 << 20;
    let server = Server::start(Limits { in_flight_bytes: LIMIT, ..limits() }).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect(server.address(), 0).await;
        for n in 0..8 {
            raw.writer.request(n * 2 + 1, ENDLESS, &[]).await;
        }
        clients.push(raw);
    }
    // They are one peer, which may have as much as nobody has.
    let half = i64::try_from(LIMIT / 2).expect("small");
    eventually("the bound is reached", || server.in_flight_bytes() >= half).await;
    eventually("all are there", || server.replies() == 64).await;
    // A small piece for each connection, and one of overshoot: the runtime has one thread.
    let most = half + 8 * LEAST_PIECE_BYTES + PIECE_BYTES;
    assert!(server.in_flight_bytes() <= most, "{}", server.in_flight_bytes());
    // Who reads gets on, although the others hold all there is.
    let mut reader = Raw::connect(server.address(), (1 << 31) - 1).await;
    reader.writer.widen(0, 1 << 30).await;
    reader.writer.request(1, ENDLESS, &[]).await;
    let mut taken = 0;
    while taken < 64 << 20 {
        let frame = reader.reader.find(|frame| frame.kind == DATA).await.expect("data");
        taken += frame.payload.len();
        let held = server.in_flight_bytes();
        assert!(held <= most + LEAST_PIECE_BYTES, "{held}");
    }
    drop((clients, reader));
    eventually("all is released", || server.in_flight_bytes() == 0).await;
}

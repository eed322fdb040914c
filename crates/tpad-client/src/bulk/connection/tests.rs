//! A daemon that is a list of frames, and what is made of it.

mod marks;

use std::future::poll_fn;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tonic::Code;

use super::super::call::{CallState, Request};
use super::super::header;
use super::super::io::Layered;
use super::super::session::WINDOW_BYTES;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn request(bytes: usize) -> Request {
    Request {
        secure: false,
        authority: "localhost".into(),
        path: "/p.S/M",
        timeout: Some("5S".into()),
        body: Bytes::from(vec![7; bytes]),
    }
}

fn connected(request: Request) -> (Connection, DuplexStream) {
    let (ours, daemon) = tokio::io::duplex(1 << 20);
    let mut connection = Connection::new(Box::new(Layered::over(ours)), PATIENCE);
    connection.begin();
    connection.session.start(request);
    (connection, daemon)
}

fn noop() -> Context<'static> {
    Context::from_waker(std::task::Waker::noop())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, kind, flags, stream, payload);
    bytes
}

fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append_settings(&mut bytes, settings);
    bytes
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        header::append(&mut block, name, value);
    }
    block
}

const HEAD: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/grpc")];

fn head(stream: u32) -> Vec<u8> {
    frame(frame::HEADERS, frame::END_HEADERS, stream, &block(&HEAD))
}

fn trailers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, stream, &block(fields))
}

/// What a call makes of `frames`: its bytes and its status, or the connection's error.
async fn outcome(frames: &[Vec<u8>]) -> Result<(Vec<u8>, Code), ConnectionError> {
    let (mut connection, mut daemon) = connected(request(10));
    // Small pieces: every boundary falls within one.
    let bytes = frames.concat();
    let write = async move {
        for piece in bytes.chunks(7) {
            // A connection that failed reads no more.
            let _ = daemon.write_all(piece).await;
        }
        daemon
    };
    let (result, _daemon) = tokio::join!(read(&mut connection), write);
    result
}

async fn read(connection: &mut Connection) -> Result<(Vec<u8>, Code), ConnectionError> {
    poll_fn(|cx| connection.poll_head(cx)).await?;
    let mut bytes = Vec::new();
    let mut into = [0; 100];
    loop {
        match poll_fn(|cx| connection.poll_read(cx, &mut into)).await? {
            0 => break,
            count => bytes.extend_from_slice(&into[..count]),
        }
    }
    let status = connection.session.call.as_ref().map(CallState::status).expect("a call");
    Ok((bytes, status.code()))
}

async fn fault(frames: &[Vec<u8>]) -> u32 {
    match outcome(frames).await {
        Err(ConnectionError::Broken(fault)) => fault.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reply_is_read_whatever_stands_between_its_frames() {
    let mut padded = vec![3];
    padded.extend_from_slice(b"cde\0\0\0");
    let with_priority = {
        let mut payload = vec![2, 0, 0, 0, 0, 16];
        payload.extend(block(&HEAD));
        payload.extend([0, 0]);
        let flags = frame::END_HEADERS | frame::PADDED | frame::WITH_PRIORITY;
        frame(frame::HEADERS, flags, 1, &payload)
    };
    let end = block(&[("grpc-status", "0")]);
    let frames = [
        settings(&[(frame::MAX_CONCURRENT_STREAMS, 1), (99, 7)]),
        frame(frame::SETTINGS, frame::ACK, 0, &[]),
        // More is to come: nothing that we asked for.
        frame(frame::HEADERS, frame::END_HEADERS, 1, &block(&[(":status", "103")])),
        frame(0xbe, 0xff, 77, &[1; 300]),
        with_priority,
        frame(frame::DATA, 0, 1, b"ab"),
        frame(frame::PING, 0, 0, b"01234567"),
        frame(frame::DATA, 0, 1, b""),
        frame(frame::PRIORITY, 0, 1, &[0; 5]),
        frame(frame::DATA, frame::PADDED, 1, &padded),
        frame(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0]),
        frame(frame::DATA, 0, 1, &[b'f'; 1000]),
        frame(frame::HEADERS, frame::END_STREAM, 1, &end[..3]),
        frame(frame::CONTINUATION, frame::END_HEADERS, 1, &end[3..]),
    ];
    let (bytes, code) = outcome(&frames).await.expect("a reply");
    assert_eq!((&bytes[..5], bytes.len(), code), (&b"abcde"[..], 1005, Code::Ok));
}

#[tokio::test]
async fn a_reply_may_end_in_every_way_that_it_can() {
    let begin = [settings(&[]), head(1)].concat();
    let ends = [
        (trailers(1, &[("grpc-status", "7"), ("grpc-message", "no")]), Code::PermissionDenied),
        (trailers(1, &[("x", "y")]), Code::Unknown),
        (frame(frame::DATA, frame::END_STREAM, 1, b"ab"), Code::Unknown),
        (frame(frame::DATA, frame::END_STREAM | frame::PADDED, 1, b"\x01ab\0"), Code::Unknown),
        (frame(frame::RST_STREAM, 0, 1, &8u32.to_be_bytes()), Code::Unknown),
    ];
    for (end, expected) in ends {
        let (_, code) = outcome(&[begin.clone(), end]).await.expect("an end");
        assert_eq!(code, expected);
    }
    let head_is_end = [(":status", "200"), ("grpc-status", "5")];
    let (bytes, code) = outcome(&[settings(&[]), trailers(1, &head_is_end)]).await.expect("one");
    assert_eq!((bytes.len(), code), (0, Code::NotFound));
}

#[tokio::test]
async fn what_breaks_the_protocol_is_named_by_its_code() {
    let begin = || [settings(&[]), head(1)].concat();
    let number = |number: u32| number.to_be_bytes();
    let cases: Vec<(u32, Vec<Vec<u8>>)> = vec![
        (frame::PROTOCOL_ERROR, vec![head(1)]),
        (frame::PROTOCOL_ERROR, vec![b"HTTP/1.1 400 Bad Request\r\n".to_vec()]),
        (frame::PROTOCOL_ERROR, vec![settings(&[(frame::ENABLE_PUSH, 1)])]),
        (frame::FLOW_CONTROL_ERROR, vec![settings(&[(frame::INITIAL_WINDOW_SIZE, 1 << 31)])]),
        (frame::PROTOCOL_ERROR, vec![settings(&[(frame::MAX_FRAME_SIZE, 16_383)])]),
        (frame::PROTOCOL_ERROR, vec![settings(&[(frame::MAX_FRAME_SIZE, 1 << 24)])]),
        (frame::FRAME_SIZE_ERROR, vec![frame(frame::SETTINGS, 0, 0, &[0; 5])]),
        (frame::PROTOCOL_ERROR, vec![frame(frame::SETTINGS, 0, 3, &[])]),
        (frame::FRAME_SIZE_ERROR, vec![settings(&[]), frame(frame::SETTINGS, 1, 0, &[0; 6])]),
        (frame::FRAME_SIZE_ERROR, vec![begin(), frame(frame::PING, 0, 0, &[0; 7])]),
        (frame::FRAME_SIZE_ERROR, vec![begin(), frame(frame::GOAWAY, 0, 0, &[0; 7])]),
        (frame::FRAME_SIZE_ERROR, vec![begin(), frame(frame::RST_STREAM, 0, 1, &[0; 5])]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::RST_STREAM, 0, 3, &number(8))]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::RST_STREAM, 0, 2, &number(8))]),
        (frame::FRAME_SIZE_ERROR, vec![begin(), frame(frame::PRIORITY, 0, 1, &[0; 4])]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::PUSH_PROMISE, 4, 1, &[0; 4])]),
        (frame::FLOW_CONTROL_ERROR, vec![begin(), frame(frame::WINDOW_UPDATE, 0, 0, &number(0))]),
        (
            frame::FLOW_CONTROL_ERROR,
            vec![begin(), frame(frame::WINDOW_UPDATE, 0, 1, &number(frame::LARGEST_WINDOW))],
        ),
        (frame::PROTOCOL_ERROR, vec![settings(&[]), frame(frame::DATA, 0, 1, b"x")]),
        (frame::STREAM_CLOSED, vec![begin(), frame(frame::DATA, 0, 3, b"x")]),
        (frame::STREAM_CLOSED, vec![begin(), head(0)]),
        (frame::PROTOCOL_ERROR, vec![begin(), head(3)]),
        (frame::PROTOCOL_ERROR, vec![begin(), head(1)]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::HEADERS, 5, 1, &block(&HEAD))]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::HEADERS, 4, 1, &block(&[("a", "b")]))]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::CONTINUATION, 4, 1, &[])]),
        (
            frame::PROTOCOL_ERROR,
            vec![begin(), frame(frame::HEADERS, 1, 1, &[]), frame(frame::PING, 0, 0, &[0; 8])],
        ),
        (frame::PROTOCOL_ERROR, vec![settings(&[]), frame(frame::HEADERS, 4 | 8, 1, b"\x02\0")]),
        (frame::FRAME_SIZE_ERROR, vec![settings(&[]), frame(frame::HEADERS, 4 | 8, 1, b"")]),
        (frame::FRAME_SIZE_ERROR, vec![settings(&[]), frame(frame::HEADERS, 4 | 32, 1, b"1234")]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::DATA, frame::PADDED, 1, b"\x03ab")]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::DATA, frame::PADDED, 1, b"")]),
        (frame::COMPRESSION_ERROR, vec![settings(&[]), frame(frame::HEADERS, 4, 1, &[0xff])]),
        (frame::ENHANCE_YOUR_CALM, vec![begin(), frame(frame::SETTINGS, 0, 0, &[0; 1206])]),
        (frame::ENHANCE_YOUR_CALM, vec![begin(), frame(frame::HEADERS, 0, 1, &[0; 65_537])]),
        (
            frame::ENHANCE_YOUR_CALM,
            vec![
                begin(),
                frame(frame::HEADERS, 1, 1, &[0; 60_000]),
                frame(frame::CONTINUATION, 0, 1, &[0; 60_000]),
            ],
        ),
        (frame::ENHANCE_YOUR_CALM, vec![begin(), frame(frame::DATA, 0, 1, b"").repeat(10_001)]),
    ];
    for (n, (code, frames)) in cases.into_iter().enumerate() {
        assert_eq!(frame::reason(fault(&frames).await), frame::reason(code), "case {n}");
    }
}

/// Frames that were written, their heads and payloads.
async fn written(daemon: &mut DuplexStream, until: impl Fn(&FrameHead) -> bool) -> Vec<FrameHead> {
    let mut frames = Vec::new();
    loop {
        let mut head = [0; HEAD_BYTES];
        daemon.read_exact(&mut head).await.expect("a frame");
        let head = FrameHead::read(head);
        let mut payload = vec![0; head.bytes];
        daemon.read_exact(&mut payload).await.expect("its payload");
        frames.push(head);
        if until(&head) {
            return frames;
        }
    }
}

async fn greet(daemon: &mut DuplexStream) {
    let mut preface = [0; frame::PREFACE.len()];
    daemon.read_exact(&mut preface).await.expect("a preface");
    assert_eq!(preface, frame::PREFACE);
    let opening = written(daemon, |head| head.kind == frame::HEADERS).await;
    let kinds: Vec<u8> = opening.iter().map(|head| head.kind).collect();
    assert_eq!(kinds, [frame::SETTINGS, frame::WINDOW_UPDATE, frame::HEADERS]);
}

#[tokio::test]
async fn a_large_request_waits_for_the_daemons_windows() {
    let (mut connection, mut daemon) = connected(request(100_000));
    let daemon = async {
        greet(&mut daemon).await;
        let data = |frames: &[FrameHead]| -> usize {
            frames.iter().filter(|head| head.kind == frame::DATA).map(|head| head.bytes).sum()
        };
        // 64 KiB less one, in frames of 16 KiB: HTTP/2's defaults.
        let first = written(&mut daemon, |head| head.bytes == 65_535 % 16_384).await;
        assert_eq!(data(&first), 65_535);
        assert!(first.iter().all(|head| head.bytes <= 16_384 && !head.has(frame::END_STREAM)));
        // The streams' windows alone do not help.
        daemon.write_all(&settings(&[(frame::INITIAL_WINDOW_SIZE, 1 << 20)])).await.expect("room");
        daemon.write_all(&frame(frame::PING, 0, 0, &[0; 8])).await.expect("room");
        let between = written(&mut daemon, |head| head.kind == frame::PING).await;
        assert_eq!(data(&between), 0);
        let more = 1_000_000u32.to_be_bytes();
        daemon.write_all(&frame(frame::WINDOW_UPDATE, 0, 0, &more)).await.expect("room");
        let last = written(&mut daemon, |head| head.has(frame::END_STREAM)).await;
        assert_eq!(data(&last), 100_000 - 65_535);
        daemon.write_all(&trailers(1, &[(":status", "200")])).await.expect("room");
        daemon
    };
    let (read, _daemon) = tokio::join!(read(&mut connection), daemon);
    assert!(read.expect("a reply").0.is_empty());
}

#[tokio::test]
async fn windows_are_raised_as_bytes_are_taken_and_never_overrun() {
    let (mut connection, mut daemon) = connected(request(1));
    let piece = frame(frame::DATA, 0, 1, &[5; 1 << 20]);
    let count = WINDOW_BYTES / (1 << 20) * 2;
    let daemon = async {
        greet(&mut daemon).await;
        daemon.write_all(&[settings(&[]), head(1)].concat()).await.expect("room");
        let (mut reading, mut writing) = tokio::io::split(daemon);
        let write = async {
            for _ in 0..count {
                writing.write_all(&piece).await.expect("room");
            }
            writing.write_all(&trailers(1, &[("grpc-status", "0")])).await.expect("room");
        };
        let read = async {
            let mut all = vec![0; 4096];
            let mut updates = Vec::new();
            while updates.len() < 2 * (HEAD_BYTES + 4) + 9 + (HEAD_BYTES + 1) {
                let count = reading.read(&mut all).await.expect("alive");
                updates.extend_from_slice(&all[..count]);
            }
            updates
        };
        tokio::join!(write, read).1
    };
    let (read, updates) = tokio::join!(read(&mut connection), daemon);
    assert_eq!(read.expect("all of it").0.len(), (count as usize) << 20);
    let raised = frame(frame::WINDOW_UPDATE, 0, 1, &(WINDOW_BYTES / 2).to_be_bytes());
    assert!(updates.windows(raised.len()).any(|window| window == raised), "{updates:?}");
}

#[tokio::test]
async fn a_connection_serves_one_call_after_the_other_until_the_daemon_leaves() {
    let (mut connection, mut daemon) = connected(request(1));
    let reply = |stream| {
        let end = trailers(stream, &[("grpc-status", "0")]);
        [head(stream), frame(frame::DATA, 0, stream, b"abc"), end].concat()
    };
    daemon.write_all(&[settings(&[]), reply(1)].concat()).await.expect("room");
    assert_eq!(read(&mut connection).await.expect("a reply"), (b"abc".to_vec(), Code::Ok));
    assert!(connection.is_open(&mut noop()));
    connection.begin();
    connection.session.start(request(1));
    // It takes this call and no other.
    let leaving = [3u32.to_be_bytes(), [0; 4]].concat();
    let bytes = [frame(frame::GOAWAY, 0, 0, &leaving), reply(3)].concat();
    daemon.write_all(&bytes).await.expect("room");
    assert_eq!(read(&mut connection).await.expect("a reply"), (b"abc".to_vec(), Code::Ok));
    assert!(!connection.is_open(&mut noop()));

    let (mut connection, mut daemon) = connected(request(1));
    let bytes = [settings(&[]), frame(frame::GOAWAY, 0, 0, &[0; 8])].concat();
    daemon.write_all(&bytes).await.expect("room");
    let turned_away = read(&mut connection).await;
    assert!(matches!(turned_away, Err(ConnectionError::NotTaken)), "{turned_away:?}");

    let (mut connection, mut daemon) = connected(request(1));
    let refused = frame::REFUSED_STREAM.to_be_bytes();
    let bytes = [settings(&[]), frame(frame::RST_STREAM, 0, 1, &refused)].concat();
    daemon.write_all(&bytes).await.expect("room");
    let refused = read(&mut connection).await;
    assert!(matches!(refused, Err(ConnectionError::NotTaken)), "{refused:?}");

    let (mut connection, daemon) = connected(request(1));
    drop(daemon);
    assert!(matches!(
        read(&mut connection).await,
        Err(ConnectionError::Io(_) | ConnectionError::Closed)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_silent_is_asked_and_then_given_up() {
    let (mut connection, mut daemon) = connected(request(1));
    let began = Instant::now();
    let daemon = async {
        greet(&mut daemon).await;
        daemon.write_all(&settings(&[])).await.expect("room");
        written(&mut daemon, |head| head.kind == frame::PING).await;
        // It answers once.
        daemon.write_all(&frame(frame::PING, frame::ACK, 0, b"tpadping")).await.expect("room");
        written(&mut daemon, |head| head.kind == frame::PING).await;
        daemon
    };
    let (read, _daemon) = tokio::join!(read(&mut connection), daemon);
    assert!(matches!(read, Err(ConnectionError::Silent(_))), "{read:?}");
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn a_daemon_that_asks_and_never_reads_the_answers_is_left() {
    let (ours, mut daemon) = tokio::io::duplex(64);
    let mut connection = Connection::new(Box::new(Layered::over(ours)), PATIENCE);
    connection.session.start(request(1));
    let ask = async move {
        let mut sent = daemon.write_all(&settings(&[])).await;
        while sent.is_ok() {
            sent = daemon.write_all(&frame(frame::PING, 0, 0, &[0; 8])).await;
        }
    };
    let read = async {
        let result = read(&mut connection).await;
        drop(connection);
        result
    };
    let (result, ()) = tokio::join!(read, ask);
    let Err(ConnectionError::Broken(fault)) = result else { panic!("{result:?}") };
    assert_eq!(fault.code, frame::ENHANCE_YOUR_CALM);
}

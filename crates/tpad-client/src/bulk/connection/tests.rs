//! A daemon that is a list of frames, and what is made of it.

mod calls;
mod marks;
mod replies;

use std::future::poll_fn;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tonic::Code;

use super::super::call::{CallState, Request};
use super::super::header;
use super::super::io::Layered;
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

/// The first byte of the header block that a connection has to write.
fn first_of_head(mut output: &[u8]) -> u8 {
    loop {
        let (head, rest) = output.split_first_chunk::<HEAD_BYTES>().expect("a head comes");
        let head = FrameHead::read(*head);
        if head.kind == frame::HEADERS {
            return rest[0];
        }
        output = &rest[head.bytes..];
    }
}

#[tokio::test]
async fn a_daemon_that_keeps_less_is_asked_to_keep_nothing() {
    for (sizes, first) in [(&[0, 8192][..], header::NO_TABLE), (&[4096], 0x83), (&[], 0x83)] {
        let (mut connection, mut daemon) = connected(request(10));
        let sizes: Vec<_> = sizes.iter().map(|size| (frame::HEADER_TABLE_SIZE, *size)).collect();
        let reply = [settings(&sizes), head(1), trailers(1, &[("grpc-status", "0")])].concat();
        daemon.write_all(&reply).await.expect("it reads");
        assert_eq!(read(&mut connection).await.expect("a reply").1, Code::Ok);
        connection.session.start(request(10));
        assert_eq!(first_of_head(&connection.session.output), first, "{sizes:?}");
    }
}

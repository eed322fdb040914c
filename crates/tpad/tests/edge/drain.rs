//! Draining: what has begun may finish, and nothing outlasts the deadline.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::raw::{DATA, END_STREAM, GOAWAY, HEADERS, PING, Raw};
use crate::server::{ENDLESS, Server, WATCH, eventually, exact, limits};

/// What the daemon promises beyond the deadline itself.
const GRACE: Duration = Duration::from_millis(250);

#[tokio::test]
async fn a_reader_that_never_reads_does_not_outlast_the_deadline() {
    let server = Server::start(limits()).await;
    let address = server.address();
    let mut windowless = Raw::connect(address, 0).await;
    windowless.writer.request(1, ENDLESS, &[]).await;
    let mut deaf = Raw::connect(address, (1 << 31) - 1).await;
    deaf.writer.widen(0, 1 << 30).await;
    deaf.writer.request(1, ENDLESS, &[]).await;
    eventually("both hold bytes", || server.replies() == 2 && server.in_flight_bytes() > 1 << 20)
        .await;
    let silent = TcpStream::connect(address).await.expect("connects");
    let uds = server.uds();
    let metrics = server.metrics.clone();

    let within = Duration::from_millis(300);
    let began = Instant::now();
    let report = server.drain(within).await;
    assert!(began.elapsed() <= within + GRACE, "{:?}", began.elapsed());
    assert!(began.elapsed() >= within, "they had until the deadline");
    assert_eq!(report.aborted_connections, 2);
    assert_eq!(metrics.in_flight_bytes.get(), 0, "every stream is gone");
    assert_eq!(metrics.requests_in_flight.get(), 0);
    assert!(!uds.exists(), "the socket's file is removed");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    drop((silent, windowless, deaf));
}

#[tokio::test]
async fn what_has_begun_finishes_and_the_drain_is_over_with_it() {
    let server = Server::start(limits()).await;
    let address = server.address();
    let Raw { mut reader, mut writer } = Raw::connect(address, 0).await;
    writer.request(1, &exact(100_000), &[]).await;
    reader.find(|frame| frame.kind == HEADERS).await.expect("begun");
    // Connections at rest are no reason to wait.
    let mut idle = Raw::connect(address, 65_535).await;
    eventually("both are in", || server.connections(tpad::edge::ListenerKind::Tcp) == 2).await;

    let began = Instant::now();
    let drain = tokio::spawn(server.drain(Duration::from_secs(60)));
    let client = async {
        reader.find(|frame| frame.kind == GOAWAY).await.expect("told to go");
        // The server asks whether that was heard before it names the last stream.
        let ping = reader.find(|frame| frame.kind == PING).await.expect("asked");
        writer.frame(PING, 1, 0, &ping.payload).await;
        writer.widen(0, 1 << 20).await;
        writer.widen(1, 1 << 20).await;
        let mut taken = 0;
        while taken < 100_000 {
            let frame = reader.find(|frame| frame.kind == DATA).await.expect("data");
            taken += frame.payload.len();
        }
        let end = reader.find(|frame| frame.kind == HEADERS).await.expect("trailers");
        assert_eq!(end.flags & END_STREAM, END_STREAM);
        assert!(reader.find(|_| false).await.is_none(), "then the connection closes");
    };
    let rest = async {
        let ping = idle.reader.find(|frame| frame.kind == PING).await.expect("asked");
        idle.writer.frame(PING, 1, 0, &ping.payload).await;
        assert!(idle.reader.find(|_| false).await.is_none(), "then the connection closes");
    };
    tokio::join!(client, rest);
    let report = drain.await.expect("drained");
    assert_eq!(report.aborted_connections, 0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_watch_is_told_and_ended_at_once() {
    let server = Server::start(limits()).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), 65_535).await;
    writer.request(1, WATCH, &[]).await;
    reader.find(|frame| frame.kind == HEADERS).await.expect("begun");
    let drain = tokio::spawn(server.drain(Duration::from_secs(60)));
    let ping = reader.find(|frame| frame.kind == PING).await.expect("asked");
    writer.frame(PING, 1, 0, &ping.payload).await;
    let end = reader.find(|frame| frame.kind == HEADERS).await.expect("trailers");
    assert_eq!(end.flags & END_STREAM, END_STREAM);
    let report = drain.await.expect("drained");
    assert_eq!(report.aborted_connections, 0);
    assert!(report.took < Duration::from_secs(10), "{:?}", report.took);
}

#[tokio::test]
async fn the_http_port_answers_until_grpc_has_drained() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let server = Server::start(limits()).await;
    let http = server.http_address();
    let mut raw = Raw::connect(server.address(), 0).await;
    raw.writer.request(1, ENDLESS, &[]).await;
    raw.reader.find(|frame| frame.kind == HEADERS).await.expect("begun");
    let drain = tokio::spawn(server.drain(Duration::from_millis(500)));
    raw.reader.find(|frame| frame.kind == GOAWAY).await.expect("draining");
    let mut page = TcpStream::connect(http).await.expect("connects");
    page.write_all(b"GET /page HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .expect("written");
    let mut answer = String::new();
    page.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.ends_with("a page"), "{answer}");
    drain.await.expect("drained");
    assert!(TcpStream::connect(http).await.is_err(), "then it closes too");
}

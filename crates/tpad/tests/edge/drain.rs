//! Draining: what has begun may finish, and nothing outlasts the deadline.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::Instant;
use tpad::edge::{ConnectionLabels, ConnectionOutcome, ListenerKind};

use crate::raw::{DATA, END_STREAM, GOAWAY, HEADERS, PING, Raw};
use crate::server::{ENDLESS, Server, WATCH, eventually, exact, impatient, limits};

/// Far from how long these clients would hold it. The promise of 250 ms is held
/// by the end-to-end tests, which may try again on a busy machine.
const GRACE: Duration = Duration::from_secs(5);

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
    eventually("both are in", || server.connections(ListenerKind::Tcp) == 2).await;

    let began = Instant::now();
    let drain = tokio::spawn(server.drain(Duration::from_secs(60)));
    let client = async move {
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
    let rest = async move {
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
    assert!(reader.find(|_| false).await.is_none(), "then the connection closes");
    drop((reader, writer));
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

/// More than the kernel takes from the server before a slow reader has read any.
const LARGE: usize = 6 << 20;

/// What a slow reader's kernel takes at a time: the rest stays with the server's.
const NARROW: u32 = 64 << 10;

/// A client that has asked for so many bytes and taken none of them yet.
async fn asked(socket: impl AsyncRead + AsyncWrite + Send + 'static, bytes: usize) -> Raw {
    let mut raw = Raw::over(socket, 0).await;
    raw.writer.request(1, &exact(bytes), &[]).await;
    raw.reader.find(|frame| frame.kind == HEADERS).await.expect("begun");
    raw
}

/// Lets the server send all that is left, once it has named the last stream.
async fn open_the_windows(raw: &mut Raw) {
    let ping = raw.reader.find(|frame| frame.kind == PING).await.expect("asked");
    raw.writer.frame(PING, 1, 0, &ping.payload).await;
    raw.writer.widen(0, 1 << 30).await;
    raw.writer.widen(1, 1 << 30).await;
}

async fn narrow(address: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(NARROW).expect("sockets can");
    socket.connect(address).await.expect("connects")
}

/// The reply is with the kernel and the server has nothing more to say, long
/// before the reader has read it; and as HTTP/2 clients do, the reader says
/// meanwhile how much it has read.
async fn read_to_the_end(mut raw: Raw) {
    open_the_windows(&mut raw).await;
    let mut taken = 0;
    while taken < LARGE {
        let frame = raw.reader.find(|frame| frame.kind == DATA).await;
        let payload = frame.map(|frame| frame.payload).unwrap_or_default();
        assert!(!payload.is_empty(), "cut after {taken} of {LARGE} bytes");
        assert!(payload.iter().all(|byte| *byte == 7), "after {taken} bytes");
        taken += payload.len();
        raw.writer.widen(0, u32::try_from(payload.len()).expect("a frame")).await;
    }
    let end = raw.reader.find(|frame| frame.kind == HEADERS).await.expect("trailers");
    assert_eq!(end.flags & END_STREAM, END_STREAM);
    assert!(raw.reader.find(|_| false).await.is_none(), "then the connection closes");
}

#[tokio::test]
async fn a_slow_reader_gets_the_whole_tail_of_what_it_began() {
    let server = Server::start(limits()).await;
    let tcp = asked(narrow(server.address()).await, LARGE).await;
    let uds = UnixStream::connect(server.uds()).await.expect("connects");
    let uds = asked(uds, LARGE).await;
    let drain = tokio::spawn(server.drain(Duration::from_secs(60)));
    tokio::join!(read_to_the_end(tcp), read_to_the_end(uds));
    let report = drain.await.expect("drained");
    assert_eq!(report.aborted_connections, 0);
    assert!(report.took < Duration::from_secs(30), "{:?}", report.took);
}

#[tokio::test]
async fn who_never_reads_its_tail_does_not_outlast_the_deadline() {
    let server = Server::start(limits()).await;
    // Less than the kernels take: the server has written all of it.
    let mut raw = asked(narrow(server.address()).await, 256 << 10).await;
    let within = Duration::from_millis(300);
    let began = Instant::now();
    let metrics = server.metrics.clone();
    let drain = tokio::spawn(server.drain(within));
    open_the_windows(&mut raw).await;
    eventually("all is written", || metrics.requests_in_flight.get() == 0).await;
    assert!(!drain.is_finished(), "it has until the deadline");
    let report = drain.await.expect("drained");
    assert!(began.elapsed() <= within + GRACE, "{:?}", began.elapsed());
    assert!(began.elapsed() >= within, "it had until the deadline");
    assert_eq!(report.aborted_connections, 1);
}

#[tokio::test]
async fn who_has_read_all_and_stays_is_left_when_it_says_nothing() {
    let server = Server::start(impatient()).await;
    let mut raw = Raw::connect(server.address(), 65_535).await;
    raw.writer.request(1, &exact(1000), &[]).await;
    raw.reader.find(|frame| frame.kind == DATA).await.expect("a reply");
    let metrics = server.metrics.clone();
    let drain = tokio::spawn(server.drain(Duration::from_secs(60)));
    let ping = raw.reader.find(|frame| frame.kind == PING).await.expect("asked");
    raw.writer.frame(PING, 1, 0, &ping.payload).await;
    assert!(raw.reader.find(|_| false).await.is_none(), "the server has said all");
    let report = drain.await.expect("drained");
    assert_eq!(report.aborted_connections, 0);
    assert!(report.took < Duration::from_secs(10), "{:?}", report.took);
    let left =
        ConnectionLabels { listener: ListenerKind::Tcp, outcome: ConnectionOutcome::Stalled };
    assert_eq!(metrics.connection_outcomes.get_or_create(&left).get(), 1);
}

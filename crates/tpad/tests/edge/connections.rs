//! Connections: silent, strange, dead, too many.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tpad::config::Limits;
use tpad::edge::{ConnectionOutcome, ListenerKind};

use crate::raw::{ACK, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PATIENCE, PING, Raw};
use crate::server::{SILENT, Server, eventually, exact, limits};

/// What the peer sends until it closes.
async fn read_to_end(mut socket: impl AsyncReadExt + Unpin) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut bytes)).await;
    // A reset is an end like any other here.
    let _ = read.expect("the peer closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn silent_sockets_are_reaped() {
    let limits = Limits { preface_deadline: Duration::from_millis(100), ..limits() };
    let server = Server::start(limits).await;
    let silent = TcpStream::connect(server.address()).await.expect("connects");
    let mut half = TcpStream::connect(server.address()).await.expect("connects");
    half.write_all(b"PRI * HTTP/2.0\r\n").await.expect("written");
    let unix = UnixStream::connect(server.uds()).await.expect("connects");
    let http = TcpStream::connect(server.http_address()).await.expect("connects");
    let mut slow_http = TcpStream::connect(server.http_address()).await.expect("connects");
    slow_http.write_all(b"GET /page HTTP/1.1\r\nhost: x\r\n").await.expect("written");
    tokio::join!(
        read_to_end(silent),
        read_to_end(half),
        read_to_end(unix),
        read_to_end(http),
        read_to_end(slow_http)
    );
    let ended = |listener| server.ended(listener, ConnectionOutcome::NoPreface);
    eventually("counted", || ended(ListenerKind::Tcp) == 2 && ended(ListenerKind::Uds) == 1).await;
    eventually("http is free", || server.connections(ListenerKind::Http) == 0).await;
}

#[tokio::test]
async fn an_http_connection_that_rests_between_requests_is_reaped() {
    let limits = Limits { preface_deadline: Duration::from_millis(100), ..limits() };
    let server = Server::start(limits).await;
    let mut http = TcpStream::connect(server.http_address()).await.expect("connects");
    http.write_all(b"GET /page HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let answer = read_to_end(http).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("a page"), "{answer}");
}

#[tokio::test]
async fn a_peer_that_does_not_answer_pings_is_closed_and_one_that_does_is_kept() {
    let limits = Limits {
        keepalive_interval: Duration::from_millis(50),
        keepalive_timeout: Duration::from_millis(50),
        ..limits()
    };
    let server = Server::start(limits).await;
    let mut dead = Raw::connect(server.address(), 65_535).await;
    let mut alive = Raw::connect(server.address(), 65_535).await;
    alive.writer.request(1, SILENT, &[]).await;
    let answer = async {
        for _ in 0..5 {
            let ping = alive.reader.find(|frame| frame.kind == PING && frame.flags == 0).await;
            alive.writer.frame(PING, ACK, 0, &ping.expect("the connection stays").payload).await;
        }
    };
    let closed = async { while dead.reader.frame().await.is_some() {} };
    tokio::join!(answer, closed);
    eventually("one is left", || server.connections(ListenerKind::Tcp) == 1).await;
    assert_eq!(server.replies(), 1);
}

#[tokio::test]
async fn http1_on_the_grpc_port_is_told_where_to_go() {
    let server = Server::start(limits()).await;
    let mut socket = TcpStream::connect(server.address()).await.expect("connects");
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let answer = read_to_end(socket).await;
    assert!(answer.contains("listen.http"), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_and_closed() {
    let server = Server::start(Limits { connections: 2, http_connections: 1, ..limits() }).await;
    let mut first = Raw::connect(server.address(), 65_535).await;
    let _second = Raw::connect(server.address(), 65_535).await;
    eventually("both are in", || server.connections(ListenerKind::Tcp) == 2).await;
    let mut third = Raw::connect(server.address(), 65_535).await;
    let goaway = third.reader.find(|frame| frame.kind == GOAWAY).await.expect("told");
    assert_eq!(goaway.error_code(), ENHANCE_YOUR_CALM);
    assert!(String::from_utf8_lossy(&goaway.payload[8..]).contains("limits.connections"));
    assert!(third.reader.frame().await.is_none(), "and closed");
    // The others are served, and a place that falls free is taken again.
    first.writer.request(1, &exact(10), &[]).await;
    first.reader.find(|frame| frame.kind == HEADERS).await.expect("served");
    drop(first);
    eventually("a place is free", || server.connections(ListenerKind::Tcp) == 1).await;
    let mut fourth = Raw::connect(server.address(), 65_535).await;
    fourth.writer.request(1, &exact(10), &[]).await;
    fourth.reader.find(|frame| frame.kind == HEADERS).await.expect("served");

    let _http = TcpStream::connect(server.http_address()).await.expect("connects");
    eventually("it is in", || server.connections(ListenerKind::Http) == 1).await;
    let refused = TcpStream::connect(server.http_address()).await.expect("connects");
    assert!(read_to_end(refused).await.starts_with("HTTP/1.1 503"));
}

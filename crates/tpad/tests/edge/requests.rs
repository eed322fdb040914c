//! Requests: their deadlines, their number, their size.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic_types::StatusExt;
use tpad::config::{Deadlines, Limits};
use tpad::edge::{CutReason, RequestLabels};

use crate::raw::{CANCEL, PATIENCE, RST_STREAM, Raw};
use crate::server::{
    ENDLESS, HANG, SILENT, Server, WATCH, deadlines, eventually, exact, impatient, limits,
};

/// A well-behaved client's connection.
async fn connect(server: &Server) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(server.address()).await.expect("connects");
    let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    tokio::spawn(connection);
    client.ready().await.expect("ready")
}

fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("http://test{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

/// A whole reply: its headers, the length of its body, its trailers.
async fn reply(response: h2::client::ResponseFuture) -> (HeaderMap, usize, HeaderMap) {
    let read = async {
        let response: Response<h2::RecvStream> = response.await.expect("a response");
        let (parts, mut body) = response.into_parts();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data.expect("data");
            length += data.len();
            body.flow_control().release_capacity(data.len()).expect("released");
        }
        let trailers = body.trailers().await.expect("an end").unwrap_or_default();
        (parts.headers, length, trailers)
    };
    tokio::time::timeout(PATIENCE, read).await.expect("in time")
}

async fn ask(
    client: &mut SendRequest<Bytes>,
    path: &str,
    headers: &[(&str, &str)],
) -> (HeaderMap, usize, HeaderMap) {
    let (response, _) = client.send_request(request(path, headers), true).expect("sent");
    reply(response).await
}

fn status(headers: &HeaderMap) -> tonic::Status {
    tonic::Status::from_header_map(headers).expect("a status")
}

#[tokio::test]
async fn grpc_timeout_ends_a_reply_that_has_begun() {
    let server = Server::start(limits()).await;
    let mut client = connect(&server).await;
    let began = Instant::now();
    let (headers, _, trailers) = ask(&mut client, SILENT, &[("grpc-timeout", "100m")]).await;
    assert!(headers.get("grpc-status").is_none(), "the reply had begun");
    assert_eq!(status(&trailers).code(), tonic::Code::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    eventually("the reply is dropped", || server.replies() == 0).await;
}

#[tokio::test]
async fn grpc_timeout_ends_a_reply_that_never_begins() {
    let server = Server::start(limits()).await;
    let mut client = connect(&server).await;
    let (headers, _, _) = ask(&mut client, HANG, &[("grpc-timeout", "100m")]).await;
    assert_eq!(status(&headers).code(), tonic::Code::DeadlineExceeded);
    let (headers, _, _) = ask(&mut client, HANG, &[("grpc-timeout", "soon")]).await;
    assert_eq!(status(&headers).code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn grpc_timeout_ends_a_reply_that_nobody_reads() {
    let server = Server::start(limits()).await;
    let mut raw = Raw::connect(server.address(), 0).await;
    raw.writer.request(1, ENDLESS, &[("grpc-timeout", "100m")]).await;
    let reset = raw.reader.find(|frame| frame.kind == RST_STREAM).await.expect("a reset");
    assert_eq!(reset.error_code(), CANCEL);
    assert_eq!(server.cut(CutReason::Deadline), 1);
    eventually("all is released", || server.in_flight_bytes() == 0 && server.replies() == 0).await;
}

#[tokio::test]
async fn the_configurations_deadlines_hold_where_the_client_names_none_or_too_much() {
    let short = Duration::from_millis(100);
    let server = Server::start_with(limits(), Deadlines { default: short, ..deadlines() }).await;
    let mut client = connect(&server).await;
    let (_, _, trailers) = ask(&mut client, SILENT, &[]).await;
    assert_eq!(status(&trailers).code(), tonic::Code::DeadlineExceeded);

    let server = Server::start_with(limits(), Deadlines { default: short, max: short }).await;
    let mut client = connect(&server).await;
    let (_, _, trailers) = ask(&mut client, SILENT, &[("grpc-timeout", "9H")]).await;
    assert_eq!(status(&trailers).code(), tonic::Code::DeadlineExceeded);

    // A watch has no end by nature: only its own timeout ends it.
    let (watch, _) = client.send_request(request(WATCH, &[]), true).expect("sent");
    let (_, _, trailers) = ask(&mut client, WATCH, &[("grpc-timeout", "300m")]).await;
    assert_eq!(status(&trailers).code(), tonic::Code::DeadlineExceeded);
    let mut body = watch.await.expect("a response").into_body();
    assert!(futures::poll!(Box::pin(body.data())).is_pending(), "it outlived both deadlines");
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_early_with_the_time_to_wait() {
    let server = Server::start(Limits { requests: 2, ..limits() }).await;
    let mut client = connect(&server).await;
    let (first, _) = client.send_request(request(SILENT, &[]), true).expect("sent");
    let (_second, _) = client.send_request(request(SILENT, &[]), true).expect("sent");
    let first = first.await.expect("a response");
    eventually("both are in", || server.replies() == 2).await;

    let (headers, length, _) = ask(&mut client, &exact(10), &[("x-request-id", "r-1")]).await;
    assert_eq!(length, 0, "headers only");
    assert_eq!(headers["x-request-id"], "r-1");
    assert_eq!(headers["grpc-retry-pushback-ms"], "500");
    let refusal = status(&headers);
    assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
    assert!(refusal.message().contains("limits.requests"), "{}", refusal.message());
    let details = refusal.get_error_details();
    let wait = details.retry_info().and_then(|info| info.retry_delay);
    assert_eq!(wait, Some(Duration::from_millis(500)));
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("tpad", "TOO_MANY_REQUESTS"));
    assert_eq!(info.metadata["request_id"], "r-1");

    drop(first);
    eventually("a place is free", || server.replies() == 1).await;
    let (_, length, trailers) = ask(&mut client, &exact(10), &[]).await;
    assert_eq!((length, status(&trailers).code()), (10, tonic::Code::Ok));
    let label = |code| RequestLabels { method: "unknown".to_owned(), code };
    assert_eq!(server.metrics.requests.get_or_create(&label("OK")).get(), 1);
    assert_eq!(server.metrics.requests.get_or_create(&label("RESOURCE_EXHAUSTED")).get(), 1);
    assert_eq!(server.metrics.requests.get_or_create(&label("CANCELLED")).get(), 1);
    assert_eq!(server.metrics.requests_in_flight.get(), 1);
}

#[tokio::test]
async fn a_bound_of_bytes_that_nobody_takes_refuses_new_requests() {
    let server = Server::start(Limits { in_flight_bytes: 2 << 20, ..limits() }).await;
    let socket = TcpStream::connect(server.address()).await.expect("connects");
    let handshake = h2::client::Builder::new().initial_window_size(0).handshake(socket).await;
    let (mut idle, connection) = handshake.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(idle.send_request(request(ENDLESS, &[]), true).expect("sent"));
    }
    // Half of it is one peer's, which has the other half to leave free.
    eventually("the bound is reached", || server.in_flight_bytes() >= 1 << 20).await;
    let deadline = Instant::now() + PATIENCE;
    let refusal = loop {
        // Until the bound has held for a second requests are admitted, and wait.
        let (headers, _, trailers) = ask(&mut idle, &exact(10), &[("grpc-timeout", "200m")]).await;
        let status = status(if trailers.is_empty() { &headers } else { &trailers });
        if status.code() == tonic::Code::ResourceExhausted {
            break status;
        }
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(Instant::now() < deadline, "never refused");
    };
    assert!(refusal.message().contains("limits.in_flight_bytes"), "{}", refusal.message());
    connection.abort();
    drop(unread);
    eventually("all is released", || server.in_flight_bytes() == 0).await;
    let mut client = connect(&server).await;
    let (_, length, _) = ask(&mut client, &exact(10), &[]).await;
    assert_eq!(length, 10);
}

#[tokio::test]
async fn a_request_that_is_too_large_or_never_complete_is_refused() {
    let server = Server::start(Limits { request_bytes: 100_000, ..impatient() }).await;
    let mut client = connect(&server).await;
    let echo = "/tpad.test.Replies/Echo";

    let (response, mut body) = client.send_request(request(echo, &[]), false).expect("sent");
    body.send_data(Bytes::from(vec![0; 60_000]), true).expect("sent");
    assert_eq!(reply(response).await.1, 60_000);

    let (response, mut body) = client.send_request(request(echo, &[]), false).expect("sent");
    body.send_data(Bytes::from(vec![0; 100_001]), true).expect("sent");
    let refusal = status(&reply(response).await.0);
    assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
    assert!(refusal.message().contains("limits.request_bytes"), "{}", refusal.message());

    // Its announced length is enough for a service of tonic's own to refuse it.
    let check = "/grpc.health.v1.Health/Check";
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let (response, mut body) = client.send_request(request(check, &grpc), false).expect("sent");
    body.send_data(Bytes::from_static(b"\0\0\x01\x86\xa1"), false).expect("sent");
    let refusal = status(&reply(response).await.0);
    assert_eq!(refusal.code(), tonic::Code::ResourceExhausted, "{refusal:?}");
    let info = refusal.get_details_error_info().expect("it has one");
    assert_eq!(info.reason, "REQUEST_TOO_LARGE");
    assert!(info.metadata.contains_key("request_id"));

    let (response, _body) = client.send_request(request(echo, &[]), false).expect("sent");
    let refusal = status(&reply(response).await.0);
    assert_eq!(refusal.code(), tonic::Code::DeadlineExceeded);
    assert!(refusal.message().contains("limits.progress_deadline"), "{}", refusal.message());
    eventually("all is released", || server.in_flight_bytes() == 0).await;
}

#[tokio::test]
async fn requests_that_never_end_hold_no_more_than_their_part_and_stop_no_small_one() {
    const LIMIT: u64 = 2 << 20;
    let limits = Limits { in_flight_bytes: LIMIT, request_bytes: 1 << 20, ..limits() };
    let server = Server::start(limits).await;
    let echo = "/tpad.test.Replies/Echo";
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let mut open = Vec::new();
    for path in [echo, "/grpc.health.v1.Health/Check"] {
        for _ in 0..2 {
            let mut client = connect(&server).await;
            for _ in 0..20 {
                client = client.ready().await.expect("ready");
                let (response, mut body) =
                    client.send_request(request(path, &grpc), false).expect("sent");
                // Less than a message announced by its first bytes.
                let mut most = vec![0; 500_000];
                most[..5].copy_from_slice(&[0, 0, 0x0f, 0xff, 0xff]);
                body.send_data(most.into(), false).expect("sent");
                open.push((response, body));
            }
        }
    }
    let refused = RequestLabels { method: "unknown".to_owned(), code: "RESOURCE_EXHAUSTED" };
    let refused = server.metrics.requests.get_or_create_owned(&refused);
    eventually("what is too much is refused", || refused.get() > 0).await;
    // Each may have brought its small part, and a frame more, before it was refused.
    let most = i64::try_from(LIMIT / 2).expect("small") + 80 * (32 << 10);

    let mut client = connect(&server).await;
    // Longer than what counts as saturation.
    let deadline = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < deadline {
        let (headers, length, _) = ask(&mut client, &exact(10), &[]).await;
        assert_eq!(length, 10, "{headers:?}");
        assert!(server.in_flight_bytes() <= most, "{}", server.in_flight_bytes());
    }
    drop(open);
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let server = Server::start(Limits { header_bytes: 2048, ..limits() }).await;
    let mut client = connect(&server).await;
    let long = "x".repeat(4096);
    let (response, _) =
        client.send_request(request(&exact(1), &[("x-long", &long)]), true).expect("sent");
    let status = match tokio::time::timeout(PATIENCE, response).await.expect("in time") {
        Ok(response) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(status, 431);
    let (_, length, _) = ask(&mut client, &exact(10), &[]).await;
    assert_eq!(length, 10, "the connection goes on");
}

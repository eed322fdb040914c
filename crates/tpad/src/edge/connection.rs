//! One connection, from its first byte to its end.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::server::conn::http1;
use hyper::server::conn::http2::Connection;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::gateway::{ConnectionService, Gateway};
use super::io::{Socket, WatchedIo};
use super::line::Place;
use super::metrics::{ConnectionOutcome, CutLabel, CutReason};
use super::peer::Peer;
use super::stall::Stall;
use super::streams::{Rounds, StreamExecutor, Streams};
use super::tails::Tails;
use super::turn::Turn;
use super::window::Window;
use crate::config::Limits;

/// What every HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// For a browser or a scraper that took the wrong port.
const NOT_HTTP2: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\nconnection: close\r\ncontent-length: 93\r\n\r\n\
    this port speaks gRPC (HTTP/2) only; /livez, /readyz, /metrics and /status are on listen.http";

/// Requests are small: what a client may send before it is read. The windows that
/// make replies fast are the client's to announce.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Likewise the frames that a client may send: HTTP/2's least, since each
/// connection can hold one that is incomplete.
const RECEIVED_FRAME_BYTES: u32 = 16 << 10;
/// What HTTP/2 holds of a stream's reply beyond the last piece: one piece. A
/// quarter and four times of 1 MiB read alike.
const SEND_BUFFER_BYTES: usize = 2 << 20;
/// Streams that a client reset before they were served (rapid reset): HTTP/2's own default.
const PENDING_RESETS: usize = 20;
/// Streams that the server reset for the client's mistakes, over a connection's life.
/// An honest client makes one kind: before it has read how many streams it may
/// open it opens as many as it assumes, and those are at most 100 in the
/// libraries we know.
const ERROR_RESETS: usize = 256;
/// HPACK's default.
const HEADER_TABLE_BYTES: u32 = 4096;

/// When a connection is to end.
#[derive(Clone, Debug)]
pub(super) struct Closing {
    /// Finish what has begun.
    pub(super) drain: CancellationToken,
    /// End now.
    pub(super) abort: CancellationToken,
}

/// Serves gRPC on `socket`, which has a `place` in the line of its thread, until either side
/// ends it. All of its streams are over on return.
pub(super) async fn serve_grpc(
    mut socket: Socket,
    peer: Peer,
    gateway: Arc<Gateway>,
    closing: Closing,
    place: Option<Place>,
) -> ConnectionOutcome {
    let limits = gateway.limits;
    let preface = tokio::time::timeout(limits.preface_deadline, read_preface(&mut socket));
    let greeted = tokio::select! {
        greeted = preface => matches!(greeted, Ok(true)),
        () = closing.drain.cancelled() => return ConnectionOutcome::Closed,
    };
    if !greeted {
        return ConnectionOutcome::NoPreface;
    }
    let (window, tails) = (Window::new(), Arc::new(Tails::default()));
    let metrics = gateway.metrics.clone();
    let mut streams =
        Streams::new(limits.progress_deadline, window.clone(), Arc::clone(&tails), metrics.clone());
    let stall = Arc::new(Stall::new());
    let service = ConnectionService::new(gateway, peer);
    let turn = Arc::new(Turn::new(service.share(), place));
    let io = WatchedIo::new(socket, PREFACE, Arc::clone(&stall)).greeted(window);
    let io = io.in_turn(Arc::clone(&turn)).lingering(closing.drain.clone());
    let stalled = async {
        tokio::select! {
            () = stall.exceeds(limits.progress_deadline) => {}
            () = tails.stall(limits.progress_deadline) => {
                let reason = CutReason::Stalled;
                metrics.streams_cut.get_or_create(&CutLabel { reason }).inc();
                tracing::debug!("connection cut: its client does not take a reply's rest");
            }
        }
    };
    let connection = http2(&limits, streams.executor()).serve_connection(TokioIo::new(io), service);
    let rounds = Rounds::new();
    let poll = |connection: Pin<&mut _>, cx: &mut Context<'_>| {
        rounds.poll(connection, &mut streams, &turn, cx)
    };
    let shut = |c: Pin<&mut _>| Connection::graceful_shutdown(c);
    drive(connection, poll, shut, stalled, closing).await
}

/// Serves read-only HTTP/1 on `socket`.
pub(super) async fn serve_http<S>(
    socket: Socket,
    service: S,
    limits: Limits,
    closing: Closing,
) -> ConnectionOutcome
where
    S: Service<http::Request<hyper::body::Incoming>, Response = axum::response::Response> + Clone,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stall = Arc::new(Stall::new());
    let io = TokioIo::new(WatchedIo::new(socket, &[], Arc::clone(&stall)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.preface_deadline)
        // The least that hyper accepts; a request's head has to fit.
        .max_buf_size((limits.header_bytes as usize).max(8192))
        .serve_connection(io, service);
    let shut = |c: Pin<&mut _>| http1::Connection::graceful_shutdown(c);
    let stalled = stall.exceeds(limits.progress_deadline);
    drive(connection, Future::poll, shut, stalled, closing).await
}

fn http2(
    limits: &Limits,
    streams: StreamExecutor,
) -> hyper::server::conn::http2::Builder<StreamExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        // gRPC has no use for it.
        .auto_date_header(false)
        .max_concurrent_streams(limits.streams_per_connection)
        .max_local_error_reset_streams(ERROR_RESETS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_header_list_size(limits.header_bytes)
        .header_table_size(HEADER_TABLE_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .adaptive_window(false)
        .max_frame_size(RECEIVED_FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

/// Brings a connection to its end by `poll`, until it is `stalled`, or to the daemon's end.
async fn drive<C>(
    connection: C,
    mut poll: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<C::Output>,
    graceful_shutdown: impl Fn(Pin<&mut C>),
    stalled: impl Future<Output = ()>,
    closing: Closing,
) -> ConnectionOutcome
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = std::pin::pin!(connection);
    let mut stalled = std::pin::pin!(stalled);
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            () = closing.abort.cancelled() => return ConnectionOutcome::Aborted,
            // Before its streams hear of it: who is told to go is first told not to come back.
            () = closing.drain.cancelled(), if !draining => {
                draining = true;
                graceful_shutdown(connection.as_mut());
            }
            ended = poll_fn(|cx| poll(connection.as_mut(), cx)) => {
                return match ended {
                    Ok(()) => ConnectionOutcome::Closed,
                    Err(error) => {
                        tracing::debug!(error = %Chain(&error), "connection failed");
                        ConnectionOutcome::Failed
                    }
                };
            }
            // The connection may have used up the task's budget.
            () = tokio::task::unconstrained(stalled.as_mut()) => return ConnectionOutcome::Stalled,
        }
    }
}

/// Whether the peer begins as HTTP/2 does. One that begins otherwise is told so at its first wrong byte.
async fn read_preface(socket: &mut Socket) -> bool {
    let mut read = [0u8; PREFACE.len()];
    let mut filled = 0;
    while filled < read.len() {
        let count = match socket.read(&mut read[filled..]).await {
            Ok(0) | Err(_) => return false,
            Ok(count) => count,
        };
        filled += count;
        if read[..filled] != PREFACE[..filled] {
            // Told within the deadline around this call; whether it arrives is the peer's affair.
            if socket.write_all(NOT_HTTP2).await.is_ok() {
                let _ = socket.shutdown().await;
            }
            return false;
        }
    }
    true
}

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::NOT_HTTP2;

    #[test]
    fn the_hint_for_the_wrong_port_has_its_own_length() {
        let text = std::str::from_utf8(NOT_HTTP2).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}

//! The bulk receiver: fetches over connections of their own, whose HTTP/2 frames are
//! read here, so that payload goes from the socket straight into its place.
//!
//! hyper copies what it receives into buffers of its own, which costs as much
//! as the kernel's copy and takes fresh memory for each frame (docs/performance.md).
//! Here whoever made a call reads its socket: no task in between, no queue, and
//! a caller that does not read holds back the daemon by TCP alone.

mod call;
mod connection;
mod flow;
mod frame;
mod header;
mod idle;
mod io;
mod low_water;
mod session;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;

use self::call::{AUTHORITY_BYTES, CallState, Request};
use self::connection::{Connection, ConnectionError};
use self::idle::IdleConnections;
use self::io::Layered;
pub(crate) use self::io::Socket;
use crate::receive::ReplyBytes;
use crate::tls::Tls;
use crate::{Address, Error};

/// The connections to one daemon.
#[derive(Debug)]
pub(crate) struct Bulk {
    address: Address,
    authority: String,
    tls: Option<Tls>,
    connect_timeout: Duration,
    patience: Duration,
    /// Connections in use, each by one call.
    places: Arc<Semaphore>,
    idle: IdleConnections,
}

/// One call's reply.
pub(crate) struct BulkReply {
    /// There until the reply is dropped.
    connection: Option<Connection>,
    bulk: Arc<Bulk>,
    _place: Place,
}

/// Why a call has no reply.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// There is no connection for it, or it ended before the reply began.
    Connection,
    /// The daemon's word, or what is wrong with it.
    Status(Status),
}

/// Room for one call; given back when all that hold it are gone.
#[derive(Clone, Debug)]
pub(crate) struct Place(
    #[expect(dead_code, reason = "held until it is dropped")] Arc<OwnedSemaphorePermit>,
);

impl Bulk {
    /// Connects when the first call is made. `patience` is how long a daemon may
    /// be silent before it is asked whether it is there.
    pub(crate) fn new(
        address: &Address,
        tls: Option<Tls>,
        connections: usize,
        connect_timeout: Duration,
        patience: Duration,
    ) -> Result<Self, Error> {
        let authority = address.authority().unwrap_or("localhost").to_owned();
        if authority.len() > AUTHORITY_BYTES {
            let reason = format!("its host has more than {AUTHORITY_BYTES} bytes");
            return Err(Error::Address { address: address.to_string(), reason });
        }
        Ok(Self {
            address: address.clone(),
            authority,
            tls,
            connect_timeout,
            patience,
            places: Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS))),
            idle: IdleConnections::default(),
        })
    }

    /// Room for one more call, if there is any. Nobody waits for it: who holds the others may
    /// be the one who asks.
    pub(crate) fn place(&self) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place(Arc::new(place)))
    }

    /// Makes a call of a method that takes one message, `message` with its
    /// prefix, and waits until its reply begins.
    pub(crate) async fn call(
        self: &Arc<Self>,
        place: Place,
        path: &'static str,
        message: Bytes,
        timeout: Option<Duration>,
    ) -> Result<BulkReply, Unanswered> {
        let since = Instant::now();
        loop {
            let idle = self.idle.take();
            let reused = idle.is_some();
            let connection = match idle {
                Some(connection) => connection,
                None => Connection::new(
                    self.connect().await.map_err(|_| Unanswered::Connection)?,
                    self.patience,
                ),
            };
            let left = timeout.map(|timeout| timeout.saturating_sub(since.elapsed()));
            let mut reply = self.begin(connection, &place, path, message.clone(), left);
            match reply.head().await {
                Ok(()) => return reply.begun().map_err(Unanswered::Status),
                // It was closed while it was idle, or the call crossed the daemon's word that
                // it takes no more there. If the call was looked at: reading twice changes
                // nothing.
                Err(_) if reused => {}
                Err(error @ ConnectionError::Broken(_)) => {
                    return Err(Unanswered::Status(status_of(error)));
                }
                Err(_) => return Err(Unanswered::Connection),
            }
        }
    }

    /// The same over a socket that is already there.
    pub(crate) async fn call_over(
        self: &Arc<Self>,
        place: Place,
        socket: Box<dyn Socket>,
        path: &'static str,
        message: Bytes,
    ) -> Result<BulkReply, Status> {
        let connection = Connection::new(socket, self.patience);
        let mut reply = self.begin(connection, &place, path, message, None);
        reply.head().await.map_err(status_of)?;
        reply.begun()
    }

    fn begin(
        self: &Arc<Self>,
        mut connection: Connection,
        place: &Place,
        path: &'static str,
        body: Bytes,
        timeout: Option<Duration>,
    ) -> BulkReply {
        connection.begin();
        connection.session.start(Request {
            secure: self.tls.is_some(),
            authority: self.authority.clone(),
            path,
            timeout: timeout.map(grpc_timeout),
            body,
        });
        let (connection, bulk) = (Some(connection), Arc::clone(self));
        BulkReply { connection, bulk, _place: place.clone() }
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Socket>> {
        let connecting = async {
            Ok(match &self.address {
                Address::Unix(path) => {
                    Box::new(UnixStream::connect(path).await?) as Box<dyn Socket>
                }
                Address::Http(_) | Address::Https(_) => {
                    let socket = TcpStream::connect(&*self.authority).await?;
                    // What we write is small and waited for.
                    socket.set_nodelay(true)?;
                    match &self.tls {
                        None => Box::new(socket) as Box<dyn Socket>,
                        Some(tls) => {
                            let stream = tls.connector().connect(tls.name(), socket).await?;
                            Box::new(Layered::over(stream))
                        }
                    }
                }
            })
        };
        let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
        let timed_out = std::io::Error::from(std::io::ErrorKind::TimedOut);
        connected.unwrap_or(Err(timed_out))
    }
}

impl BulkReply {
    /// Waits for the reply's head.
    async fn head(&mut self) -> Result<(), ConnectionError> {
        poll_fn(|cx| match &mut self.connection {
            Some(connection) => connection.poll_head(cx),
            None => Poll::Ready(Err(ConnectionError::Closed)),
        })
        .await
    }

    /// The reply, unless its head is its end or none of gRPC's.
    fn begun(self) -> Result<Self, Status> {
        let call = self.connection.as_ref().and_then(|connection| connection.session.call.as_ref());
        let Some(call) = call else { return Err(Status::internal("the call is gone")) };
        if let Some(refused) = call.refused() {
            return Err(refused);
        }
        if call.ended {
            let status = call.status();
            if status.code() != tonic::Code::Ok {
                return Err(status);
            }
        }
        Ok(self)
    }
}

impl ReplyBytes for BulkReply {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, Status>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(0)) };
        let read = std::task::ready!(connection.poll_read(cx, into));
        Poll::Ready(read.map_err(status_of))
    }

    fn status(&mut self) -> Status {
        let call = self.connection.as_ref().and_then(|connection| connection.session.call.as_ref());
        call.map_or_else(|| Status::internal("the call is gone"), CallState::status)
    }
}

impl Drop for BulkReply {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if connection.is_free() {
            self.bulk.idle.keep(connection);
        } else {
            connection.leave();
        }
    }
}

/// What a connection's end means for its call. A daemon that breaks the protocol would do so
/// again: that is none of the breaks after which a stream goes on.
fn status_of(error: ConnectionError) -> Status {
    match error {
        ConnectionError::Broken(_) => Status::internal(error.to_string()),
        error => Status::from_error(Box::new(error)),
    }
}

/// A timeout as `grpc-timeout` says it: up to eight digits and a unit.
pub(crate) fn grpc_timeout(timeout: Duration) -> String {
    const MOST: u128 = 99_999_999;
    [(timeout.as_micros(), 'u'), (timeout.as_millis(), 'm')]
        .into_iter()
        .find(|(count, _)| *count <= MOST)
        .map_or_else(
            || format!("{}S", u128::from(timeout.as_secs()).min(MOST)),
            |(count, unit)| format!("{count}{unit}"),
        )
}

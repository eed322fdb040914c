//! A client that costs next to nothing: it reads the heads of HTTP/2 frames and
//! lets the kernel drop what is in them. What a measurement then counts is the
//! daemon's.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpSocket, TcpStream};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// HTTP/2's largest window: a stream's reply is shorter.
const WINDOW_BYTES: u32 = (1 << 31) - 1;

/// The connection's window is widened by what was taken when it is this much.
const WIDEN_BYTES: u32 = 512 << 20;

/// What our own clients ask for.
pub const FRAME_BYTES: u32 = 1 << 20;

/// One connection.
#[derive(Debug)]
pub struct Reader {
    socket: TcpStream,
    /// Never written: the kernel takes its length alone.
    scrap: Vec<u8>,
    stream: u32,
    taken: u32,
}

/// The end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub stream: u32,
    /// Whether the daemon cut it.
    pub reset: bool,
}

impl Reader {
    /// Connects, from an address of its own if it is to be a peer of its own, and
    /// asks for frames of `frame_bytes` and windows without end.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn connect(
        to: SocketAddr,
        from: Option<Ipv4Addr>,
        frame_bytes: u32,
    ) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = from {
            socket.bind(SocketAddr::from((from, 0)))?;
        }
        let socket = socket.connect(to).await?;
        socket.set_nodelay(true)?;
        let scrap = vec![0; frame_bytes as usize];
        let mut reader = Self { socket, scrap, stream: 1, taken: 0 };
        reader.socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let settings = [(4u16, WINDOW_BYTES), (5, frame_bytes)];
        let settings = settings.map(|(id, value)| {
            let [a, b] = id.to_be_bytes();
            let [c, d, e, f] = value.to_be_bytes();
            [a, b, c, d, e, f]
        });
        reader.frame(SETTINGS, 0, 0, settings.as_flattened()).await?;
        // It begins at 65,535.
        reader.frame(WINDOW_UPDATE, 0, 0, &(WINDOW_BYTES - 65_535).to_be_bytes()).await?;
        Ok(reader)
    }

    /// Asks for a reply; its stream.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn ask(&mut self, path: &str, message: &[u8]) -> io::Result<u32> {
        let stream = self.stream;
        self.stream += 2;
        self.frame(HEADERS, END_HEADERS, stream, &head(path)).await?;
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        let body = [&[0], &length.to_be_bytes()[..], message].concat();
        self.frame(DATA, END_STREAM, stream, &body).await?;
        Ok(stream)
    }

    /// Takes what comes until a stream ends; payloads are counted in `taken`.
    ///
    /// # Errors
    /// When the connection ends.
    pub async fn take(&mut self, taken: &AtomicU64) -> io::Result<Ended> {
        loop {
            let mut head = [0u8; 9];
            self.socket.read_exact(&mut head).await?;
            let [a, b, c, kind, flags, s, t, u, v] = head;
            let length = u32::from_be_bytes([0, a, b, c]);
            let stream = u32::from_be_bytes([s, t, u, v]) & WINDOW_BYTES;
            if kind == DATA {
                self.drop_bytes(length, taken).await?;
                self.widen(length).await?;
            } else {
                let mut payload = vec![0; length as usize];
                self.socket.read_exact(&mut payload).await?;
                match kind {
                    SETTINGS | PING if flags & ACK == 0 => {
                        let echo = if kind == PING { &payload[..] } else { &[] };
                        self.frame(kind, ACK, 0, echo).await?;
                    }
                    RST_STREAM => return Ok(Ended { stream, reset: true }),
                    GOAWAY => return Err(io::ErrorKind::ConnectionAborted.into()),
                    _ => {}
                }
            }
            if kind <= HEADERS && flags & END_STREAM != 0 {
                return Ok(Ended { stream, reset: false });
            }
        }
    }

    async fn drop_bytes(&mut self, length: u32, taken: &AtomicU64) -> io::Result<()> {
        let mut left = length as usize;
        while left > 0 {
            self.socket.readable().await?;
            let (socket, scrap) = (&self.socket, &mut self.scrap[..left]);
            let dropped = socket.try_io(Interest::READABLE, || {
                Ok(rustix::net::recv(socket, scrap, RecvFlags::TRUNC)?.1)
            });
            match dropped {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(dropped) => {
                    left -= dropped;
                    taken.fetch_add(dropped as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn widen(&mut self, taken: u32) -> io::Result<()> {
        self.taken += taken;
        if self.taken >= WIDEN_BYTES {
            let taken = std::mem::take(&mut self.taken);
            self.frame(WINDOW_UPDATE, 0, 0, &taken.to_be_bytes()).await?;
        }
        Ok(())
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let [_, a, b, c] = u32::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.socket.write_all(&frame).await
    }
}

/// A gRPC request's header block in HPACK's plainest form: literals without indexing.
fn head(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "tpad"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // Short enough for one length byte.
            block.push(u8::try_from(text.len()).unwrap_or(u8::MAX) & 0x7f);
            block.extend(text.as_bytes());
        }
    }
    block
}

//! A client that speaks HTTP/2 frames by hand, so that it can do what no library does.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// No wait in these tests is longer than this; none that succeeds comes near it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_FRAME_SIZE: u16 = 5;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// A connection in frames.
pub(crate) struct Raw {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

pub(crate) struct Reader(Box<dyn AsyncRead + Send + Unpin>);

pub(crate) struct Writer(Box<dyn AsyncWrite + Send + Unpin>);

/// A frame as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Raw {
    /// Connects and says the preface; `window` is every stream's initial window.
    pub(crate) async fn connect(address: SocketAddr, window: u32) -> Self {
        Self::over(TcpStream::connect(address).await.expect("connects"), window).await
    }

    /// The same over a socket of any kind.
    pub(crate) async fn over(
        socket: impl AsyncRead + AsyncWrite + Send + 'static,
        window: u32,
    ) -> Self {
        Self::with(socket, &[(INITIAL_WINDOW_SIZE, window)]).await
    }

    /// The same with any settings.
    pub(crate) async fn with(
        socket: impl AsyncRead + AsyncWrite + Send + 'static,
        settings: &[(u16, u32)],
    ) -> Self {
        let (reader, writer) = tokio::io::split(socket);
        let mut raw = Self { reader: Reader(Box::new(reader)), writer: Writer(Box::new(writer)) };
        raw.writer.bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let settings = settings
            .iter()
            .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()));
        raw.writer.frame(SETTINGS, 0, 0, &settings.collect::<Vec<u8>>()).await;
        raw
    }
}

impl Writer {
    pub(crate) async fn bytes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("written");
    }

    /// Writes a frame; false when the peer is gone.
    pub(crate) async fn try_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> bool {
        let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.is_ok()
    }

    pub(crate) async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        assert!(self.try_frame(kind, flags, stream, payload).await, "the peer is gone");
    }

    /// Opens a stream with a gRPC request's headers.
    pub(crate) async fn request(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) {
        self.frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(path, more)).await;
    }

    /// Adds to a stream's window, or with stream 0 to the connection's.
    pub(crate) async fn widen(&mut self, stream: u32, bytes: u32) {
        assert!(self.try_widen(stream, bytes).await, "the peer is gone");
    }

    /// The same; false when the peer is gone.
    pub(crate) async fn try_widen(&mut self, stream: u32, bytes: u32) -> bool {
        self.try_frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await
    }
}

impl Reader {
    /// The next frame; `None` when the connection has ended.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("a frame or the end in time")
    }

    /// How much there was to read, up to the buffer; the bytes are nobody's.
    pub(crate) async fn some(&mut self, buffer: &mut [u8]) -> usize {
        let read = tokio::time::timeout(PATIENCE, self.0.read(buffer)).await;
        read.expect("bytes or the end in time").expect("read")
    }

    /// The next frame that `wanted` accepts; `None` when the connection ends first.
    pub(crate) async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0u8; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }
}

impl Frame {
    /// The error code of a RST_STREAM or a GOAWAY.
    pub(crate) fn error_code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }
}

/// A header block in HPACK's plainest form: literals without indexing.
/// The header block of a gRPC request.
pub(crate) fn headers(path: &str) -> Vec<u8> {
    block(path, &[])
}

fn block(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let fixed = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "test"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fixed.iter().chain(more) {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one length byte");
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend(text.as_bytes());
        }
    }
    block
}

//! A small HTTP server that answers ranges, rightly or not.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the server does with a range that it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers it.
    Honest,
    /// Sends so many bytes less, and says in every header that they are all.
    Fewer(u64),
    /// Sends so many bytes more, likewise.
    More(u64),
    /// Sends the right number of bytes, one of them wrong.
    Flipped,
    /// Says how many bytes come, sends half of them and closes.
    Torn,
    /// Is torn so often, then is honest.
    Mends(u64),
    /// Sends another range than it was asked for, and says so.
    Elsewhere,
    /// Ignores the range and sends all.
    Whole,
    /// Answers everything with this status.
    Status(u16),
    /// Sends the headers and then nothing.
    Silent,
    /// Fails so often with 503, then is honest.
    Recovers(u64),
}

/// A running server; it stops when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

struct Shared {
    path: String,
    content: Vec<u8>,
    manner: Manner,
    requests: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Server {
    pub(crate) async fn honest(path: &str, content: &[u8]) -> Self {
        Self::start(path, content, Manner::Honest).await
    }

    /// Serves one object at `path`.
    pub(crate) async fn start(path: &str, content: &[u8], manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (requests, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let shared = Arc::new(Shared {
            path: format!("/{path}"),
            content: content.to_vec(),
            manner,
            requests: Arc::clone(&requests),
            sent: Arc::clone(&sent),
        });
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    // A client may leave at any time.
                    let _ = shared.serve(stream).await;
                });
            }
        });
        Self { address, requests, sent, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// GET requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Bytes of ranges so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).await? == 0 {
                    return Ok(());
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let mut words = head.split_whitespace();
            let (method, path) = (words.next(), words.next());
            let size = self.content.len() as u64;
            if let Manner::Status(status) = self.manner {
                self.requests.fetch_add(u64::from(method == Some("get")), Ordering::SeqCst);
                let head = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                continue;
            }
            if path != Some(&*self.path) {
                stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?;
                continue;
            }
            if method == Some("head") {
                stream.write_all(head_of(200, None, size, size).as_bytes()).await?;
                continue;
            }
            let served = self.requests.fetch_add(1, Ordering::SeqCst);
            let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
            let range = range.and_then(|range| {
                let (first, last) = range.split_once('-')?;
                Some(first.trim().parse().ok()?..last.trim().parse::<u64>().ok()? + 1)
            });
            let Some(Range { start, end }) = range else {
                stream.write_all(head_of(200, None, size, size).as_bytes()).await?;
                stream.write_all(&self.content).await?;
                continue;
            };
            if start >= size {
                stream.write_all(b"HTTP/1.1 416 No\r\ncontent-length: 0\r\n\r\n").await?;
                continue;
            }
            self.answer(&mut stream, start..end.min(size), served).await?;
        }
    }

    async fn answer(
        &self,
        stream: &mut TcpStream,
        range: Range<u64>,
        served: u64,
    ) -> std::io::Result<()> {
        let size = self.content.len() as u64;
        let mut body = self.content[range.start as usize..range.end as usize].to_vec();
        let mut claimed = range.clone();
        match self.manner {
            Manner::Fewer(bytes) => body.truncate(body.len().saturating_sub(bytes as usize)),
            Manner::More(bytes) => body.resize(body.len() + bytes as usize, 7),
            Manner::Flipped => {
                if let Some(byte) = body.last_mut() {
                    *byte ^= 1;
                }
            }
            Manner::Elsewhere => claimed = range.start + 1..range.end + 1,
            Manner::Recovers(failures) if served < failures => {
                let head = b"HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n";
                return stream.write_all(head).await;
            }
            Manner::Whole => {
                stream.write_all(head_of(200, None, size, size).as_bytes()).await?;
                return stream.write_all(&self.content).await;
            }
            _ => {}
        }
        let length = body.len() as u64;
        stream.write_all(head_of(206, Some(claimed), size, length).as_bytes()).await?;
        let torn = match self.manner {
            Manner::Silent => std::future::pending().await,
            Manner::Torn => true,
            Manner::Mends(times) => served < times,
            _ => false,
        };
        if torn {
            body.truncate(body.len() / 2);
        }
        self.sent.fetch_add(body.len() as u64, Ordering::SeqCst);
        stream.write_all(&body).await?;
        if torn { stream.shutdown().await } else { Ok(()) }
    }
}

fn head_of(status: u16, range: Option<Range<u64>>, size: u64, length: u64) -> String {
    let range = range.map_or_else(String::new, |range| {
        format!("content-range: bytes {}-{}/{size}\r\n", range.start, range.end - 1)
    });
    format!(
        "HTTP/1.1 {status} OK\r\ncontent-length: {length}\r\n{range}\
         last-modified: Mon, 05 Jan 2026 10:00:00 GMT\r\netag: \"x\"\r\n\r\n"
    )
}

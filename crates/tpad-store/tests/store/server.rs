//! A small HTTP server that answers ranges, rightly or not.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

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
    /// Is torn once, and has another version of the object from then on.
    Replaced,
    /// Is always torn, and has another version of the object each time.
    Restless,
}

/// What the server tells of the object's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tags {
    /// An ETag for each; it minds If-Match.
    Minded,
    /// An ETag for each, and If-Match is ignored.
    Unminded,
    /// A weak ETag for each. If-Match is minded, so that none matches.
    Weak,
    /// None.
    None,
}

/// A running server; it stops when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    conditions: Arc<Mutex<Vec<Option<String>>>>,
    task: JoinHandle<()>,
}

struct Shared {
    path: String,
    content: Vec<u8>,
    manner: Manner,
    tags: Tags,
    requests: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    conditions: Arc<Mutex<Vec<Option<String>>>>,
}

impl Server {
    pub(crate) async fn honest(path: &str, content: &[u8]) -> Self {
        Self::start(path, content, Manner::Honest).await
    }

    /// Serves one object at `path`.
    pub(crate) async fn start(path: &str, content: &[u8], manner: Manner) -> Self {
        Self::tagged(path, content, manner, Tags::Minded).await
    }

    /// Likewise, and tells its versions so.
    pub(crate) async fn tagged(path: &str, content: &[u8], manner: Manner, tags: Tags) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (requests, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let conditions: Arc<Mutex<Vec<_>>> = Arc::default();
        let shared = Arc::new(Shared {
            path: format!("/{path}"),
            content: content.to_vec(),
            manner,
            tags,
            requests: Arc::clone(&requests),
            sent: Arc::clone(&sent),
            conditions: Arc::clone(&conditions),
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
        Self { address, requests, sent, conditions, task }
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

    /// The If-Match of each request for a range so far.
    pub(crate) fn conditions(&self) -> Vec<Option<String>> {
        self.conditions.lock().expect("no test panicked").clone()
    }

    /// What the object holds in its nth version, being `content` in the first.
    pub(crate) fn version(content: &[u8], version: u8) -> Vec<u8> {
        content.iter().map(|byte| byte.wrapping_add(version)).collect()
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
            let tag = self.tag(self.requests());
            if method == Some("head") {
                stream.write_all(head_of(200, None, size, size, &tag).as_bytes()).await?;
                continue;
            }
            let served = self.requests.fetch_add(1, Ordering::SeqCst);
            let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
            let range = range.and_then(|range| {
                let (first, last) = range.split_once('-')?;
                Some(first.trim().parse().ok()?..last.trim().parse::<u64>().ok()? + 1)
            });
            let Some(Range { start, end }) = range else {
                stream.write_all(head_of(200, None, size, size, &tag).as_bytes()).await?;
                stream.write_all(&self.content).await?;
                continue;
            };
            let condition = head.lines().find_map(|line| line.strip_prefix("if-match: "));
            let condition = condition.map(str::to_owned);
            self.conditions.lock().expect("no test panicked").push(condition.clone());
            let minds = matches!(self.tags, Tags::Minded | Tags::Weak);
            // A weak tag matches nothing, not even itself.
            let matches = condition == tag && self.tags != Tags::Weak;
            if condition.is_some() && minds && !matches {
                stream.write_all(b"HTTP/1.1 412 No\r\ncontent-length: 0\r\n\r\n").await?;
                continue;
            }
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
        let tag = self.tag(served);
        let body = &self.content[range.start as usize..range.end as usize];
        let mut body = Server::version(body, self.version(served));
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
                stream.write_all(head_of(200, None, size, size, &tag).as_bytes()).await?;
                return stream.write_all(&self.content).await;
            }
            _ => {}
        }
        let length = body.len() as u64;
        stream.write_all(head_of(206, Some(claimed), size, length, &tag).as_bytes()).await?;
        let torn = match self.manner {
            Manner::Silent => std::future::pending().await,
            Manner::Torn | Manner::Restless => true,
            Manner::Mends(times) => served < times,
            Manner::Replaced => served == 0,
            _ => false,
        };
        if torn {
            body.truncate(body.len() / 2);
        }
        self.sent.fetch_add(body.len() as u64, Ordering::SeqCst);
        stream.write_all(&body).await?;
        if torn { stream.shutdown().await } else { Ok(()) }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// The object's version after so many requests.
    fn version(&self, served: u64) -> u8 {
        match self.manner {
            Manner::Replaced => served.min(1) as u8,
            Manner::Restless => served as u8,
            _ => 0,
        }
    }

    fn tag(&self, served: u64) -> Option<String> {
        let version = self.version(served);
        match self.tags {
            Tags::Minded | Tags::Unminded => Some(format!("\"v{version}\"")),
            Tags::Weak => Some(format!("W/\"v{version}\"")),
            Tags::None => None,
        }
    }
}

fn head_of(
    status: u16,
    range: Option<Range<u64>>,
    size: u64,
    length: u64,
    tag: &Option<String>,
) -> String {
    let range = range.map_or_else(String::new, |range| {
        format!("content-range: bytes {}-{}/{size}\r\n", range.start, range.end - 1)
    });
    let tag = tag.as_ref().map_or_else(String::new, |tag| format!("etag: {tag}\r\n"));
    format!(
        "HTTP/1.1 {status} OK\r\ncontent-length: {length}\r\n{range}\
         last-modified: Mon, 05 Jan 2026 10:00:00 GMT\r\n{tag}\r\n"
    )
}

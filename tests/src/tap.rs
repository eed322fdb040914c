//! A proxy in front of the S3 server that counts what is read, and lies when a
//! test asks for it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Well below any read timeout.
const TRICKLE: Duration = Duration::from_secs(1);

/// What happens to reads of shards. Other requests always pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// One bit of the answer is wrong.
    FlippedBit,
    /// The connection closes in the middle of the body.
    CutOff,
    /// The answer says that it is the range, but is a byte short.
    OneByteShort,
    /// The answer is another range than was asked for, and says so.
    OtherRange,
    /// The answer ignores the range.
    IgnoredRange,
    /// An error of the server's, with this status.
    Status(u16),
    /// The connection closes without an answer.
    Refused,
    /// No answer ever comes.
    Hanging,
    /// The answer comes a byte a second, so that no timeout sees it stand
    /// still, until another fault, or none, is set; then the rest of it.
    Held,
}

/// The proxy. It ends with this value. It has a thread of its own, so that a
/// test which keeps its own threads busy does not make the store slow.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    open: watch::Sender<bool>,
    counts: Arc<Mutex<Counts>>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Counts {
    faults: u64,
    reads: BTreeMap<String, u64>,
}

impl Tap {
    /// Starts a proxy to `upstream` on a port of its own.
    ///
    /// # Panics
    /// When no port is free.
    #[must_use]
    pub fn start(upstream: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("sockets can");
        let address = listener.local_addr().expect("it is bound");
        let (fault, faults) = watch::channel(Fault::None);
        let counts = Arc::<Mutex<Counts>>::default();
        let counted = Arc::clone(&counts);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
        let (open, mut opened) = watch::channel(true);
        runtime.spawn(async move {
            let mut listener = TcpListener::from_std(listener).expect("it does not block");
            loop {
                let mut connections = JoinSet::new();
                tokio::select! {
                    () = accept(&listener, upstream, &faults, &counted, &mut connections) => {}
                    _ = opened.wait_for(|open| !open) => {}
                }
                // With them whoever listened is gone: the system refuses.
                drop((listener, connections));
                if opened.wait_for(|open| *open).await.is_err() {
                    return;
                }
                listener = TcpListener::bind(address).await.expect("the port is still ours");
            }
        });
        Self { address, fault, open, counts, runtime: Some(runtime) }
    }

    /// Its URL, as `endpoint` options take it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, reads of shards go wrong like this.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// From now on connections are refused, and those that are there end.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Listens again.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// How many reads went wrong so far.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.lock().faults
    }

    /// How often each range of each shard was asked for, as `PATH RANGE`.
    #[must_use]
    pub fn reads(&self) -> BTreeMap<String, u64> {
        self.lock().reads.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves connections until something else stops it.
async fn accept(
    listener: &TcpListener,
    upstream: SocketAddr,
    faults: &watch::Receiver<Fault>,
    counts: &Arc<Mutex<Counts>>,
    connections: &mut JoinSet<()>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (counts, faults) = (Arc::clone(counts), faults.clone());
        // A connection that breaks is the tested side's to notice.
        connections.spawn(async move { drop(serve(client, upstream, faults, &counts).await) });
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one request and closes the connection, which HTTP allows at any time.
async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    mut faults: watch::Receiver<Fault>,
    counts: &Mutex<Counts>,
) -> std::io::Result<()> {
    let Some((head, body)) = request(&mut client).await? else { return Ok(()) };
    let fault = match shard_read(&head) {
        Some(read) => {
            let fault = *faults.borrow();
            let mut counts = lock(counts);
            *counts.reads.entry(read).or_default() += 1;
            counts.faults += u64::from(fault != Fault::None);
            fault
        }
        None => Fault::None,
    };
    match fault {
        Fault::Refused => return Ok(()),
        Fault::Hanging => return std::future::pending().await,
        Fault::Status(status) => {
            let answer = format!(
                "HTTP/1.1 {status} Fault\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            return client.write_all(answer.as_bytes()).await;
        }
        _ => {}
    }
    let mut server = TcpStream::connect(upstream).await?;
    server.write_all(closing(&head).as_bytes()).await?;
    server.write_all(&body).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    let mut answer = spoiled(answer, fault);
    if fault == Fault::Held {
        let head = find(&answer, b"\r\n\r\n").map_or(0, |end| end + 4);
        let body = answer.split_off(head);
        client.write_all(&answer).await?;
        answer = trickle(&mut client, body, &mut faults).await?;
    }
    client.write_all(&answer).await?;
    client.shutdown().await
}

/// Sends a body slowly while reads are held; returns what is left of it.
async fn trickle(
    client: &mut TcpStream,
    mut body: Vec<u8>,
    faults: &mut watch::Receiver<Fault>,
) -> std::io::Result<Vec<u8>> {
    while body.len() > 1 {
        let released = faults.wait_for(|fault| *fault != Fault::Held);
        if tokio::time::timeout(TRICKLE, released).await.is_ok() {
            break;
        }
        client.write_all(&body[..1]).await?;
        body.remove(0);
    }
    Ok(body)
}

/// A request's head, its last empty line included, and its body.
async fn request(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end + 4;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let wanted = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    while body.len() < wanted {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some((head, body)))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value.trim())
}

/// `PATH RANGE` of a read of a shard's bytes.
fn shard_read(head: &str) -> Option<String> {
    let path = head.strip_prefix("GET ")?.split(' ').next()?;
    let range = header(head, "range")?;
    path.contains(".safetensors").then(|| format!("{path} {range}"))
}

/// The request with `connection: close`, so that the answer ends with the
/// connection. Signatures do not cover that field.
fn closing(head: &str) -> String {
    let kept = head.trim_end().lines().filter(|line| {
        !line.split(':').next().is_some_and(|name| name.eq_ignore_ascii_case("connection"))
    });
    kept.chain(["connection: close", "", ""]).collect::<Vec<&str>>().join("\r\n")
}

fn spoiled(mut answer: Vec<u8>, fault: Fault) -> Vec<u8> {
    let Some(start) = find(&answer, b"\r\n\r\n").map(|end| end + 4) else { return answer };
    let mut body = answer.split_off(start);
    let length = body.len();
    match fault {
        Fault::FlippedBit if length > 0 => body[length / 2] ^= 1,
        Fault::CutOff => body.truncate(length / 2),
        Fault::OneByteShort => {
            body.truncate(length.saturating_sub(1));
            answer = resized(&answer, body.len(), Range::Kept);
        }
        Fault::OtherRange => {
            body.truncate(length.saturating_sub(1));
            answer = resized(&answer, body.len(), Range::Fitted);
        }
        Fault::IgnoredRange => {
            body.extend_from_within(..);
            answer = resized(&answer, body.len(), Range::Dropped);
        }
        _ => {}
    }
    answer.extend_from_slice(&body);
    answer
}

/// What becomes of an answer's `content-range`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Range {
    Kept,
    /// It says what the body holds.
    Fitted,
    /// The answer is a 200, with no range.
    Dropped,
}

/// An answer's head for a body of another length.
fn resized(head: &[u8], length: usize, range: Range) -> Vec<u8> {
    let head = String::from_utf8_lossy(head);
    let status = if range == Range::Dropped { "200 OK" } else { "206 Partial Content" };
    let mut lines = vec![format!("HTTP/1.1 {status}"), format!("content-length: {length}")];
    let fields = head.trim_end().lines().skip(1);
    lines.extend(fields.filter_map(|line| {
        let name = line.split(':').next()?.to_ascii_lowercase();
        match (name.as_str(), range) {
            ("content-length" | "transfer-encoding", _) | ("content-range", Range::Dropped) => None,
            ("content-range", Range::Fitted) => {
                let (found, total) = line.split_once('/')?;
                let (first, _) = found.rsplit_once(' ')?.1.split_once('-')?;
                let last = first.parse::<usize>().ok()? + length.saturating_sub(1);
                Some(format!("content-range: bytes {first}-{last}/{total}"))
            }
            _ => Some(line.to_owned()),
        }
    }));
    (lines.join("\r\n") + "\r\n\r\n").into_bytes()
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\n\
        Content-Range: bytes 10-13/99\r\nETag: \"x\"\r\n\r\nabcd";

    fn played(fault: Fault) -> String {
        String::from_utf8(spoiled(ANSWER.as_bytes().to_vec(), fault)).expect("text")
    }

    #[test]
    fn every_fault_spoils_the_answer_in_its_own_way() {
        assert_eq!(played(Fault::None), ANSWER);
        assert!(played(Fault::FlippedBit).ends_with("\r\n\r\nabbd"));
        assert!(played(Fault::CutOff).contains("Content-Length: 4\r\n"));
        assert!(played(Fault::CutOff).ends_with("\r\n\r\nab"));
        let short = played(Fault::OneByteShort);
        assert!(short.contains("content-length: 3\r\n") && short.contains("bytes 10-13/99"));
        assert!(short.ends_with("\r\n\r\nabc"));
        let short = played(Fault::OtherRange);
        assert!(short.contains("content-length: 3\r\n") && short.contains("bytes 10-12/99"));
        assert!(short.ends_with("\r\n\r\nabc"));
        let whole = played(Fault::IgnoredRange);
        assert!(whole.starts_with("HTTP/1.1 200") && !whole.contains("ontent-range"), "{whole}");
        assert!(whole.ends_with("\r\n\r\nabcdabcd"));
    }

    #[test]
    fn only_ranges_of_shards_are_counted() {
        let head = |path: &str| format!("GET {path} HTTP/1.1\r\nRange: bytes=0-7\r\n\r\n");
        let read = shard_read(&head("/models/a/x.safetensors"));
        assert_eq!(read.as_deref(), Some("/models/a/x.safetensors bytes=0-7"));
        assert_eq!(shard_read(&head("/models/a/tpad/index/0123")), None);
        assert_eq!(shard_read("GET /a.safetensors HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn requests_are_made_to_close_their_connection() {
        let head = "GET / HTTP/1.1\r\nhost: a\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(closing(head), "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    }
}

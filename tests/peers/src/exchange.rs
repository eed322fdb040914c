//! The protocols that are a request and a reply on a blocking socket: HTTP/1.1,
//! Redis, memcached, and the raw loop. The value is received into one buffer,
//! which was written to before: fresh pages would cost more than the copy. It begins a
//! page: 16 bytes behind one, where an allocator puts it, some processors copy what the
//! kernel has at the start of its pages at a fifth of their speed.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut, Range};

use anyhow::{Context as _, Result, bail};

use crate::closed_loop::Fetch;

/// The longest head of a reply: nginx' and SeaweedFS' are below 1 KiB.
const HEAD_BYTES: usize = 4096;
const PAGE_BYTES: usize = 4096;

/// Which bytes ask for a value and stand around it.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// 16 bytes ask, key and length; the value answers.
    Raw,
    /// `GET` of a path on a connection that stays.
    Http {
        /// Each value's path.
        paths: Vec<Object>,
    },
    /// `GET` in RESP.
    Redis,
    /// `get` in memcached's text protocol.
    Memcached,
}

/// A value that is called what its server wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its length.
    pub bytes: usize,
    /// Its path or name.
    pub name: String,
}

/// A connection with its buffer.
#[derive(Debug)]
pub struct Exchange {
    protocol: Protocol,
    stream: TcpStream,
    address: SocketAddr,
    buffer: Paged,
}

/// Bytes that begin a page.
#[derive(Debug)]
struct Paged {
    memory: Vec<u8>,
    span: Range<usize>,
}

impl Paged {
    fn new(bytes: usize) -> Self {
        // Not zeroes: those would be pages that nobody has written yet.
        let memory = vec![1; bytes + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Self { memory, span: start..start + bytes }
    }
}

impl Deref for Paged {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.span.clone()]
    }
}

impl DerefMut for Paged {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.span.clone()]
    }
}

/// What values are called where they have names.
#[must_use]
pub fn name(bytes: usize, key: usize) -> String {
    format!("{bytes}-{key}")
}

impl Exchange {
    /// Connects, for values of at most `bytes`.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(protocol: Protocol, address: SocketAddr, bytes: usize) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| address.to_string())?;
        stream.set_nodelay(true)?;
        Ok(Self { protocol, stream, address, buffer: Paged::new(bytes) })
    }

    /// Stores a value, in Redis and memcached.
    ///
    /// # Errors
    /// When it is refused.
    pub fn store(&mut self, key: usize, value: &[u8]) -> Result<()> {
        let name = name(value.len(), key);
        let (head, answer) = match self.protocol {
            Protocol::Redis => {
                let (n, len) = (name.len(), value.len());
                (format!("*3\r\n$3\r\nSET\r\n${n}\r\n{name}\r\n${len}\r\n"), "+OK\r\n")
            }
            Protocol::Memcached => (format!("set {name} 0 0 {}\r\n", value.len()), "STORED\r\n"),
            Protocol::Raw | Protocol::Http { .. } => bail!("it has no way to store"),
        };
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(value)?;
        self.stream.write_all(b"\r\n")?;
        let mut said = vec![0; answer.len()];
        self.stream.read_exact(&mut said)?;
        if said != answer.as_bytes() {
            bail!("{name} was not stored: {}", String::from_utf8_lossy(&said));
        }
        Ok(())
    }

    fn request(&self, key: usize) -> Result<Vec<u8>> {
        let name = name(self.buffer.len(), key);
        Ok(match &self.protocol {
            Protocol::Raw => {
                let key = (key as u64).to_le_bytes();
                let bytes = (self.buffer.len() as u64).to_le_bytes();
                [key, bytes].concat()
            }
            Protocol::Http { paths } => {
                let path = paths.get(key).with_context(|| format!("no path for value {key}"))?;
                let (path, host) = (&path.name, self.address);
                format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
            }
            Protocol::Redis => {
                format!("*2\r\n$3\r\nGET\r\n${}\r\n{name}\r\n", name.len()).into_bytes()
            }
            Protocol::Memcached => format!("get {name}\r\n").into_bytes(),
        })
    }

    /// How long a value is.
    fn bytes(&self, key: usize) -> usize {
        match &self.protocol {
            Protocol::Http { paths } => paths.get(key).map_or(0, |path| path.bytes),
            _ => self.buffer.len(),
        }
    }

    /// What ends the head of a reply, and what follows its value.
    fn frame(&self) -> (&'static [u8], &'static [u8]) {
        match self.protocol {
            Protocol::Raw => (b"", b""),
            Protocol::Http { .. } => (b"\r\n\r\n", b""),
            Protocol::Redis => (b"\r\n", b"\r\n"),
            Protocol::Memcached => (b"\r\n", b"\r\nEND\r\n"),
        }
    }

    /// Reads a head and whatever came with it; how much that was of the value, and
    /// what of the tail.
    fn head(&mut self, end: &[u8], expected: usize) -> Result<(usize, Vec<u8>)> {
        if end.is_empty() {
            return Ok((0, Vec::new()));
        }
        let mut head = [0; HEAD_BYTES];
        let mut filled = 0;
        let value = loop {
            let read = self.stream.read(&mut head[filled..])?;
            if read == 0 {
                bail!("the reply ended within its head");
            }
            filled += read;
            let found = head[..filled].windows(end.len()).position(|window| window == end);
            if let Some(found) = found {
                break found + end.len();
            }
        };
        let text = String::from_utf8_lossy(&head[..value]);
        let bytes = length(&self.protocol, &text).with_context(|| text.trim_end().to_owned())?;
        if bytes != expected || bytes > self.buffer.len() {
            bail!("a value of {bytes} bytes in place of {expected}");
        }
        let (early, tail) = head[value..filled].split_at(bytes.min(filled - value));
        self.buffer[..early.len()].copy_from_slice(early);
        Ok((early.len(), tail.to_vec()))
    }
}

/// How long the value is, as the head says.
fn length(protocol: &Protocol, head: &str) -> Option<usize> {
    match protocol {
        Protocol::Raw => None,
        Protocol::Http { .. } => {
            let line = head.lines().next()?;
            let status = line.split_whitespace().nth(1)?;
            let lengths = head.lines().filter_map(|line| line.split_once(": "));
            let mut lengths =
                lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            if status == "200" { lengths.next()?.1.parse().ok() } else { None }
        }
        Protocol::Redis => head.strip_prefix('$')?.trim_end().parse().ok(),
        Protocol::Memcached => head.strip_prefix("VALUE ")?.split_whitespace().nth(2)?.parse().ok(),
    }
}

impl Fetch for Exchange {
    fn fetch(&mut self, key: usize) -> Result<u64> {
        let request = self.request(key)?;
        self.stream.write_all(&request)?;
        let (end, tail) = self.frame();
        let bytes = self.bytes(key);
        let (early, mut after) = self.head(end, bytes)?;
        self.stream.read_exact(&mut self.buffer[early..bytes])?;
        let came = after.len();
        after.resize(tail.len().max(came), 0);
        self.stream.read_exact(&mut after[came..])?;
        if after != tail {
            bail!("the value does not end where it should");
        }
        Ok(bytes as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn lengths_are_read_from_each_kind_of_head() {
        let http = Protocol::Http { paths: Vec::new() };
        let ok = "HTTP/1.1 200 OK\r\nServer: x\r\ncontent-Length: 42\r\n\r\n";
        assert_eq!(length(&http, ok), Some(42));
        assert_eq!(length(&http, "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n"), None);
        assert_eq!(length(&Protocol::Redis, "$7\r\n"), Some(7));
        assert_eq!(length(&Protocol::Redis, "$-1\r\n"), None);
        assert_eq!(length(&Protocol::Memcached, "VALUE k 0 9\r\n"), Some(9));
        assert_eq!(length(&Protocol::Memcached, "END\r\n"), None);
    }

    /// A server that answers one connection's requests with `reply`, cut in two.
    fn answered(protocol: Protocol, reply: &'static [u8], cut: usize, bytes: usize) -> Result<u64> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 256];
            let _bytes = stream.read(&mut request).expect("a request");
            stream.write_all(&reply[..cut]).expect("the client reads");
            stream.write_all(&reply[cut..]).expect("the client reads");
        });
        let mut exchange = Exchange::connect(protocol, address, bytes)?;
        let fetched = exchange.fetch(0);
        drop(exchange);
        server.join().expect("the server answers");
        fetched
    }

    #[test]
    fn values_come_whole_however_the_reply_is_cut() {
        let reply = b"$4\r\nabcd\r\n";
        for cut in 0..reply.len() {
            assert_eq!(
                answered(Protocol::Redis, reply, cut, 4).expect("it is whole"),
                4,
                "cut at {cut}"
            );
        }
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd";
        for cut in 0..reply.len() {
            let paths = vec![Object { bytes: 4, name: "/x".to_owned() }];
            let http = Protocol::Http { paths };
            assert_eq!(answered(http, reply, cut, 4).expect("it is whole"), 4, "cut at {cut}");
        }
    }

    #[test]
    fn other_lengths_and_ends_are_refused() {
        assert!(answered(Protocol::Redis, b"$4\r\nabcd\r\n", 4, 5).is_err());
        assert!(answered(Protocol::Redis, b"$4\r\nabcdxx", 4, 4).is_err());
        assert!(answered(Protocol::Redis, b"-ERR no\r\n", 3, 4).is_err());
    }
}

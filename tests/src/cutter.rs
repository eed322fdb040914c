//! A proxy in front of a daemon that cuts its connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// The proxy; it ends with this value.
#[derive(Debug)]
pub struct Cutter {
    address: SocketAddr,
    counts: Arc<Counts>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    cuts: AtomicU64,
    bytes: AtomicU64,
}

impl Cutter {
    /// Starts a proxy to `upstream`. Each connection is closed after a number of bytes from
    /// there, drawn from `from` to before `to`.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(upstream: SocketAddr, seed: u64, (from, to): (u64, u64)) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let counts = Arc::<Counts>::default();
        let counted = Arc::clone(&counts);
        let accepting = tokio::spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (after, counts) = (rng.random_range(from..to), Arc::clone(&counted));
                connections.spawn(pass(client, upstream, after, counts));
            }
        });
        Self { address, counts, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Its address for clients.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections that were cut.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.counts.cuts.load(Ordering::Relaxed)
    }

    /// Bytes that were passed on to clients.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

async fn pass(client: TcpStream, upstream: SocketAddr, after: u64, counts: Arc<Counts>) {
    let Ok(daemon) = TcpStream::connect(upstream).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_daemon, mut to_daemon) = daemon.into_split();
    let up = tokio::spawn(async move {
        let _ended = tokio::io::copy(&mut from_client, &mut to_daemon).await;
        from_client
    });
    let mut left = after;
    let mut buffer = vec![0; 16 << 10];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Ok(count @ 1..) = from_daemon.read(&mut buffer[..most]).await else { break };
        // Before: a client that has all of them finds all of them counted.
        counts.bytes.fetch_add(count as u64, Ordering::Relaxed);
        if to_client.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        left -= count as u64;
    }
    if left == 0 {
        counts.cuts.fetch_add(1, Ordering::Relaxed);
    }
    // Nothing more is read from the daemon. The client reads what was passed on, then the end:
    // its words are taken until it has gone, or a reset would throw that away.
    drop(from_daemon);
    let _ended = to_client.shutdown().await;
    let _gone = up.await;
}

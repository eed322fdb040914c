//! What a client may take and how long it may take.

use std::time::Duration;

use crate::tls::TlsOptions;

/// A client's limits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// How long connecting may take. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long one call may take, its whole stream included. The daemon is
    /// told too and stops working on it. Default: none.
    pub deadline: Option<Duration>,
    /// Whether every image and file is checked against its digest. Default:
    /// yes. BLAKE3 runs at about 1 GB/s and core; images over 512 KiB are
    /// hashed on several.
    pub verify: bool,
    /// The largest image that is accepted. Memory is taken as bytes arrive,
    /// never for a mere claim. Default: 16 GiB, twice the largest embedding of
    /// a published model.
    pub max_block_bytes: u64,
    /// The largest file that is accepted. Default: 256 MiB, ten times the
    /// largest tokenizer.
    pub max_file_bytes: u64,
    /// Retries of calls that were turned away. Default: none.
    pub retry: RetryPolicy,
    /// How often in a row a stream of blocks may break without progress in
    /// between and be resumed where it broke: at once, then after pauses that
    /// grow to seconds. A whole block, or 1 MiB, is progress. 0: never.
    /// Default: 4.
    pub resumes: u32,
    /// How streams of blocks are received. Default: [`Receiver::Bulk`].
    pub receiver: Receiver,
    /// The most connections that the bulk receiver uses at a time, each for one
    /// stream; further streams share one more.
    /// Default: 16.
    pub bulk_connections: usize,
    /// Memory that is kept for the images to come. Default: 256 MiB.
    pub kept_bytes: u64,
    /// Whom an `https://` address is trusted by. Default: whom the system trusts.
    pub tls: TlsOptions,
}

/// How streams of blocks are received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Receiver {
    /// From the socket straight into the image, each stream over a connection
    /// of its own at that time.
    #[default]
    Bulk,
    /// Over one connection that all streams share, by hyper: a copy more, and when
    /// the connection breaks, what came of a frame is lost and comes again. For what
    /// stands between client and daemon and counts connections.
    Ordinary,
}

/// Whether and how often a call that was turned away is made again.
///
/// Calls are only made again when nothing of their reply has been passed on,
/// the daemon's status says when to come back (`RetryInfo`, with `UNAVAILABLE` or
/// `RESOURCE_EXHAUSTED`), and the deadline leaves that much time. All calls of
/// this client read, so a second one changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Calls after the first; 0 turns retries off.
    pub retries: u32,
    /// The longest wait that is accepted from the daemon; a longer one ends
    /// the call with the daemon's status.
    pub max_wait: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            deadline: None,
            verify: true,
            max_block_bytes: 16 << 30,
            max_file_bytes: 256 << 20,
            retry: RetryPolicy::off(),
            resumes: 4,
            receiver: Receiver::Bulk,
            bulk_connections: 16,
            kept_bytes: 256 << 20,
            tls: TlsOptions::default(),
        }
    }
}

impl RetryPolicy {
    /// No retries.
    #[must_use]
    pub const fn off() -> Self {
        Self { retries: 0, max_wait: Duration::ZERO }
    }

    /// Up to `retries` calls after the first, each after at most `max_wait`.
    #[must_use]
    pub const fn up_to(retries: u32, max_wait: Duration) -> Self {
        Self { retries, max_wait }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::off()
    }
}

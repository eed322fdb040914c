//! The daemon's configuration: a TOML file, read strictly and checked whole before a socket opens.
//!
//! Precedence, for every key: command line, then file, then environment, then
//! default. This module reads none of them but the file's text: what else it
//! needs to know about the process is in [`Surroundings`], which `main` fills.
//! `config/tpad.toml` shows every key with its default and why; a test holds it
//! equal to this code in both directions.

mod hbm;
mod mirror;
mod nvme;
mod resolve;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tpad_cuda::DeviceName;
use tpad_manifest::TierId;

use crate::memory::MemoryLimit;
/// How to reach an object store; its `Debug` hides secrets.
pub use tpad_store::OriginOptions as Origin;
pub(crate) use units::show_bytes;

/// What the configuration needs to know about the process it is for.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The memory that the daemon may use: bounds and defaults the DRAM capacity.
    pub memory: MemoryLimit,
    /// Where the Unix socket is unless the configuration says; clients look by the same rule
    /// (`tpad_client::SocketPaths`).
    pub socket: PathBuf,
    /// Origin options from the environment, used where a model's section says nothing.
    pub origin: Origin,
    /// The size of the disk under a path ([`crate::disk_bytes`]): bounds and defaults the NVMe
    /// capacity.
    pub disk_bytes: fn(&Path) -> io::Result<u64>,
}

/// Values of the command line, which win over the file's; spelled as in the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `listen.grpc`
    pub grpc: Option<String>,
    /// `listen.uds`
    pub uds: Option<String>,
    /// `listen.http`
    pub http: Option<String>,
    /// `levels.dram.capacity`
    pub dram_capacity: Option<String>,
    /// `log.level`
    pub log_level: Option<String>,
    /// `log.format`
    pub log_format: Option<String>,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the daemon listens.
    pub listen: Listen,
    /// The models to serve, at least one, names unique.
    pub models: Vec<Model>,
    /// How to reach the roots of models that are loaded at run time.
    pub origin: Origin,
    /// How much is asked of an object store at once.
    pub fetch: Fetch,
    /// The handoff socket, if there is one.
    pub handoff: Option<Handoff>,
    /// GPU memory, if it is to be used.
    pub hbm: Option<Hbm>,
    /// The DRAM level.
    pub dram: Dram,
    /// The NVMe level, if there is one.
    pub nvme: Option<Nvme>,
    /// What to do with a tier that exceeds its parameter budget.
    pub budget_enforcement: BudgetEnforcement,
    /// When it says that it is ready.
    pub ready_when: ReadyWhen,
    /// How often roots are looked at; `None`: only when a load is asked for.
    pub follow_interval: Option<Duration>,
    /// How long a revision's added tiers may take to come home before it is served.
    pub swap_patience: Duration,
    /// What is logged, and how.
    pub log: Log,
    /// Bounds of the edge.
    pub limits: Limits,
    /// How long a request may take.
    pub deadlines: Deadlines,
    /// How long a drain waits for requests in progress before it aborts them.
    pub drain_deadline: Duration,
    /// What is allowed but unwise, to be logged once at start.
    pub warnings: Vec<String>,
}

/// Where the daemon listens; `None` is off. At least one of gRPC and the Unix socket is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// gRPC over TCP, unencrypted: loopback unless the file allows more.
    pub grpc: Option<SocketAddr>,
    /// gRPC over a Unix socket.
    pub uds: Option<UnixSocket>,
    /// The read-only HTTP port.
    pub http: Option<SocketAddr>,
}

/// A Unix socket to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// An absolute path.
    pub path: PathBuf,
    /// Permission bits of the socket: 0600 or 0660.
    pub mode: u32,
}

/// How workers of this machine use blocks where they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// The socket that they connect to.
    pub socket: UnixSocket,
    /// Users that may read the daemon's memory, besides its own and root.
    pub uids: Vec<u32>,
    /// Groups whose members may, by the group that they run as.
    pub gids: Vec<u32>,
    /// Workers at a time.
    pub connections: usize,
    /// Bytes of host memory that all workers hold together.
    pub lease_bytes: u64,
    /// Bytes of host memory that one worker holds.
    pub worker_lease_bytes: u64,
}

/// One model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The name that requests use.
    pub name: String,
    /// The checkpoint's root, or one revision's URL.
    pub root: String,
    /// Roots that a manifest's `objects_base` may name.
    pub allowed_bases: Vec<String>,
    /// How to reach the root.
    pub origin: Origin,
    /// TierSets that requests may ask for by name; they go before the manifest's.
    pub tier_sets: BTreeMap<String, Vec<TierId>>,
}

/// How much is asked of an object store at once: by what it makes of it, within these
/// bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Ranges at least.
    pub least_ranges: u64,
    /// Ranges at most.
    pub most_ranges: u64,
}

/// GPU memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hbm {
    /// What the level takes of each device.
    pub capacity_bytes: u64,
    /// Which devices; all of them where none is named.
    pub devices: Vec<DeviceName>,
    /// Where host memory stands in for GPUs, to try the level out.
    pub stand_in: Option<PathBuf>,
}

/// The DRAM level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dram {
    /// All memory of the level: budgets, fills in flight, leased blocks.
    pub capacity_bytes: u64,
    /// Budgets by tier id; `router` and `dense` name the blocks outside the tiers' experts.
    pub tier_bytes: BTreeMap<String, u64>,
}

/// The NVMe level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvme {
    /// The cache directory, absolute. One daemon uses it at a time.
    pub path: PathBuf,
    /// What the level's files may take.
    pub capacity_bytes: u64,
    /// What the file system keeps free.
    pub free_floor_bytes: u64,
    /// How blocks are read.
    pub io: NvmeIo,
}

/// How blocks are read from local disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmeIo {
    /// Through io_uring where it works, with threads where not.
    Auto,
    /// Likewise, but threads are worth a warning.
    IoUring,
    /// With threads.
    Threads,
}

/// When the daemon says that it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyWhen {
    /// As soon as models can be read.
    Loaded,
    /// When their tiers are at home, too.
    Warm,
}

/// What to do with a tier that exceeds its parameter budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetEnforcement {
    /// Serve it and say so.
    Warn,
    /// Keep the revision that was served before.
    Reject,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A filter in `tracing_subscriber`'s syntax: a level, or `target=level` entries.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For a request that brings no `grpc-timeout`.
    pub default: Duration,
    /// The longest that a request's own `grpc-timeout` can ask for.
    pub max: Duration,
}

/// Bounds of the edge: over each of them a peer is refused or cut, never queued without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// gRPC connections, TCP and Unix socket together.
    pub connections: usize,
    /// Connections of the HTTP port.
    pub http_connections: usize,
    /// Requests at a time on one gRPC connection.
    pub streams_per_connection: u32,
    /// gRPC requests at a time, over all connections.
    pub requests: usize,
    /// Bytes of replies that clients have not yet taken.
    pub in_flight_bytes: u64,
    /// The same for one connection.
    pub in_flight_bytes_per_connection: u64,
    /// Size of one request message.
    pub request_bytes: usize,
    /// Size of one request's headers.
    pub header_bytes: u32,
    /// Time for a new connection to say that it speaks HTTP/2, or to send an HTTP request's head.
    pub preface_deadline: Duration,
    /// Time in which a client must take some of a reply that waits for it.
    pub progress_deadline: Duration,
    /// How often a quiet connection is asked whether it lives.
    pub keepalive_interval: Duration,
    /// How long it may take to answer.
    pub keepalive_timeout: Duration,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML, or has an unknown key or a value of the wrong type; says where.
    #[error(transparent)]
    Document(#[from] toml::de::Error),
    /// Values that cannot be; all of them.
    #[error("{}", Listing(.0))]
    Values(Vec<Problem>),
}

/// One value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key as one writes it, such as `levels.dram.capacity`.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Config {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// When it is no TOML or has an unknown key, with the line; else all values that cannot be.
    pub fn from_toml(text: &str, surroundings: &Surroundings) -> Result<Self, ConfigError> {
        Self::from_toml_with(text, Overrides::default(), surroundings)
    }

    /// Reads a file's text, replaces what `overrides` names, and checks the whole.
    ///
    /// # Errors
    /// As [`Config::from_toml`].
    pub fn from_toml_with(
        text: &str,
        overrides: Overrides,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        let mut file: mirror::File = toml::from_str(text)?;
        file.replace(overrides);
        resolve::resolve(file, surroundings).map_err(ConfigError::Values)
    }

    /// One model, defaults for all else.
    ///
    /// Without a name the model is called after the root's last path component.
    ///
    /// # Errors
    /// As [`Config::from_toml`].
    pub fn for_root(
        root: &str,
        name: Option<&str>,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        Self::for_root_with(root, name, Overrides::default(), surroundings)
    }

    /// The configuration of `tpad serve ROOT`: one model, `overrides`, defaults for all else.
    ///
    /// # Errors
    /// As [`Config::from_toml`].
    pub fn for_root_with(
        root: &str,
        name: Option<&str>,
        overrides: Overrides,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        let mut file = mirror::File::default();
        file.models.push(mirror::Model {
            name: Some(name.map_or_else(|| last_component(root), str::to_owned)),
            root: Some(root.to_owned()),
            allowed_bases: None,
            origin: mirror::Origin::default(),
            tier_sets: BTreeMap::new(),
        });
        file.replace(overrides);
        resolve::resolve(file, surroundings).map_err(ConfigError::Values)
    }
}

/// The last path component of a root; empty when there is none, which the check then refuses.
fn last_component(root: &str) -> String {
    let path = root.split_once("://").map_or(root, |(_, rest)| rest);
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

struct Listing<'a>(&'a [Problem]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

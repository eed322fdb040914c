//! Blocks of the daemon on this machine, read where it keeps them.
//!
//! A [`Handoff`] is a connection to the daemon's handoff socket. What it acquires is a
//! [`HeldBlock`]: the daemon's own memory, mapped read-only, which stays as it is until
//! the last clone is dropped. On a [`Gpu`](crate::Gpu) it is a [`HeldDeviceBlock`], memory
//! of the device that the daemon has filled. `docs/handoff.md` has the protocol.
//!
//! When the daemon drains or ends, what is held stays valid and nothing more is
//! acquired; [`Handoff::connect`] again attaches to the next one.

mod device;
mod directories;
mod held;
mod link;
mod mapping;
mod slabs;
mod task;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1 as wire;

pub use self::device::{AcquiredOn, DeviceTensor, HeldDeviceBlock};
use self::directories::{Directories, Ground};
pub use self::held::{HeldBlock, TensorView};
use self::link::{Answer, Ask, Call, Link};
use crate::{Address, Error, handoff_socket};

/// Calls that wait to be sent; more wait before.
const ASKS: usize = 64;

/// A call that the daemon does not answer in its own time gets so much longer: it counts
/// from when it reads the call.
const ANSWER_GRACE: Duration = Duration::from_secs(10);

/// How long an answer may take once the task of the connection is gone: device memory is
/// mapped in milliseconds.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// A connection to the daemon of this machine. Clones share it; it closes with the last
/// of them and of the blocks that it acquired.
///
/// ```no_run
/// use tpad_client::{AcquireOptions, Handoff};
/// use tpad_manifest::{BlockKey, ExpertKey};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let handoff = Handoff::connect("unix:///run/tpad/tpad.sock").await?;
/// let key = ExpertKey { tier: "tier_1b".parse()?, group: 0, expert: 3 };
/// let keys = [BlockKey::Expert { key, layer: 5 }];
/// let acquired = handoff.acquire("demo", &keys, AcquireOptions::default()).await?;
/// for block in acquired.blocks {
///     let block = block?;
///     for tensor in block.tensors() {
///         assert_eq!(tensor.bytes.as_ptr() as usize % 256, 0);
///     }
///     // The lease ends here.
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Handoff {
    link: Arc<Link>,
    directories: Arc<Directories>,
    /// What blocks are held by without a message, once the daemon has sent it.
    ground: Arc<OnceLock<Ground>>,
    daemon: DaemonSide,
    /// GPUs whose memory the daemon hands over, by UUID.
    devices: Arc<[String]>,
}

/// How a worker wants to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoffOptions {
    /// What operators see of it beside its process id, at most 64 bytes; by default its
    /// program's name, as the kernel has it.
    pub worker: Option<String>,
    /// Whether blocks that were acquired once are held without a message, as long as they
    /// are where they were: [`Handoff::hold`]. On by default.
    pub directories: bool,
}

impl Default for HandoffOptions {
    fn default() -> Self {
        Self { worker: None, directories: true }
    }
}

/// What a daemon said when a worker connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DaemonSide {
    /// Another number after each start of the daemon.
    pub epoch: u64,
    /// Bytes of the daemon's memory that this worker may hold.
    pub lease_bytes: u64,
    /// Keys that one [`Handoff::acquire`] may name.
    pub keys: usize,
}

/// What to acquire, and how long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcquireOptions {
    /// How long the daemon may take to bring the blocks to memory; zero takes what is
    /// there. A minute by default.
    pub timeout: Duration,
    /// Blocks of this generation alone; `None` for whichever is served.
    pub generation: Option<u64>,
}

/// What an acquire came to.
#[derive(Debug)]
pub struct Acquired<B = HeldBlock> {
    /// The revision that the blocks are of.
    pub revision: u64,
    /// The generation that they are of.
    pub generation: u64,
    /// The block of each key, or why there is none, in the order of the keys.
    pub blocks: Vec<Result<B, Error>>,
}

impl Default for AcquireOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), generation: None }
    }
}

impl Handoff {
    /// Connects to the daemon whose gRPC address this is, `unix:///PATH` or a bare absolute
    /// path, by the name that its handoff socket has by default: beside gRPC's,
    /// `NAME-handoff.sock`.
    ///
    /// # Errors
    /// As [`Handoff::connect_to`], and [`Error::Address`] for one that is no Unix socket's.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        match address.parse()? {
            Address::Unix(grpc) => Self::connect_to(&handoff_socket(&grpc)).await,
            Address::Http(_) | Address::Https(_) => Err(Error::Address {
                address: address.to_owned(),
                reason: "memory is handed over on one machine, by a Unix socket".to_owned(),
            }),
        }
    }

    /// Connects to a handoff socket. Needs a tokio runtime, on which a task of this
    /// connection runs from then on.
    ///
    /// # Errors
    /// [`Error::Connect`]; [`Error::Refused`] when this user may not, or the daemon speaks
    /// another version of the protocol; [`Error::Deadline`] when it says nothing.
    pub async fn connect_to(socket: &Path) -> Result<Self, Error> {
        Self::connect_with(socket, HandoffOptions::default()).await
    }

    /// Connects to a handoff socket, with options.
    ///
    /// # Errors
    /// As [`Handoff::connect_to`].
    pub async fn connect_with(socket: &Path, options: HandoffOptions) -> Result<Self, Error> {
        let (asks, received) = mpsc::channel(ASKS);
        task::connect(PathBuf::from(socket), options, asks, received).await
    }

    /// What the daemon said when this connected.
    #[must_use]
    pub fn daemon(&self) -> DaemonSide {
        self.daemon
    }

    /// The GPUs whose memory the daemon hands over, by UUID, as it said when this
    /// connected: those of [`Handoff::acquire_on`].
    #[must_use]
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// Why the daemon grants nothing more, once it does not: connect again.
    #[must_use]
    pub fn over(&self) -> Option<Error> {
        self.link.shared.over()
    }

    /// A block that lies in the daemon's memory and that this handle or a clone of it has
    /// acquired before: found and held without a message, in well under a microsecond,
    /// however large it is. `None` when it is to be acquired: because it was not yet, went
    /// from memory, came back elsewhere, or another generation is served; or when this
    /// worker holds [`DaemonSide::lease_bytes`] already.
    ///
    /// Blocks in use and uses are known to the daemon: what is held stays, and what is
    /// held often is kept rather than what is not.
    #[must_use]
    pub fn hold(&self, model: &str, key: &BlockKey) -> Option<HeldBlock> {
        self.directories.hold_one(self.ground()?, model, key)
    }

    /// All of these blocks as by [`Handoff::hold`], or nothing.
    #[must_use]
    pub fn hold_all(&self, model: &str, keys: &[BlockKey]) -> Option<Vec<HeldBlock>> {
        let held = self.directories.hold(self.ground()?, model, keys, None)?;
        held.blocks.into_iter().map(Result::ok).collect()
    }

    /// Acquires blocks of a model, each brought to the daemon's memory if it is not there.
    /// Where all of them can be held as by [`Handoff::hold`], they are, and the daemon is
    /// not asked. Otherwise they are leased together, within the bounds of this worker and
    /// of all. Dropped, the future leaves no lease behind.
    ///
    /// # Errors
    /// When nothing is acquired: [`Error::Refused`], with
    /// [`Kind::ResourceExhausted`](crate::Kind) when the leases would exceed a bound;
    /// [`Error::Disconnected`]; [`Error::TooManyKeys`].
    pub async fn acquire(
        &self,
        model: &str,
        keys: &[BlockKey],
        options: AcquireOptions,
    ) -> Result<Acquired, Error> {
        self.admit(keys)?;
        // All or none: nothing is held while others are waited for.
        if let Some(held) =
            self.ground().and_then(|by| self.directories.hold(by, model, keys, options.generation))
        {
            return Ok(held);
        }
        let acquired = self.ask(model, keys, options, Answer::Host).await?;
        as_asked(acquired, keys, HeldBlock::key)
    }

    fn ground(&self) -> Option<&Ground> {
        if let Some(ground) = self.ground.get() {
            return Some(ground);
        }
        let ground = self.directories.ground(&self.link)?;
        Some(self.ground.get_or_init(|| ground))
    }

    /// Whether one call may name so many keys.
    fn admit(&self, keys: &[BlockKey]) -> Result<(), Error> {
        if keys.is_empty() || keys.len() > self.daemon.keys {
            return Err(Error::TooManyKeys { asked: keys.len(), most: self.daemon.keys });
        }
        Ok(())
    }

    /// Asks the daemon, and waits for what it grants.
    async fn ask<B>(
        &self,
        model: &str,
        keys: &[BlockKey],
        AcquireOptions { timeout: wait, generation }: AcquireOptions,
        to: impl FnOnce(oneshot::Sender<Result<Acquired<B>, Error>>) -> Answer,
    ) -> Result<Acquired<B>, Error> {
        let (answer, mut answered) = oneshot::channel();
        let answer = to(answer);
        let message = wire::Acquire {
            // The task numbers calls.
            call: 0,
            model: model.to_owned(),
            generation: generation.unwrap_or(0),
            keys: keys.iter().map(Into::into).collect(),
            timeout_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            device: answer.device().to_owned(),
        };
        let link = Arc::downgrade(&self.link);
        let lost = || self.link.shared.lost();
        let call = async {
            let ask = Call { message, link, answer };
            self.link.asks.send(Ask::Acquire(ask)).await.map_err(|_| lost())?;
            tokio::select! {
                biased;
                answer = &mut answered => answer.map_err(|_| lost())?,
                // The task is gone, and with it what it had taken; what it had not lies in its
                // channel for good. What is being mapped may still come.
                () = self.link.asks.closed() => {
                    let answer = timeout(LAST_ANSWER, answered).await;
                    answer.map_or_else(|_| Err(lost()), |answer| answer.map_err(|_| lost())?)
                }
            }
        };
        let after = wait + ANSWER_GRACE;
        timeout(after, call).await.map_err(|_| Error::Deadline { after })?
    }
}

/// The answer, if it is one to these keys.
fn as_asked<B>(
    acquired: Acquired<B>,
    keys: &[BlockKey],
    key_of: impl Fn(&B) -> &BlockKey,
) -> Result<Acquired<B>, Error> {
    let (asked, came) = (keys.len(), acquired.blocks.len());
    if came != asked {
        return Err(Error::protocol("handoff", format!("{came} outcomes for {asked} keys")));
    }
    // A tier's id is its text, however it is spelled here.
    let same = |one: &BlockKey, other: &BlockKey| one == other || v1(one) == v1(other);
    for (key, block) in keys.iter().zip(&acquired.blocks) {
        if let Ok(block) = block
            && !same(key, key_of(block))
        {
            let what = format!("{} came, which nobody asked for there", key_of(block));
            return Err(Error::protocol(key.to_string(), what));
        }
    }
    Ok(acquired)
}

fn v1(key: &BlockKey) -> tpad_proto::v1::BlockKey {
    key.into()
}

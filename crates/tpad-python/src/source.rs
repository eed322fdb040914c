//! Where blocks come from: the daemon's memory where it is on this machine, and its replies
//! otherwise.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tpad_client::{
    AcquireOptions, Address, BlockStream, Client, ClientOptions, FetchDense, FetchExperts,
    FetchRouters, Handoff, HandoffOptions, handoff_socket,
};
use tpad_manifest::BlockKey;

use crate::errors::Failure;
use crate::gpu::OnGpu;
use crate::lease::Lease;
use crate::runtime::Here;

/// A daemon whose handoff ended may be asked again after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// Blocks with their leases, in the order in which they were asked for.
pub(crate) type Leases = Vec<Arc<Here<Lease>>>;

/// Whether blocks are to be the daemon's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Where that can be.
    Auto,
    /// And nothing else.
    Required,
    /// Never.
    Off,
}

/// What to connect to, and how.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) address: String,
    pub(crate) wish: Wish,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) worker: Option<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) client: ClientOptions,
}

/// One daemon.
#[derive(Debug)]
pub(crate) struct Source {
    client: Client,
    options: Options,
    handoff: Mutex<Way>,
}

/// How the daemon's memory is reached.
#[derive(Clone, Debug)]
enum Way {
    /// By this.
    Open(Handoff),
    /// It is not, for this reason; it may be tried again from then on.
    Closed(String, Option<Instant>),
}

impl Source {
    /// Connects.
    pub(crate) async fn connect(options: Options) -> Result<Self, Failure> {
        let address: Address = options.address.parse()?;
        let client = Client::connect_with(&address, options.client.clone()).await?;
        let socket = options.socket.clone().or(match &address {
            Address::Unix(path) => Some(handoff_socket(path)),
            Address::Http(_) | Address::Https(_) => None,
        });
        let options = Options { socket, ..options };
        let way = match (options.wish, &options.socket) {
            (Wish::Off, _) => Way::Closed("it was turned off: handoff=\"off\"".to_owned(), None),
            (_, None) => Way::Closed(
                format!(
                    "memory is handed over on one machine, by a Unix socket, and {address} is none"
                ),
                None,
            ),
            (_, Some(_)) => attach(&options).await,
        };
        if let (Wish::Required, Way::Closed(reason, _)) = (options.wish, &way) {
            return Err(Failure::said("unavailable", format!("no handoff: {reason}")));
        }
        Ok(Self { client, options, handoff: Mutex::new(way) })
    }

    /// The client, with a deadline for its calls if there is one.
    pub(crate) fn client(&self, timeout: Option<Duration>) -> Client {
        match timeout.or(self.options.timeout) {
            Some(timeout) => self.client.with_deadline(Some(timeout)),
            None => self.client.clone(),
        }
    }

    /// The client, whose calls may take for ever.
    pub(crate) fn patient(&self) -> Client {
        self.client.clone()
    }

    pub(crate) fn address(&self) -> &str {
        self.client.address()
    }

    /// Why no memory is handed over; `None` where it is.
    pub(crate) fn why_not(&self) -> Option<String> {
        match &*self.way() {
            Way::Open(handoff) => handoff.over().map(|error| error.to_string()),
            Way::Closed(reason, _) => Some(reason.clone()),
        }
    }

    /// What the daemon said of its handoff, if there is any.
    pub(crate) fn handoff(&self) -> Option<Handoff> {
        match &*self.way() {
            Way::Open(handoff) => Some(handoff.clone()),
            Way::Closed(..) => None,
        }
    }

    /// A block that lies in the daemon's host memory and was acquired before, without a
    /// message.
    pub(crate) fn hold(&self, model: &str, key: &BlockKey) -> Option<Lease> {
        match &*self.way() {
            Way::Open(handoff) => handoff.hold(model, key).map(Lease::Held),
            Way::Closed(..) => None,
        }
    }

    /// All of these blocks, which lie in the daemon's memory, the host's or a device's, and
    /// were acquired there before; or nothing.
    pub(crate) fn hold_all(
        &self,
        model: &str,
        keys: &[BlockKey],
        on: Option<&OnGpu>,
    ) -> Option<Leases> {
        let Way::Open(handoff) = &*self.way() else { return None };
        let leases: Vec<Lease> = match on {
            None => {
                let held = handoff.hold_all(model, keys)?;
                held.into_iter().map(Lease::Held).collect()
            }
            Some(on) => {
                let held = handoff.hold_all_on(&on.gpu, model, keys)?;
                held.into_iter().map(|block| Lease::OnGpu(block, on.clone())).collect()
            }
        };
        Some(leases.into_iter().map(|lease| Arc::new(Here::new(lease))).collect())
    }

    /// Blocks of a model, in the order of their keys.
    pub(crate) async fn blocks(
        &self,
        model: &str,
        keys: &[BlockKey],
        device: Option<&OnGpu>,
        timeout: Option<Duration>,
    ) -> Result<Leases, Failure> {
        let mut leases = Vec::with_capacity(keys.len());
        let mut at = 0;
        while at < keys.len() {
            let rest = &keys[at..];
            let handoff = match self.reach().await {
                Ok(handoff) => handoff,
                Err(reason) if device.is_some() || self.options.wish == Wish::Required => {
                    let text = format!("no handoff: {reason}");
                    let kind = if device.is_some() { "gpu" } else { "unavailable" };
                    return Err(Failure::said(kind, text));
                }
                Err(_) => {
                    leases.extend(self.fetch(model, rest, timeout).await?);
                    break;
                }
            };
            let batch = &rest[..rest.len().min(handoff.daemon().keys.max(1))];
            let acquired = self.acquire(&handoff, model, batch, device, timeout).await;
            let acquired = match acquired {
                Ok(acquired) => acquired,
                // Whatever ended the connection, the daemon may answer by the other.
                Err(failure)
                    if device.is_none()
                        && self.options.wish == Wish::Auto
                        && (failure.is_of_the_handoff() || handoff.over().is_some()) =>
                {
                    self.fetch(model, batch, timeout).await?
                }
                Err(failure) => return Err(failure),
            };
            leases.extend(acquired);
            at += batch.len();
        }
        Ok(leases)
    }

    /// Blocks where the daemon has them, all of them or none.
    async fn acquire(
        &self,
        handoff: &Handoff,
        model: &str,
        keys: &[BlockKey],
        device: Option<&OnGpu>,
        timeout: Option<Duration>,
    ) -> Result<Leases, Failure> {
        let mut options = AcquireOptions::default();
        if let Some(timeout) = timeout.or(self.options.timeout) {
            options.timeout = timeout;
        }
        let leases: Result<Vec<Lease>, tpad_client::Error> = match device {
            None => {
                let acquired = handoff.acquire(model, keys, options).await?;
                acquired.blocks.into_iter().map(|block| block.map(Lease::Held)).collect()
            }
            Some(on) => {
                let acquired = handoff.acquire_on(&on.gpu, model, keys, options).await?;
                let on_gpu = |block| Lease::OnGpu(block, on.clone());
                acquired.blocks.into_iter().map(|block| block.map(on_gpu)).collect()
            }
        };
        Ok(leases?.into_iter().map(|lease| Arc::new(Here::new(lease))).collect())
    }

    /// Blocks received into memory of this process.
    async fn fetch(
        &self,
        model: &str,
        keys: &[BlockKey],
        timeout: Option<Duration>,
    ) -> Result<Leases, Failure> {
        let client = self.client(timeout);
        let mut found: HashMap<BlockKey, Arc<Here<Lease>>> = HashMap::with_capacity(keys.len());
        let mut experts = FetchExperts { model: model.to_owned(), ..FetchExperts::default() };
        let mut dense = FetchDense { model: model.to_owned(), names: Vec::new() };
        for key in keys {
            match key {
                BlockKey::Expert { key, layer } => experts.blocks.push((key.clone(), *layer)),
                BlockKey::Dense { name } => dense.names.push(name.to_string()),
                BlockKey::Router { tier, layer } => {
                    let (tiers, layers) = (vec![tier.to_string()], vec![*layer]);
                    let routers = FetchRouters { model: model.to_owned(), tiers, layers };
                    collect(client.fetch_routers(routers).await?, &mut found).await?;
                }
            }
        }
        if !experts.blocks.is_empty() {
            collect(client.fetch_experts(experts).await?, &mut found).await?;
        }
        if !dense.names.is_empty() {
            collect(client.fetch_dense(dense).await?, &mut found).await?;
        }
        let in_order = keys.iter().map(|key| {
            let missing = || Failure::said("internal", format!("{key} did not come"));
            found.get(key).cloned().ok_or_else(missing)
        });
        in_order.collect()
    }

    /// The names of a model's dense tensors.
    pub(crate) async fn dense_names(&self, model: &str) -> Result<Vec<BlockKey>, Failure> {
        let mut pages = self.client(None).list_blocks(model, None);
        let mut keys = Vec::new();
        while let Some(block) = pages.next().await {
            let key = block?.key;
            if matches!(key, BlockKey::Dense { .. }) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// The connection by which memory is handed over, made again if it is over and may be; or
    /// why there is none.
    async fn reach(&self) -> Result<Handoff, String> {
        let way = self.way().clone();
        match way {
            Way::Open(handoff) if handoff.over().is_none() => return Ok(handoff),
            Way::Closed(reason, None) => return Err(reason),
            Way::Closed(reason, Some(again)) if again > Instant::now() => return Err(reason),
            Way::Open(_) | Way::Closed(..) => {}
        }
        let way = attach(&self.options).await;
        *self.way() = way.clone();
        match way {
            Way::Open(handoff) => Ok(handoff),
            Way::Closed(reason, _) => Err(reason),
        }
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.handoff.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn attach(options: &Options) -> Way {
    let Some(socket) = &options.socket else {
        return Way::Closed("there is no socket for it".to_owned(), None);
    };
    let with = HandoffOptions { worker: options.worker.clone(), ..HandoffOptions::default() };
    match Handoff::connect_with(socket, with).await {
        Ok(handoff) => Way::Open(handoff),
        Err(error) => Way::Closed(error.to_string(), Some(Instant::now() + AGAIN)),
    }
}

async fn collect(
    mut blocks: BlockStream,
    into: &mut HashMap<BlockKey, Arc<Here<Lease>>>,
) -> Result<(), Failure> {
    while let Some(block) = blocks.next().await {
        let block = block?;
        into.insert(block.key.clone(), Arc::new(Here::new(Lease::Fetched(block))));
    }
    Ok(())
}

//! Client of a tpad daemon.
//!
//! A [`Client`] fetches experts, routers, dense tensors and files of a model
//! and yields them as [`FetchedBlock`]s whose bytes were checked against their
//! digest. It trusts no claim of the other side: sizes are bounded before
//! memory is taken, and a reply that contradicts itself is an [`Error`] that
//! says where.
//!
//! A [`Router`] turns a token's logits into experts and weights, through the
//! mask that [`Client::routing_mask`] answers with; it needs no daemon.
//!
//! A [`Handoff`] reads blocks of the daemon on the same machine where it keeps them,
//! without a copy: in host memory, or in that of a [`Gpu`].
//!
//! Any call may fail with [`Error::Refused`], the daemon's own word,
//! [`Error::Disconnected`] and, where a deadline was set, [`Error::Deadline`];
//! [`Error::kind`] says what helps. A call's own section names what else to
//! expect.
//!
//! ```no_run
//! use tpad_client::{Client, FetchExperts};
//! use tpad_manifest::ExpertKey;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:7070").await?;
//! let mut blocks = client
//!     .fetch_experts(FetchExperts {
//!         model: "demo".to_owned(),
//!         keys: vec![ExpertKey { tier: "tier_1b".parse()?, group: 0, expert: 3 }],
//!         layers: vec![5],
//!         ..FetchExperts::default()
//!     })
//!     .await?;
//! while let Some(block) = blocks.next().await {
//!     for tensor in block?.tensors {
//!         assert_eq!(tensor.bytes.len() as u64, tensor.dtype.tensor_bytes(&tensor.shape)?);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod address;
mod admin;
mod block;
mod bulk;
mod call;
mod client;
mod error;
mod fetch;
mod file;
#[doc(hidden)]
pub mod fuzzing;
mod gpu;
mod handoff;
mod mask;
mod model;
mod options;
mod prefetch;
mod receive;
mod request;
mod router;
mod stream;
mod tls;
mod watch;

pub use address::{Address, SocketPaths, handoff_socket};
pub use admin::{
    Admin, Amount, EvictLevel, Evicted, LoadModel, LoadOutcome, LoadedModel, Pinned, Scope,
    UnloadedModel, Unpinned,
};
pub use block::{FetchedBlock, Medium, PlacedBlock, Tensor};
pub use client::{Client, Health};
pub use error::{Error, Kind, Refusal};
pub use fetch::Fetch;
pub use file::FetchedFile;
pub use gpu::Gpu;
pub use handoff::{
    AcquireOptions, Acquired, AcquiredOn, DaemonSide, DeviceTensor, Handoff, HandoffOptions,
    HeldBlock, HeldDeviceBlock, TensorView,
};
pub use mask::{FetchedMask, GetMask, MaskEvent, MaskWatch, Residency, WatchMask};
pub use model::{
    BlockPages, GroupView, ListedBlock, ListedTensor, ModelDescription, ModelState, ModelSummary,
    TierView,
};
pub use options::{ClientOptions, Receiver, RetryPolicy};
pub use prefetch::{Prefetch, Prefetched};
pub use request::{FetchDense, FetchExperts, FetchRouters};
pub use router::{Choice, RouteError, RouteInput, Router, TierLogits, Ties};
pub use stream::{BlockStream, PlacedBlocks, StreamStart};
pub use tls::TlsOptions;
// What [`Error::Gpu`] has.
pub use tpad_cuda::{CudaError, CudaErrorKind};
pub use watch::ModelWatch;

/// How this client names itself.
const USER_AGENT: &str = concat!("tpad-client/", env!("CARGO_PKG_VERSION"));

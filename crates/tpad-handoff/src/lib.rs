//! The shared memory by which a daemon and a worker of one node hand over blocks
//! without a system call.
//!
//! A block that a daemon serves lies in a slot of a slab, which workers of the
//! same node map to read it in place. Three more pieces of memory say where it
//! lies, who reads it, and how often:
//!
//! - a [`Directory`] for each generation of a model: the daemon writes, for each
//!   block's ordinal, the [`Entry`] that names its slot; workers read it as a
//!   [`DirectoryView`];
//! - [`Hazards`] for each connection: the worker writes which slots it reads, as
//!   long as a [`Held`] lives; the daemon reads them through its [`Workers`], and
//!   uses a slot again only when none of them names it;
//! - [`Uses`] for each connection and directory: the worker counts what it used;
//!   the daemon takes the counts out of its [`UsesView`] to learn what to keep.
//!
//! Nothing here waits, and nothing that a worker writes can make the daemon fail.

mod directory;
mod entry;
mod error;
mod hazards;
mod header;
mod memory;
mod protocol;
mod sync;
mod uses;
mod workers;

pub use directory::{Directory, DirectoryView};
pub use entry::{Entry, Place};
pub use error::{Error, Kind};
pub use hazards::{Hazards, Held};
pub use protocol::NotHeld;
pub use uses::{Uses, UsesView};
pub use workers::{DEFAULT_CELLS, Named, Retired, Worker, Workers};

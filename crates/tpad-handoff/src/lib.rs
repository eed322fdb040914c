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
//! `docs/handoff.md` has the layout, the protocol and why it is safe. Nothing
//! here waits, and nothing that a worker writes can make the daemon fail.

#![expect(unexpected_cfgs, reason = "`cargo xtask loom` sets `loom`, and nothing else does")]

mod entry;
mod error;
mod protocol;
mod sync;

// The model has the protocol on its own atomics, which are no words of memory.
#[cfg(not(all(test, loom)))]
mod directory;
#[cfg(not(all(test, loom)))]
mod hazards;
#[cfg(not(all(test, loom)))]
mod header;
#[cfg(not(all(test, loom)))]
mod memory;
#[cfg(all(test, loom))]
mod model;
#[cfg(not(all(test, loom)))]
mod uses;
#[cfg(not(all(test, loom)))]
mod workers;

pub use entry::{Entry, Place};
pub use error::{Error, Kind};
pub use protocol::NotHeld;

#[cfg(not(all(test, loom)))]
pub use {
    directory::{Directory, DirectoryView},
    hazards::{Hazards, Held},
    uses::{Uses, UsesView},
    workers::{DEFAULT_CELLS, Named, Retired, Worker, Workers},
};

//! Commands that change what a daemon serves. The daemon takes them over its
//! Unix socket and over loopback alone.

pub(crate) mod drain;
pub(crate) mod evict;
pub(crate) mod load;
pub(crate) mod pin;
pub(crate) mod prefetch;
mod scope;
pub(crate) mod unload;
pub(crate) mod unpin;

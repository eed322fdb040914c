//! The tpad daemon: configuration, the gRPC and HTTP edge, start and drain.
//!
//! The binary `tpad` is a thin shell around this library; tests start the same
//! daemon in process.

pub mod config;
mod daemon;
pub mod demo;
pub mod descriptors;
mod devices;
mod disk;
pub mod edge;
mod grpc;
mod handoff;
mod http;
pub mod log;

pub use daemon::{Daemon, StartError};
pub use disk::disk_bytes;
pub use tpad_store::memory;

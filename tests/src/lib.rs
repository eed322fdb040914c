//! What the end-to-end tests stand on: a real daemon, a real S3 server, real
//! checkpoints, and a reference that reads those without any code of tpad's.
//!
//! Nothing here skips. A tool that is missing is a failure whose message says
//! `cargo xtask setup`.

pub mod bulk;
pub mod cgroup;
pub mod checkpoint;
pub mod compare;
pub mod container;
pub mod counts;
pub mod cutter;
pub mod daemon;
pub mod growing;
pub mod hostile;
pub mod http;
pub mod kube;
pub mod leash;
pub mod logs;
pub mod newer;
pub mod pod_security;
pub mod process;
pub mod reader;
pub mod reference;
pub mod scene;
pub mod shards;
pub mod tap;
pub mod tools;
pub mod weed;
pub mod worker;

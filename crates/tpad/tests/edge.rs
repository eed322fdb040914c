//! The edge against clients that do not behave: each test fails with the defaults of tonic's server.

#[path = "edge/connections.rs"]
mod connections;
#[path = "edge/drain.rs"]
mod drain;
#[path = "edge/fair.rs"]
mod fair;
#[path = "edge/raw.rs"]
mod raw;
#[path = "edge/requests.rs"]
mod requests;
#[path = "edge/server.rs"]
mod server;
#[path = "edge/streams.rs"]
mod streams;
#[path = "edge/tails.rs"]
mod tails;

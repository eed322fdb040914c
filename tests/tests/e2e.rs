//! The end-to-end tests, one module for each promise.

mod activate;
mod admin;
mod any_client;
mod arrival;
mod bench;
mod cli;
mod coalesce;
mod corrupt;
mod counters;
mod counts;
mod deploy;
mod drain;
mod expansion;
mod fixtures;
mod handoff;
mod hostile_clients;
mod hostile_models;
mod hostile_shards;
mod masks;
mod models;
mod nvme;
mod outage;
mod pins;
mod placement;
mod plan;
mod prefetch;
mod pressure;
mod python;
mod readme;
mod reimport;
mod resume;
mod routing;
mod sizes;
mod tier_kills;
mod tier_races;
mod tiers;
mod versions;

#[expect(dead_code, reason = "the edge's own tests use the rest of the client")]
#[path = "../../crates/tpad/tests/edge/raw.rs"]
mod raw;

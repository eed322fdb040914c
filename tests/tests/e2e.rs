//! The end-to-end tests, one module for each promise.

mod admin;
mod cli;
mod coalesce;
mod corrupt;
mod counters;
mod deploy;
mod fixtures;
mod hostile_models;
mod hostile_shards;
mod models;
mod plan;
mod pressure;
mod python;
mod readme;
mod sizes;
mod versions;

//! The store from outside: its conformance suite, its rules, its limits.
#![expect(clippy::cast_possible_truncation, reason = "what tests count is small")]

mod arrival;
mod conformance;
mod faults;
mod http;
mod model;
mod nvme;
mod reads;
mod resumed;
mod server;
mod stage;
mod stress;
mod waits;

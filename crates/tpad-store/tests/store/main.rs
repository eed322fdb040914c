//! The store from outside: its conformance suite, its rules, its limits.

mod conformance;
mod faults;
mod http;
mod model;
mod reads;
mod server;
mod stress;

//! What is counted of the handoff.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of the handoff; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct HandoffMetrics {
    workers: Gauge,
    connections: Family<OutcomeLabel, Counter>,
    leases: Counter,
    failures: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as they are spelled")]
pub(super) enum Outcome {
    /// The worker closed the socket.
    closed,
    /// The worker's process ended.
    died,
    /// It was not admitted, or broke the protocol.
    refused,
    /// The socket failed.
    failed,
}

impl HandoffMetrics {
    /// Adds everything to `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Workers connected to the handoff socket";
        registry.register("tpad_handoff_workers", help, self.workers.clone());
        let help = "Handoff connections that ended, by how";
        registry.register("tpad_handoff_connections", help, self.connections.clone());
        registry.register("tpad_leases_granted", "Leases granted", self.leases.clone());
        let help = "Blocks that could not be leased, and whole batches that could not";
        registry.register("tpad_lease_failures", help, self.failures.clone());
    }

    pub(super) fn connected(&self) {
        self.workers.inc();
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.workers.dec();
        self.connections.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn acquired(&self, leases: usize, failures: usize) {
        self.leases.inc_by(leases as u64);
        self.failures.inc_by(failures as u64);
    }
}

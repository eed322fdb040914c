//! How long-running work tells how far it is.

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Shard headers are being read; counted in shards.
    Headers,
    /// Blocks are being digested; counted in bytes.
    Digests,
    /// Blocks are being held against their ids; counted in bytes.
    Verification,
    /// A checkpoint is being written; counted in bytes.
    Writing,
}

/// Hears how far the work is. Called from several threads, often: it should
/// return at once.
pub trait Progress: Send + Sync {
    /// `phase` begins, with `total` to do.
    fn begin(&self, phase: Phase, total: u64);

    /// `done` more of the phase's total is done.
    fn advance(&self, done: u64);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _phase: Phase, _total: u64) {}

    fn advance(&self, _done: u64) {}
}

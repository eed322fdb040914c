//! The write side: checkpoints in the Hugging Face layout are read, mapped to
//! tiers and published as revisions that point into their shards; published
//! revisions are checked byte by byte; synthetic checkpoints are made.
//!
//! No weight is ever rewritten: an import reads every byte once, to know its
//! digest, and writes indexes and one small document.

mod shard;

pub use shard::ShardTensor;

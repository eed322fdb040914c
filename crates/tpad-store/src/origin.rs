//! The origin: the object store that holds the truth.
//!
//! [`Origin`] is the seam that blocks are read through; [`ObjectOrigin`] is the
//! real one, over S3, Google Cloud Storage, Azure, HTTP and directories.

mod error;
mod object;
mod options;
mod store;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::Intake;

pub use error::OriginError;
pub use object::{Created, Listing, ObjectEntry, ObjectOrigin};
pub use options::OriginOptions;

/// Where blocks come from.
///
/// Reads fill memory that the caller owns. What arrives is as trustworthy as
/// the store: its length is checked here, its digest by the caller.
#[async_trait]
pub trait Origin: Send + Sync + 'static {
    /// Where this is, for messages.
    fn url(&self) -> &str;

    /// Reads `into.len()` bytes of `object` from `offset` on.
    ///
    /// Passing failures are tried again before `deadline`; nothing above this
    /// retries them. When the future is dropped the read stops.
    ///
    /// # Errors
    /// When not all bytes were read; `into` then holds anything.
    async fn read_range(
        &self,
        object: &str,
        offset: u64,
        into: &mut [u8],
        deadline: Instant,
    ) -> Result<(), OriginError>;

    /// Likewise, from `offset` on until nothing is left of `into`. An origin that has
    /// the bytes before the last one has come says so: they are digested meanwhile.
    ///
    /// # Errors
    /// When not all bytes were read; what came stays.
    async fn read_into(
        &self,
        object: &str,
        offset: u64,
        into: &mut Intake,
        deadline: Instant,
    ) -> Result<(), OriginError> {
        let bytes = into.left();
        self.read_range(object, offset, into.rest(), deadline).await?;
        into.came(bytes);
        Ok(())
    }

    /// How many attempts have failed so far in a way that may pass: more of them say
    /// that the store has too much to do.
    fn setbacks(&self) -> u64 {
        0
    }
}

/// Makes ring the TLS provider of this process. Calls after the first do
/// nothing; opening a remote root calls it too.
pub fn install_tls() {
    // An error says that a provider is installed already, which is what was wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

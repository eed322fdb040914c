//! For fuzzers: the bulk receiver over bytes that are no daemon's.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::bulk::{Bulk, Socket};
use crate::stream::{BlockReader, fetch_into};
use crate::{Address, Error, FetchExperts};

/// What a daemon said, in pieces as a socket may hand them out.
#[derive(Debug)]
struct Said {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
    /// What was answered.
    heard: usize,
}

impl Socket for Said {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        into: &mut [u8],
        spare: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut count = 0;
        for place in [into, spare] {
            let left = self.bytes.len() - self.at;
            let bytes = place.len().min(left).min(self.piece - count);
            place[..bytes].copy_from_slice(&self.bytes[self.at..self.at + bytes]);
            self.at += bytes;
            count += bytes;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.heard += bytes.len();
        // A preface, a request, and an answer for each frame that wants one.
        assert!(self.heard <= 4096 + 2 * self.bytes.len(), "{} bytes were answered", self.heard);
        Poll::Ready(Ok(bytes.len()))
    }

    fn say(&mut self, _: &[u8]) {}
}

/// Reads `bytes` as the HTTP/2 of a daemon that was asked for tier "t" of model "m", into
/// `memory`: how many blocks came, if all of it was right.
///
/// # Errors
/// What is wrong with them.
///
/// # Panics
/// Outside of a tokio runtime, and when it answers more than it was told.
pub async fn read_reply(bytes: &[u8], memory: &mut [u8]) -> Result<usize, Error> {
    // The first byte says how large the pieces are: boundaries fall everywhere.
    let (piece, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let piece = usize::from(*piece) + 1;
    let said = Said { bytes: bytes.to_vec(), at: 0, piece, heard: 0 };
    let nowhere = Address::Unix("/nonexistent".into());
    let (connect, patience) = (Duration::from_secs(1), Duration::from_secs(3600));
    let bulk = Arc::new(Bulk::new(&nowhere, None, 1, connect, patience)?);
    let fetch = FetchExperts {
        model: "m".to_owned(),
        tiers: vec!["t".to_owned()],
        ..FetchExperts::default()
    };
    let reader = BlockReader::over_socket(&bulk, Box::new(said), fetch.into()).await?;
    Ok(fetch_into(reader, memory, true).await?.blocks.len())
}

//! Reading an object's bytes, and counting them.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt as _};
use tokio::time::Instant;

use super::ObjectOrigin;
use super::retry::Attempts;
use super::version::Version;
use crate::{Intake, Origin, OriginError};

/// How much of a local file one step on the blocking pool reads. The step's
/// buffer is copied into place afterwards, so it should still be in the cache.
const FILE_STEP_BYTES: usize = 1 << 20;

#[async_trait]
impl Origin for ObjectOrigin {
    fn url(&self) -> &str {
        &self.url
    }

    async fn read_range(
        &self,
        object: &str,
        offset: u64,
        into: &mut [u8],
        deadline: Instant,
    ) -> Result<(), OriginError> {
        let location = self.location(object)?;
        let named = self.named(object);
        let mut attempts = Attempts::at(self, &named, Some(deadline));
        loop {
            let (bytes, mut rest) = (into.len() as u64, &mut *into);
            let mut any = Version::default();
            let attempt =
                range(&*self.store, &location, &named, offset, bytes, &mut any, &mut rest);
            if let Some(end) = attempts.make(attempt).await {
                return end;
            }
        }
    }

    async fn read_into(
        &self,
        object: &str,
        offset: u64,
        into: &mut Intake,
        deadline: Instant,
    ) -> Result<(), OriginError> {
        let location = self.location(object)?;
        let named = self.named(object);
        let mut attempts = Attempts::at(self, &named, Some(deadline));
        let wanted = into.left();
        let mut version = Version::default();
        loop {
            // What came before an attempt failed is not asked for again, and what is left
            // has to be of the same version: what came may be digested already.
            let came = (wanted - into.left()) as u64;
            if came == 0 {
                version = Version::default();
            }
            let (offset, bytes) = (offset.saturating_add(came), into.left() as u64);
            let attempt = range(&*self.store, &location, &named, offset, bytes, &mut version, into);
            if let Some(end) = attempts.make(attempt).await {
                return end;
            }
        }
    }

    fn setbacks(&self) -> u64 {
        self.setbacks.load(Ordering::Relaxed)
    }
}

/// Writes so many bytes from `offset` on to `into`, which has room for them, or fails. All
/// are of one version.
async fn range(
    store: &dyn ObjectStore,
    location: &Path,
    object: &str,
    offset: u64,
    expected: u64,
    version: &mut Version,
    into: &mut (dyn Write + Send),
) -> Result<(), OriginError> {
    if expected == 0 {
        return Ok(());
    }
    let end = offset.saturating_add(expected);
    let (range, if_match) = (Some(GetRange::Bounded(offset..end)), version.if_match());
    let conditional = if_match.is_some();
    let options = GetOptions { range, if_match, ..GetOptions::default() };
    let replaced = || OriginError::Replaced { object: object.to_owned() };
    let result = match store.get_opts(location, options).await {
        Ok(result) => result,
        Err(object_store::Error::Precondition { .. }) if conditional => return Err(replaced()),
        Err(error) => return Err(refused(store, location, object, end, error).await),
    };
    if !version.admits(result.meta.e_tag) {
        return Err(replaced());
    }
    if result.meta.size < end {
        return Err(OriginError::Truncated {
            object: object.to_owned(),
            bytes: result.meta.size,
            needed: end,
        });
    }
    if result.range != (offset..end) {
        let found = result.range.end.saturating_sub(result.range.start);
        return Err(OriginError::Length { object: object.to_owned(), expected, found });
    }
    match result.payload {
        GetResultPayload::File(file, _) => file_range(file, object, offset..end, into).await,
        GetResultPayload::Stream(mut stream) => {
            let mut found = 0u64;
            while let Some(chunk) =
                stream.try_next().await.map_err(|error| OriginError::of(object, error))?
            {
                found = found.saturating_add(chunk.len() as u64);
                if found > expected {
                    return Err(OriginError::Length { object: object.to_owned(), expected, found });
                }
                into.write_all(&chunk).map_err(|source| failed(object, source))?;
            }
            if found != expected {
                return Err(OriginError::Length { object: object.to_owned(), expected, found });
            }
            Ok(())
        }
    }
}

/// A store's refusal of a range. Some answer a range beyond the end with an
/// error that tells nothing, so the size is asked for.
async fn refused(
    store: &dyn ObjectStore,
    location: &Path,
    object: &str,
    end: u64,
    error: object_store::Error,
) -> OriginError {
    let error = OriginError::of(object, error);
    if let OriginError::Failed { .. } = error
        && error.is_answer()
        && let Ok(meta) = store.head(location).await
        && meta.size < end
    {
        return OriginError::Truncated { object: object.to_owned(), bytes: meta.size, needed: end };
    }
    error
}

/// A local file's bytes. Blocking reads cannot be given up, so each step owns
/// its buffer: a step that outlives its reader writes into nothing of ours.
async fn file_range(
    file: File,
    object: &str,
    range: Range<u64>,
    into: &mut (dyn Write + Send),
) -> Result<(), OriginError> {
    let file = Arc::new(file);
    let mut buffer = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let file = Arc::clone(&file);
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let bytes = left.min(FILE_STEP_BYTES);
        let read = tokio::task::spawn_blocking(move || {
            buffer.resize(bytes, 0);
            file.read_exact_at(&mut buffer, at).map(|()| buffer)
        });
        buffer = match read.await {
            Ok(read) => read.map_err(|source| failed(object, source))?,
            Err(stopped) => return Err(failed(object, io::Error::other(stopped))),
        };
        into.write_all(&buffer).map_err(|source| failed(object, source))?;
        at += bytes as u64;
    }
    Ok(())
}

fn failed(object: &str, source: io::Error) -> OriginError {
    OriginError::Io { object: object.to_owned(), source: Arc::new(source) }
}

/// A whole object, if it is not larger than `limit`.
pub(super) async fn whole(
    store: &dyn ObjectStore,
    location: &Path,
    object: &str,
    limit: u64,
) -> Result<Bytes, OriginError> {
    let failed = |error| OriginError::of(object, error);
    let result = store.get(location).await.map_err(failed)?;
    let bytes = result.meta.size;
    if bytes > limit {
        return Err(OriginError::TooLarge { object: object.to_owned(), bytes, limit });
    }
    let mut stream = result.into_stream();
    let mut collected = BytesMut::new();
    while let Some(chunk) = stream.try_next().await.map_err(failed)? {
        let found = (collected.len() as u64).saturating_add(chunk.len() as u64);
        if found > bytes {
            return Err(OriginError::Length { object: object.to_owned(), expected: bytes, found });
        }
        collected.extend_from_slice(&chunk);
    }
    let found = collected.len() as u64;
    if found != bytes {
        return Err(OriginError::Length { object: object.to_owned(), expected: bytes, found });
    }
    Ok(collected.freeze())
}

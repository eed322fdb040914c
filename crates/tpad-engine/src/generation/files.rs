//! The small files that travel with a checkpoint.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tpad_manifest::{Digest, FileRecord};
use tpad_store::Origin;

use super::Generation;
use crate::EngineError;
use crate::error::FileProblem;
use crate::kept::file_key;

pub(super) async fn read(
    generation: &Generation,
    name: &str,
    deadline: Instant,
) -> Result<(FileRecord, Bytes), EngineError> {
    let files = &generation.manifest().files;
    let Some(record) = files.get(name) else {
        return Err(EngineError::UnknownFile {
            model: generation.model.to_string(),
            name: name.chars().take(200).collect(),
            known: files.keys().cloned().collect(),
        });
    };
    let what = || format!("file {name} was read");
    let load = || {
        let origin = Arc::clone(&generation.objects);
        let (wanted, name) = (record.clone(), name.to_owned());
        let bounds = generation.shared.bounds;
        let turns = Arc::clone(&generation.shared.file_reads);
        let kept = generation.shared.kept.clone();
        async move {
            let _turn = turns.acquire().await;
            let deadline = Instant::now() + bounds.load_deadline;
            let key = file_key(&wanted.digest);
            if let Some(bytes) = kept.get(&key).await
                && let Ok(bytes) = verify(bytes.into(), &wanted).await
            {
                return Ok((bytes, wanted.bytes));
            }
            let bytes = match fetch(&*origin, &wanted, bounds.largest_file_bytes, deadline).await {
                Ok(bytes) => verify(bytes, &wanted).await,
                Err(problem) => Err(problem),
            };
            if let Ok(bytes) = &bytes {
                kept.put(&key, bytes.clone()).await;
            }
            match bytes {
                Ok(bytes) => Ok((bytes, wanted.bytes)),
                Err(source) => Err(EngineError::File { name, source: Arc::new(source) }),
            }
        }
    };
    let bytes = generation.files.get(record.digest, deadline, what, load).await?;
    Ok((record.clone(), bytes))
}

async fn fetch(
    origin: &dyn Origin,
    record: &FileRecord,
    limit: u64,
    deadline: Instant,
) -> Result<Vec<u8>, FileProblem> {
    let too_large = FileProblem::TooLarge { bytes: record.bytes, limit };
    let size = usize::try_from(record.bytes).ok().filter(|_| record.bytes <= limit);
    let mut bytes = vec![0; size.ok_or(too_large)?];
    origin.read_range(&record.object, 0, &mut bytes, deadline).await?;
    Ok(bytes)
}

async fn verify(bytes: Vec<u8>, record: &FileRecord) -> Result<Bytes, FileProblem> {
    let hash = move || (Digest::of(&bytes), bytes);
    let (found, bytes) =
        tokio::task::spawn_blocking(hash).await.map_err(|_| FileProblem::Interrupted)?;
    if found != record.digest {
        return Err(FileProblem::Content {
            object: record.object.clone(),
            found,
            expected: record.digest,
        });
    }
    Ok(bytes.into())
}

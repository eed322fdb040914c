//! Blocks against their ids, many at a time.

use std::fmt;
use std::ops::ControlFlow;

use tokio_util::sync::CancellationToken;
use tpad_manifest::{
    BlockId, BlockKey, BlockRecord, ExpertKey, IndexHeader, Problem, Segment, TierRecord,
};
use tpad_store::{BlockFetch, CacheClass, ObjectOrigin};

use super::{CheckError, Checked, decided};
use crate::Progress;
use crate::digest::{Digester, Ended};

/// Blocks that are listed before they are read: enough to keep every reader
/// busy, few enough to be listed in little memory.
const MAX_LISTED: usize = 1 << 16;

/// Bytes of images that are listed before they are read.
const MAX_LISTED_BYTES: u64 = 4 << 30;

/// Collects blocks and reads them.
pub(super) struct Verifier<'a> {
    objects: &'a ObjectOrigin,
    progress: &'a dyn Progress,
    stop: &'a CancellationToken,
    checked: &'a mut Checked,
    images: Vec<BlockFetch>,
    listed: Vec<Listed>,
    bytes: u64,
}

/// What a problem with a block needs to say.
struct Listed {
    place: String,
    tensors: Vec<std::sync::Arc<str>>,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(
        objects: &'a ObjectOrigin,
        progress: &'a dyn Progress,
        stop: &'a CancellationToken,
        checked: &'a mut Checked,
    ) -> Self {
        let (images, listed) = (Vec::new(), Vec::new());
        Self { objects, progress, stop, checked, images, listed, bytes: 0 }
    }

    pub(super) fn problem(&mut self, place: impl Into<String>, message: impl Into<String>) {
        self.checked.problems.push(Problem::new(place, message));
    }

    /// Lists the blocks of a segment, and reads what is listed when it is much.
    pub(super) async fn push(
        &mut self,
        tier: Option<&TierRecord>,
        header: &IndexHeader,
        segment: &Segment,
    ) -> Result<(), CheckError> {
        let layer = segment.layer;
        let Some(tier) = tier else {
            for n in 0..segment.loose.len() {
                let record = segment.dense(header, n);
                let name = |record: &BlockRecord| record.tensors.first().map(|t| t.name.clone());
                let name = record.as_ref().and_then(name).unwrap_or_default();
                self.list(&BlockKey::Dense { name }, record).await?;
            }
            return Ok(());
        };
        self.checked.problems.extend(tier.check_segment(header, segment));
        for (group, run) in (0u32..).zip(&segment.groups) {
            for expert in 0..run.experts {
                let key = ExpertKey { tier: tier.id.clone(), group, expert };
                let record = segment.expert(header, group, expert);
                self.list(&BlockKey::Expert { key, layer }, record).await?;
            }
        }
        if let Some(record) = segment.router(header) {
            self.list(&BlockKey::Router { tier: tier.id.clone(), layer }, Some(record)).await?;
        }
        Ok(())
    }

    async fn list(
        &mut self,
        key: &BlockKey,
        record: Option<BlockRecord>,
    ) -> Result<(), CheckError> {
        let Some(record) = record else {
            self.problem(key.to_string(), "the index counts this block and does not describe it");
            return Ok(());
        };
        match BlockFetch::of(&record, CacheClass::from("check")) {
            Ok(image) => {
                self.bytes = self.bytes.saturating_add(image.bytes);
                self.images.push(image);
                let tensors = record.tensors.into_iter().map(|tensor| tensor.name).collect();
                self.listed.push(Listed { place: key.to_string(), tensors });
            }
            Err(error) => self.problem(key.to_string(), error.to_string()),
        }
        if self.images.len() >= MAX_LISTED || self.bytes >= MAX_LISTED_BYTES {
            self.read().await?;
        }
        Ok(())
    }

    /// Reads what is still listed.
    pub(super) async fn finish(mut self) -> Result<(), CheckError> {
        self.read().await
    }

    async fn read(&mut self) -> Result<(), CheckError> {
        let images = std::mem::take(&mut self.images);
        let listed = std::mem::take(&mut self.listed);
        self.checked.blocks += images.len() as u64;
        self.checked.image_bytes += std::mem::take(&mut self.bytes);
        let mut found: Vec<(usize, String)> = Vec::new();
        let mut failure = None;
        let digester = Digester { origin: self.objects, progress: self.progress, stop: self.stop };
        let ended = digester
            .run(&images, |digested| {
                for (n, result) in digested {
                    match result.map_err(|error| decided(error.into())) {
                        Ok(id) if id == images[n].id => {}
                        Ok(id) => found.push((n, damaged(&listed[n], id, &images[n]))),
                        Err(Ok(message)) => found.push((n, unreadable(&listed[n], &message))),
                        Err(Err(error)) => {
                            failure = Some(error);
                            return ControlFlow::Break(());
                        }
                    }
                }
                ControlFlow::Continue(())
            })
            .await;
        found.sort_unstable();
        for (n, message) in found {
            self.problem(&*listed[n].place, message);
        }
        match (failure, ended) {
            (Some(error), _) => Err(error),
            (None, Ended::All) => Ok(()),
            (None, Ended::Stopped | Ended::Cancelled) => Err(CheckError::Cancelled),
        }
    }
}

fn damaged(block: &Listed, found: BlockId, image: &BlockFetch) -> String {
    let mut objects: Vec<&str> = image.parts.iter().map(|part| &*part.object).collect();
    objects.sort_unstable();
    objects.dedup();
    format!(
        "{} in {}: the bytes have digest {found}, the index has {}: they were changed or damaged",
        Names(&block.tensors),
        objects.join(", "),
        image.id
    )
}

fn unreadable(block: &Listed, message: &str) -> String {
    format!("{} cannot be read: {message}", Names(&block.tensors))
}

/// The tensors of a block, in a sentence.
struct Names<'a>(&'a [std::sync::Arc<str>]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "tensor" } else { "one of the tensors" })?;
        for (n, name) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if n == 0 { " " } else { ", " })?;
        }
        Ok(())
    }
}

//! Fetches a whole model through the client and holds every byte against the
//! shards that it came from.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tpad_client::{
    BlockStream, Client, FetchDense, FetchExperts, FetchRouters, FetchedBlock, ModelDescription,
    Tensor,
};
use tpad_manifest::BlockKey;

use super::DemoError;
use super::shards::Shards;

/// A whole model, fetched once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Blocks of each kind.
    pub(super) experts: u64,
    pub(super) routers: u64,
    pub(super) dense: u64,
    /// Bytes of tensors, padding not counted.
    pub(super) bytes: u64,
    /// Blocks by the medium that the daemon read them from.
    pub(super) media: BTreeMap<&'static str, u64>,
    /// Time spent waiting for the daemon, comparing not counted.
    pub(super) waited: Duration,
}

/// The router columns of each (tier, layer), in the order of its experts.
type Columns = BTreeMap<(String, u32), BTreeMap<(u32, u32), u32>>;

/// Fetches every block of `model` and compares it with `shards`.
pub(super) async fn survey(
    client: &Client,
    model: &ModelDescription,
    shards: &Arc<Shards>,
) -> Result<Survey, DemoError> {
    let mut survey = Survey::default();
    let mut columns = Columns::new();
    let name = model.summary.name.clone();
    let tiers = model.summary.tiers.clone();
    for tier in &tiers {
        let request = FetchExperts {
            model: name.clone(),
            tiers: vec![tier.clone()],
            ..FetchExperts::default()
        };
        let mut stream = client.fetch_experts(request).await?;
        while let Some(block) = survey.next(&mut stream).await? {
            survey.experts += 1;
            note_column(&block, &mut columns);
            compare(block, None, shards).await?;
        }
    }
    let request = FetchRouters { model: name.clone(), tiers, layers: Vec::new() };
    let mut stream = client.fetch_routers(request).await?;
    while let Some(block) = survey.next(&mut stream).await? {
        survey.routers += 1;
        let BlockKey::Router { tier, layer } = &block.key else { continue };
        let rows = columns.get(&(tier.to_string(), *layer));
        let rows = rows.map(|rows| rows.values().copied().collect()).unwrap_or_default();
        compare(block, Some(rows), shards).await?;
    }
    let mut stream = client.fetch_dense(FetchDense { model: name, names: Vec::new() }).await?;
    while let Some(block) = survey.next(&mut stream).await? {
        survey.dense += 1;
        compare(block, None, shards).await?;
    }
    Ok(survey)
}

impl Survey {
    /// How many blocks were fetched.
    pub(super) fn blocks(&self) -> u64 {
        self.experts + self.routers + self.dense
    }

    async fn next(&mut self, stream: &mut BlockStream) -> Result<Option<FetchedBlock>, DemoError> {
        let asked = Instant::now();
        let block = stream.next().await.transpose()?;
        self.waited += asked.elapsed();
        if let Some(block) = &block {
            *self.media.entry(block.medium.as_str()).or_default() += 1;
            self.bytes += block.tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum::<u64>();
        }
        Ok(block)
    }
}

fn note_column(block: &FetchedBlock, columns: &mut Columns) {
    if let (BlockKey::Expert { key, layer }, Some(source)) = (&block.key, block.source) {
        let tier = columns.entry((key.tier.to_string(), *layer)).or_default();
        tier.insert((key.group, key.expert), source.column);
    }
}

/// Compares a block's tensors with the shards': whole, or these rows of them.
async fn compare(
    block: FetchedBlock,
    rows: Option<Vec<u32>>,
    shards: &Arc<Shards>,
) -> Result<(), DemoError> {
    let shards = Arc::clone(shards);
    let comparing = tokio::task::spawn_blocking(move || {
        let differs = |tensor: &Tensor| -> io::Result<bool> {
            let stored = match &rows {
                Some(rows) => shards.rows(&tensor.name, rows)?,
                None => shards.read(&tensor.name)?,
            };
            Ok(stored != tensor.bytes)
        };
        for tensor in &block.tensors {
            if differs(tensor)? {
                let tensor = tensor.name.to_string();
                return Err(DemoError::Mismatch { key: block.key, tensor });
            }
        }
        Ok(())
    });
    comparing.await.map_err(io::Error::other)?
}

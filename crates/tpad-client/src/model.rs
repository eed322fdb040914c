//! What the daemon serves: models, their tiers, their blocks in pages.
//!
//! These types serialize; `tpactl --json` prints them as they are.

use std::collections::VecDeque;

use serde::Serialize;
use tpad_manifest::{BlockId, BlockKey, Source};
use tpad_proto::v1;

use crate::{Client, Error, Medium};

/// Whether a model can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelState {
    /// The daemon is reading its manifest.
    Loading,
    /// It can be read.
    Serving,
    /// Its manifest could not be read; the reason says why.
    Failed,
    /// The daemon does not say.
    Unknown,
}

/// One configured model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelSummary {
    /// The name that requests use.
    pub name: String,
    /// Where its checkpoint is.
    pub root: String,
    /// Whether it can be read.
    pub state: ModelState,
    /// Why it cannot; empty when it can.
    pub reason: String,
    /// The manifest's number; 0 when none is loaded.
    pub revision: u64,
    /// The daemon's count of swaps; 0 when none is loaded.
    pub generation: u64,
    /// Its tiers, in manifest order.
    pub tiers: Vec<String>,
    /// The tiers of a request that names none.
    pub default_tier_set: Vec<String>,
    /// The activation record that chose the revision; 0 for none.
    pub activation: u64,
    /// Whether it stays on its revision whatever its root says.
    pub pinned: bool,
}

/// One model in full.
#[derive(Clone, Debug, Serialize)]
pub struct ModelDescription {
    /// What lists show of it.
    #[serde(flatten)]
    pub summary: ModelSummary,
    /// Its tiers, in manifest order.
    pub tier_details: Vec<TierView>,
    /// MoE layers, by their numbers in the checkpoint's tensor names.
    pub layers: Vec<u32>,
    /// The manifest document, JSON.
    #[serde(skip)]
    pub manifest_json: String,
    /// Names that [`Client::fetch_file`] answers to.
    pub files: Vec<String>,
    /// How many dense tensors there are.
    pub dense_tensors: u64,
}

/// One tier.
#[derive(Clone, Debug, Serialize)]
pub struct TierView {
    /// Its id, as text.
    pub id: String,
    /// Its home: `hbm`, `dram`, `nvme` or `object_store`.
    pub placement: String,
    /// Its groups.
    pub groups: Vec<GroupView>,
    /// Tiers for a token, as the manifest has it; a mask says what is in force.
    pub k_tier: u32,
    /// Groups of the tier for a token.
    pub k_group: u32,
    /// Experts of the tier for a token, over all its chosen groups together.
    pub k_expert: u32,
    /// Logical parameters of its experts, packed weights unpacked, counted from
    /// its index; 0 without one.
    pub parameters: u64,
    /// The most logical parameters that it may have.
    pub parameter_budget: u64,
    /// Bytes of all its images.
    pub bytes: u64,
    /// Why it is skipped; empty when it is served.
    pub skipped: String,
}

/// One group of a tier.
#[derive(Clone, Debug, Serialize)]
pub struct GroupView {
    /// How many experts it has.
    pub experts: u32,
    /// The width of the model in elements, where the manifest tells.
    pub hidden_size: Option<u64>,
    /// The width of an expert in elements, where the manifest tells.
    pub intermediate_size: Option<u64>,
}

/// One block without its bytes.
#[derive(Clone, Debug)]
pub struct ListedBlock {
    /// What it is.
    pub key: BlockKey,
    /// The digest of its image.
    pub id: BlockId,
    /// The size of its image in bytes, padding included.
    pub image_bytes: u64,
    /// The source expert; `None` for routers and dense tensors.
    pub source: Option<Source>,
    /// The medium, where the daemon says.
    pub medium: Medium,
    /// Its tensors in image order.
    pub tensors: Vec<ListedTensor>,
}

/// One tensor without its bytes.
#[derive(Clone, Debug, Serialize)]
pub struct ListedTensor {
    /// The name in the checkpoint.
    pub name: String,
    /// The element type, as safetensors spells it.
    pub dtype: String,
    /// Its stored elements in each dimension, the slowest first.
    pub shape: Vec<u64>,
    /// Its first byte in the image, a multiple of 256.
    pub offset: u64,
    /// Its size in bytes, without padding.
    pub bytes: u64,
}

/// A model's blocks, page by page. Made by [`Client::list_blocks`].
#[derive(Debug)]
pub struct BlockPages {
    client: Client,
    request: Option<v1::ListBlocksRequest>,
    page: VecDeque<ListedBlock>,
    seen: Option<(u64, u64)>,
}

impl BlockPages {
    pub(crate) fn of(client: Client, model: String, tier: String) -> Self {
        let request =
            v1::ListBlocksRequest { model, tier, page_size: 0, page_token: String::new() };
        Self { client, request: Some(request), page: VecDeque::new(), seen: None }
    }

    /// The next block, in the daemon's order; `None` after the last, and after
    /// the first error. Nothing is lost when the returned future is dropped.
    ///
    /// # Errors
    /// The daemon's refusal, [`Kind::NotFound`](crate::Kind::NotFound) for a
    /// model or tier that it does not have. [`Error::Protocol`] when the model's
    /// revision changes between two pages: the list would mix two manifests.
    pub async fn next(&mut self) -> Option<Result<ListedBlock, Error>> {
        loop {
            if let Some(block) = self.page.pop_front() {
                return Some(Ok(block));
            }
            // Kept until the page is there: this future may be dropped before.
            let request = self.request.clone()?;
            if let Err(error) = self.turn(request).await {
                self.request = None;
                return Some(Err(error));
            }
        }
    }

    /// The revision and generation of the pages so far.
    #[must_use]
    pub fn revision(&self) -> Option<(u64, u64)> {
        self.seen
    }

    async fn turn(&mut self, request: v1::ListBlocksRequest) -> Result<(), Error> {
        let page = self.client.page(request.clone()).await?;
        self.request = None;
        let place = || format!("blocks of model {}", request.model);
        let found = (page.revision, page.generation);
        if self.seen.is_some_and(|seen| seen != found) {
            return Err(Error::protocol(place(), "the model changed while it was listed"));
        }
        self.seen = Some(found);
        if !page.next_page_token.is_empty() {
            if page.blocks.is_empty() || page.next_page_token == request.page_token {
                return Err(Error::protocol(place(), "a page that leads nowhere"));
            }
            self.request =
                Some(v1::ListBlocksRequest { page_token: page.next_page_token, ..request });
        }
        self.page = page
            .blocks
            .into_iter()
            .map(crate::stream::listed_block)
            .collect::<Result<VecDeque<ListedBlock>, Error>>()?;
        Ok(())
    }
}

impl From<v1::ModelSummary> for ModelSummary {
    fn from(model: v1::ModelSummary) -> Self {
        let state = match model.state() {
            v1::ModelState::Loading => ModelState::Loading,
            v1::ModelState::Serving => ModelState::Serving,
            v1::ModelState::Failed => ModelState::Failed,
            v1::ModelState::Unspecified => ModelState::Unknown,
        };
        Self {
            name: model.name,
            root: model.root,
            state,
            reason: model.reason,
            revision: model.revision,
            generation: model.generation,
            tiers: model.tiers,
            default_tier_set: model.default_tier_set,
            activation: model.activation,
            pinned: model.pinned,
        }
    }
}

impl From<v1::DescribeModelResponse> for ModelDescription {
    fn from(model: v1::DescribeModelResponse) -> Self {
        Self {
            summary: model.summary.unwrap_or_default().into(),
            tier_details: model.tiers.into_iter().map(TierView::from).collect(),
            layers: model.layers,
            manifest_json: model.manifest_json,
            files: model.files,
            dense_tensors: model.dense_tensors,
        }
    }
}

impl From<v1::TierDescription> for TierView {
    fn from(tier: v1::TierDescription) -> Self {
        Self {
            id: tier.id,
            placement: tier.placement,
            groups: tier
                .groups
                .into_iter()
                .map(|group| GroupView {
                    experts: group.experts,
                    hidden_size: group.hidden_size,
                    intermediate_size: group.intermediate_size,
                })
                .collect(),
            k_tier: tier.k_tier,
            k_group: tier.k_group,
            k_expert: tier.k_expert,
            parameters: tier.parameters,
            parameter_budget: tier.parameter_budget,
            bytes: tier.bytes,
            skipped: tier.skipped,
        }
    }
}

//! `ModelService`: what the daemon serves. Nothing here reads a block.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tpad_engine::{Engine, Generation, ModelState, ModelView, PageRequest};
use tpad_manifest::TierRecord;
use tpad_proto::v1::model_service_server::ModelService;
use tpad_proto::v1::{self, ListBlocksRequest, ListBlocksResponse};

use super::call::Call;
use super::status;
use super::stream::medium;
use super::watch;
use crate::edge::Held;

/// Blocks on a page when the request does not say.
const PAGE_BLOCKS: u32 = 1000;

/// Blocks on a page at most.
const LARGEST_PAGE_BLOCKS: u32 = 10_000;

/// Bytes on a page, about: half of what gRPC clients take in one message.
const PAGE_BYTES: usize = 2 << 20;

/// Replies of megabytes that exist at a time, the unread ones included: a page
/// takes three to four times its encoded size while it is made.
pub(super) const LARGE_REPLIES: usize = 16;

/// Describes an engine.
#[derive(Debug)]
pub(super) struct Models {
    engine: Arc<Engine>,
    default_deadline: Duration,
    large_replies: Arc<Semaphore>,
}

impl Models {
    pub(super) fn new(engine: Arc<Engine>, default_deadline: Duration) -> Self {
        let large_replies = Arc::new(Semaphore::new(LARGE_REPLIES));
        Self { engine, default_deadline, large_replies }
    }

    /// Waits until there is room for a large reply.
    async fn large_reply(&self, call: &Call) -> Result<Held, Status> {
        let permit = Arc::clone(&self.large_replies).acquire_owned();
        match tokio::time::timeout_at(call.deadline, permit).await {
            Ok(Ok(permit)) => Ok(Held::new(permit)),
            // The semaphore is never closed.
            _ => Err(status::replies_busy(call)),
        }
    }
}

/// A reply with what it holds.
fn holding<T>(reply: T, held: Held) -> Response<T> {
    let mut response = Response::new(reply);
    response.extensions_mut().insert(held);
    response
}

#[tonic::async_trait]
impl ModelService for Models {
    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let models = self.engine.models().into_iter().map(summary).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    type WatchModelStream = BoxStream<'static, Result<v1::WatchModelResponse, Status>>;

    async fn watch_model(
        &self,
        request: Request<v1::WatchModelRequest>,
    ) -> Result<Response<Self::WatchModelStream>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let model = request.into_inner().model;
        self.engine.view(&model).map_err(|error| call.refuse(&error))?;
        Ok(Response::new(watch::model(Arc::clone(&self.engine), model, call)))
    }

    async fn describe_model(
        &self,
        request: Request<v1::DescribeModelRequest>,
    ) -> Result<Response<v1::DescribeModelResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let name = request.into_inner().model;
        let view = self.engine.view(&name).map_err(|error| call.refuse(&error))?;
        let Some(generation) = view.generation.clone() else {
            // Says why there is none.
            let opened = self.engine.open(&name).map(|_| v1::DescribeModelResponse::default());
            return opened.map(Response::new).map_err(|error| call.refuse(&error));
        };
        let held = self.large_reply(&call).await?;
        let manifest = generation.manifest();
        let reply = v1::DescribeModelResponse {
            summary: Some(summary(view)),
            tiers: manifest.tiers.iter().map(|tier| describe(&generation, tier)).collect(),
            layers: manifest.layers.iter().map(|layer| layer.layer).collect(),
            manifest_json: manifest.to_json(),
            files: manifest.files.keys().cloned().collect(),
            dense_tensors: generation.dense_tensors(),
        };
        Ok(holding(reply, held))
    }

    async fn list_blocks(
        &self,
        request: Request<ListBlocksRequest>,
    ) -> Result<Response<ListBlocksResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let ListBlocksRequest { model, tier, page_size, page_token } = request.into_inner();
        let generation = self.engine.open(&model).map_err(|error| call.refuse(&error))?;
        let tier = (!tier.is_empty()).then(|| tier.parse()).transpose();
        let tier = tier.map_err(|error: tpad_manifest::TierIdError| {
            status::invalid("tier", &error.to_string(), &call)
        })?;
        let blocks = match page_size {
            0 => PAGE_BLOCKS,
            asked => asked.min(LARGEST_PAGE_BLOCKS),
        };
        let page = PageRequest {
            tier,
            token: (!page_token.is_empty()).then_some(page_token),
            blocks: usize::try_from(blocks).unwrap_or(usize::MAX),
        };
        let held = self.large_reply(&call).await?;
        let page = generation.page(&page, call.deadline).await;
        let page = page.map_err(|error| call.refuse(&error))?;
        let mut reply = ListBlocksResponse {
            revision: generation.revision(),
            generation: generation.number(),
            ..ListBlocksResponse::default()
        };
        let mut bytes = 0usize;
        for listed in &page.blocks {
            let medium = medium(generation.medium_of(&listed.record));
            let block = tpad_proto::block(&listed.key, &listed.record, medium)
                .map_err(|error| status::internal(&format!("{}: {error}", listed.key), &call))?;
            // A tag of one byte and a length stand before each block.
            let length = block.encoded_len();
            bytes += 1 + prost::length_delimiter_len(length) + length;
            if bytes > PAGE_BYTES && !reply.blocks.is_empty() {
                break;
            }
            reply.blocks.push(block);
        }
        reply.next_page_token = page.token_after(reply.blocks.len()).unwrap_or_default();
        Ok(holding(reply, held))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let status_json = serde_json::to_string(&self.engine.status())
            .map_err(|error| status::internal(&error.to_string(), &call))?;
        Ok(Response::new(v1::GetStatusResponse { status_json }))
    }
}

pub(super) fn summary(view: ModelView) -> v1::ModelSummary {
    let manifest = view.generation.as_deref().map(Generation::manifest);
    let texts = |ids: &[tpad_manifest::TierId]| ids.iter().map(ToString::to_string).collect();
    let state = match view.state {
        ModelState::Loading => v1::ModelState::Loading,
        ModelState::Serving => v1::ModelState::Serving,
        ModelState::Failed => v1::ModelState::Failed,
    };
    v1::ModelSummary {
        state: state.into(),
        revision: view.generation.as_deref().map_or(0, Generation::revision),
        generation: view.generation.as_deref().map_or(0, Generation::number),
        activation: view.generation.as_deref().and_then(Generation::activation).unwrap_or(0),
        pinned: view.pinned,
        tiers: manifest
            .map(|m| m.tiers.iter().map(|tier| tier.id.to_string()).collect())
            .unwrap_or_default(),
        default_tier_set: manifest.map(|m| texts(&m.default_tier_set)).unwrap_or_default(),
        reason: view.reason.unwrap_or_default(),
        name: view.name,
        root: view.root,
    }
}

fn describe(generation: &Generation, tier: &TierRecord) -> v1::TierDescription {
    let served = generation.catalog().tier(&tier.id.to_string());
    let header = served.as_ref().ok().map(|(_, header)| header);
    let groups = tier.groups.iter().map(|group| v1::GroupDescription {
        experts: group.experts,
        hidden_size: group.hidden_size,
        intermediate_size: group.intermediate_size,
    });
    v1::TierDescription {
        id: tier.id.to_string(),
        placement: tier.placement.as_str().to_owned(),
        groups: groups.collect(),
        k_tier: tier.routing.k_tier,
        k_group: tier.routing.k_group,
        k_expert: tier.routing.k_expert,
        parameters: header.map_or(0, |header| header.parameters()),
        parameter_budget: tier.parameter_budget,
        bytes: header.map_or(0, |header| header.image_bytes()),
        skipped: generation.catalog().skipped(&tier.id).unwrap_or_default().to_owned(),
    }
}

//! A client and its calls.

mod connect;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tpad_proto::v1;
use tpad_proto::v1::expert_service_client::ExpertServiceClient;
use tpad_proto::v1::model_service_client::ModelServiceClient;

use crate::call::Call;
use crate::fetch::{Fetch, Transport};
use crate::file::FileAssembly;
use crate::model::{BlockPages, ModelDescription, ModelSummary};
use crate::stream::{self, BlockLimits, BlockReader, Buffers};
use crate::{
    BlockStream, ClientOptions, Error, FetchDense, FetchExperts, FetchRouters, FetchedFile,
    PlacedBlocks,
};

/// The largest message of a fetch: the daemon sends pieces of up to 4 MiB, and
/// a block's description is far smaller.
const FETCH_MESSAGE_BYTES: usize = 8 << 20;

/// The largest answer about models: a page of 10 000 blocks of ten tensors, or
/// a large manifest. Masks are smaller.
pub(crate) const MODEL_MESSAGE_BYTES: usize = 64 << 20;

/// A connection to one daemon. Clones share it; it reconnects by itself.
#[derive(Clone)]
pub struct Client {
    address: Arc<str>,
    /// For all calls but fetches.
    channel: Channel,
    transport: Transport,
    buffers: Arc<Buffers>,
    options: Arc<ClientOptions>,
}

/// Whether a daemon, or one of its services, answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It does.
    Serving,
    /// It does not: it is starting or draining.
    NotServing,
    /// It does not say.
    Unknown,
}

impl Client {
    /// The same connection, with this deadline on every call; `None` for none.
    #[must_use]
    pub fn with_deadline(&self, deadline: Option<Duration>) -> Self {
        let options = ClientOptions { deadline, ..ClientOptions::clone(&self.options) };
        Self { options: Arc::new(options), ..self.clone() }
    }

    /// The address, as connected to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Experts, whichever is ready first. Waits until the daemon has resolved
    /// the request; dropping the future or the stream cancels the call.
    ///
    /// # Errors
    /// The daemon's refusal: [`Kind::NotFound`](crate::Kind::NotFound) names
    /// what exists, [`Kind::FailedPrecondition`](crate::Kind::FailedPrecondition)
    /// says why a tier is skipped.
    pub async fn fetch_experts(&self, request: FetchExperts) -> Result<BlockStream, Error> {
        self.fetch(request).await
    }

    /// Router heads of the named tiers and layers.
    ///
    /// # Errors
    /// As [`fetch_experts`](Self::fetch_experts).
    pub async fn fetch_routers(&self, request: FetchRouters) -> Result<BlockStream, Error> {
        self.fetch(request).await
    }

    /// Dense tensors by name.
    ///
    /// # Errors
    /// As [`fetch_experts`](Self::fetch_experts).
    pub async fn fetch_dense(&self, request: FetchDense) -> Result<BlockStream, Error> {
        self.fetch(request).await
    }

    /// What the methods above do, for whichever of their requests.
    ///
    /// # Errors
    /// As [`fetch_experts`](Self::fetch_experts).
    pub async fn fetch(&self, request: impl Into<Fetch>) -> Result<BlockStream, Error> {
        let reader = self.reader(request.into()).await?;
        Ok(BlockStream::of(reader, Arc::clone(&self.buffers), self.options.verify))
    }

    /// Blocks into `memory`: the first image at its start, each of the others on the next
    /// 256-byte boundary behind the one before, in the order in which they come.
    ///
    /// The bytes go from the socket to where they are to be. Digests, unless they are
    /// turned off, are taken piece by piece as the bytes come, on the thread that
    /// receives them; [`fetch`](Self::fetch) takes them on others. After an error, and
    /// when the returned future is dropped, what `memory` holds means nothing.
    ///
    /// # Errors
    /// As [`fetch_experts`](Self::fetch_experts), and [`Error::NoRoom`] for memory that is too
    /// small.
    pub async fn fetch_into(
        &self,
        request: impl Into<Fetch>,
        memory: &mut [u8],
    ) -> Result<PlacedBlocks, Error> {
        let reader = self.reader(request.into()).await?;
        stream::fetch_into(reader, memory, self.options.verify).await
    }

    async fn reader(&self, fetch: Fetch) -> Result<BlockReader, Error> {
        let limits = BlockLimits {
            max_block_bytes: self.options.max_block_bytes,
            resumes: self.options.resumes,
        };
        BlockReader::open(fetch, self.transport.clone(), self.call(), limits).await
    }

    /// One of the checkpoint's small files, such as `config.json`.
    ///
    /// # Errors
    /// As [`fetch_experts`](Self::fetch_experts), and [`Error::CorruptFile`].
    pub async fn fetch_file(&self, model: &str, name: &str) -> Result<FetchedFile, Error> {
        let message = v1::FetchFileRequest { model: model.to_owned(), name: name.to_owned() };
        let call = self.call();
        call.attempt(|| async {
            let mut service = self.experts();
            let answer = call.wait(service.fetch_file(call.request(message.clone()))).await?;
            let mut parts = answer.map_err(|status| call.error(&status))?.into_inner();
            let mut file = FileAssembly::of(name, self.options.max_file_bytes);
            while let Some(part) = call.wait(parts.next()).await? {
                file.accept(part.map_err(|status| call.error(&status))?)?;
            }
            file.finish(self.options.verify)
        })
        .await
    }

    /// The configured models, and whether each is served.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub async fn list_models(&self) -> Result<Vec<ModelSummary>, Error> {
        let send = |call: &Call| {
            let (mut service, message) = (self.models(), call.request(v1::ListModelsRequest {}));
            async move { service.list_models(message).await }
        };
        let answer = self.unary(send).await?;
        Ok(answer.models.into_iter().map(ModelSummary::from).collect())
    }

    /// One model's tiers, groups, layers and manifest.
    ///
    /// # Errors
    /// The daemon's refusal, [`Kind::NotFound`](crate::Kind::NotFound) for a
    /// model that it does not have.
    pub async fn describe_model(&self, model: &str) -> Result<ModelDescription, Error> {
        let message = v1::DescribeModelRequest { model: model.to_owned() };
        let send = |call: &Call| {
            let (mut service, message) = (self.models(), call.request(message.clone()));
            async move { service.describe_model(message).await }
        };
        let answer = self.unary(send).await?;
        Ok(answer.into())
    }

    /// A model's blocks without their bytes: of one tier, or of all tiers and
    /// the dense parameters. The pages' calls are made as they are needed.
    #[must_use]
    pub fn list_blocks(&self, model: &str, tier: Option<&str>) -> BlockPages {
        BlockPages::of(self.clone(), model.to_owned(), tier.unwrap_or_default().to_owned())
    }

    pub(crate) async fn page(
        &self,
        message: v1::ListBlocksRequest,
    ) -> Result<v1::ListBlocksResponse, Error> {
        let send = |call: &Call| {
            let (mut service, message) = (self.models(), call.request(message.clone()));
            async move { service.list_blocks(message).await }
        };
        self.unary(send).await
    }

    /// The daemon's status: the JSON document that HTTP `/status` shows.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub async fn status(&self) -> Result<String, Error> {
        let send = |call: &Call| {
            let (mut service, message) = (self.models(), call.request(v1::GetStatusRequest {}));
            async move { service.get_status(message).await }
        };
        let answer = self.unary(send).await?;
        Ok(answer.status_json)
    }

    /// Whether the daemon (`service` empty) or one of its services answers
    /// requests, by the standard health protocol.
    ///
    /// # Errors
    /// The daemon's refusal; [`Kind::NotFound`](crate::Kind::NotFound) for a
    /// service that it does not know.
    pub async fn health(&self, service: &str) -> Result<Health, Error> {
        let message = HealthCheckRequest { service: service.to_owned() };
        let send = |call: &Call| {
            let (channel, message) = (self.channel.clone(), call.request(message.clone()));
            async move { HealthClient::new(channel).check(message).await }
        };
        let answer = self.unary(send).await?;
        Ok(match answer.status() {
            ServingStatus::Serving => Health::Serving,
            ServingStatus::NotServing => Health::NotServing,
            ServingStatus::Unknown | ServingStatus::ServiceUnknown => Health::Unknown,
        })
    }

    /// Makes a call with one answer.
    pub(crate) async fn unary<M, F>(&self, send: impl Fn(&Call) -> F) -> Result<M, Error>
    where
        F: Future<Output = Result<Response<M>, Status>>,
    {
        let call = self.call();
        call.attempt(|| async {
            let answer = call.wait(send(&call)).await?.map_err(|status| call.error(&status))?;
            Ok(answer.into_inner())
        })
        .await
    }

    /// The channel, for the calls of other services.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn call(&self) -> Call {
        Call::starting_now(Arc::clone(&self.address), self.options.deadline, self.options.retry)
    }

    pub(crate) fn experts(&self) -> ExpertServiceClient<Channel> {
        ExpertServiceClient::new(self.channel.clone())
            .max_decoding_message_size(FETCH_MESSAGE_BYTES)
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone()).max_decoding_message_size(MODEL_MESSAGE_BYTES)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

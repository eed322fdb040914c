//! What tonic generates from tpad's own proto files, server and client, with its
//! defaults: what one gets without work on the data path.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tpad_proto::v1;
use tpad_proto::v1::block_part::Part;
use tpad_proto::v1::expert_service_client::ExpertServiceClient;
use tpad_proto::v1::expert_service_server::ExpertService;
use tpad_proto::v1::model_service_client::ModelServiceClient;
use tpad_proto::v1::model_service_server::ModelService;

use crate::closed_loop::Fetch;

/// As large as tpad's own messages, and a quarter of what tonic accepts by default.
const MESSAGE_BYTES: usize = 1 << 20;

/// The request for one value: expert `key` of a model named after the size.
#[must_use]
pub fn request(bytes: usize, key: usize) -> v1::FetchExpertsRequest {
    let expert = u32::try_from(key).unwrap_or(u32::MAX);
    let key = v1::ExpertKey { tier: "base".to_owned(), group: 0, expert };
    v1::FetchExpertsRequest {
        model: format!("m{bytes}"),
        blocks: vec![v1::ExpertAtLayer { key: Some(key), layer: 0 }],
        ..v1::FetchExpertsRequest::default()
    }
}

/// A client on a connection of its own.
#[derive(Debug)]
pub struct Generated {
    runtime: Runtime,
    channel: Channel,
    bytes: usize,
}

/// A client that asks for nothing.
#[derive(Debug)]
pub struct Empty(Generated);

impl Generated {
    /// Connects, for values of `bytes`.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(url: &str, bytes: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(url.to_owned())?;
        let channel = runtime.block_on(endpoint.connect()).context("connecting")?;
        Ok(Self { runtime, channel, bytes })
    }
}

impl Empty {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(url: &str) -> Result<Self> {
        Ok(Self(Generated::connect(url, 0)?))
    }
}

impl Fetch for Generated {
    fn fetch(&mut self, key: usize) -> Result<u64> {
        let request = request(self.bytes, key);
        let mut client = ExpertServiceClient::new(self.channel.clone());
        let received = self.runtime.block_on(async move {
            let mut stream = client.fetch_experts(request).await?.into_inner();
            let mut received = 0;
            while let Some(response) = stream.message().await? {
                if let Some(Part::Payload(payload)) = response.part.and_then(|part| part.part) {
                    received += payload.len();
                }
            }
            anyhow::Ok(received)
        })?;
        if received != self.bytes {
            bail!("{received} bytes in place of {}", self.bytes);
        }
        Ok(received as u64)
    }
}

impl Fetch for Empty {
    fn fetch(&mut self, _key: usize) -> Result<u64> {
        let mut client = ModelServiceClient::new(self.0.channel.clone());
        self.0.runtime.block_on(client.get_status(v1::GetStatusRequest {}))?;
        Ok(0)
    }
}

/// The server: values in memory, by size.
#[derive(Clone, Debug)]
pub struct Values(pub Arc<Vec<Vec<Bytes>>>);

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("the comparison does not ask for it"))
}

impl Values {
    fn find(&self, request: &v1::FetchExpertsRequest) -> Option<Bytes> {
        let bytes: usize = request.model.strip_prefix('m')?.parse().ok()?;
        let key = request.blocks.first()?.key.as_ref()?.expert;
        let of_size = self.0.iter().find(|of| of.first().is_some_and(|v| v.len() == bytes))?;
        of_size.get(usize::try_from(key).ok()?).cloned()
    }
}

#[tonic::async_trait]
impl ExpertService for Values {
    type FetchExpertsStream = Streamed<v1::FetchExpertsResponse>;
    type FetchRoutersStream = Streamed<v1::FetchRoutersResponse>;
    type FetchDenseStream = Streamed<v1::FetchDenseResponse>;
    type FetchFileStream = Streamed<v1::FetchFileResponse>;
    type PrefetchStream = Streamed<v1::PrefetchResponse>;

    async fn fetch_experts(
        &self,
        request: Request<v1::FetchExpertsRequest>,
    ) -> Answer<Self::FetchExpertsStream> {
        let found = self.find(request.get_ref());
        let value = found.ok_or_else(|| Status::not_found("no such value"))?;
        let starts = (0..value.len()).step_by(MESSAGE_BYTES);
        let messages = starts.map(move |start| {
            let payload = value.slice(start..value.len().min(start + MESSAGE_BYTES));
            let part = Some(v1::BlockPart { part: Some(Part::Payload(payload)) });
            Ok(v1::FetchExpertsResponse { part })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn fetch_routers(
        &self,
        _: Request<v1::FetchRoutersRequest>,
    ) -> Answer<Self::FetchRoutersStream> {
        absent()
    }

    async fn fetch_dense(
        &self,
        _: Request<v1::FetchDenseRequest>,
    ) -> Answer<Self::FetchDenseStream> {
        absent()
    }

    async fn fetch_file(&self, _: Request<v1::FetchFileRequest>) -> Answer<Self::FetchFileStream> {
        absent()
    }

    async fn prefetch(&self, _: Request<v1::PrefetchRequest>) -> Answer<Self::PrefetchStream> {
        absent()
    }
}

/// Answers the empty unary call: `GetStatus`, whose request has no field, with no
/// document.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

#[tonic::async_trait]
impl ModelService for Nothing {
    type WatchModelStream = Streamed<v1::WatchModelResponse>;

    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Answer<v1::ListModelsResponse> {
        absent()
    }

    async fn describe_model(
        &self,
        _: Request<v1::DescribeModelRequest>,
    ) -> Answer<v1::DescribeModelResponse> {
        absent()
    }

    async fn watch_model(
        &self,
        _: Request<v1::WatchModelRequest>,
    ) -> Answer<Self::WatchModelStream> {
        absent()
    }

    async fn list_blocks(
        &self,
        _: Request<v1::ListBlocksRequest>,
    ) -> Answer<v1::ListBlocksResponse> {
        absent()
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        Ok(Response::new(v1::GetStatusResponse::default()))
    }
}

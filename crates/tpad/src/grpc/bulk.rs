//! Fetches without copies.
//!
//! The generated service encodes each message into a buffer that grows, which
//! copies every payload. Here the fetches are answered beside it: a reply is a
//! body of frames, small ones with the gRPC and protobuf headers and large ones
//! that are slices of the slot in which a block lies. On the wire it is the same.

mod body;
mod message;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use tonic::body::Body;
use tonic::codec::{Codec as _, Streaming};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::server::NamedService;
use tonic::{Status, codegen::Service};
use tonic_prost::ProstCodec;
use tpad_proto::v1::expert_service_server::{ExpertService as _, ExpertServiceServer};

use self::body::Frames;
use self::message::BulkMessage;
use super::expert::{Experts, Reply};

/// `ExpertService`, its fetches without copies.
#[derive(Clone, Debug)]
pub(super) struct Bulk {
    experts: Arc<Experts>,
    generated: ExpertServiceServer<Experts>,
    request_bytes: usize,
}

impl Bulk {
    pub(super) fn new(experts: Experts, request_bytes: usize) -> Self {
        let experts = Arc::new(experts);
        let generated = ExpertServiceServer::from_arc(Arc::clone(&experts))
            .max_decoding_message_size(request_bytes);
        Self { experts, generated, request_bytes }
    }
}

impl NamedService for Bulk {
    const NAME: &'static str = <ExpertServiceServer<Experts> as NamedService>::NAME;
}

impl Service<Request<Body>> for Bulk {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (experts, most) = (Arc::clone(&self.experts), self.request_bytes);
        let path = request.uri().path();
        let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(Self::NAME));
        match method {
            Some("/FetchExperts") => Box::pin(async move {
                answer(request, most, async |request| experts.fetch_experts(request).await).await
            }),
            Some("/FetchRouters") => Box::pin(async move {
                answer(request, most, async |request| experts.fetch_routers(request).await).await
            }),
            Some("/FetchDense") => Box::pin(async move {
                answer(request, most, async |request| experts.fetch_dense(request).await).await
            }),
            Some("/FetchFile") => Box::pin(async move {
                answer(request, most, async |request| experts.fetch_file(request).await).await
            }),
            _ => self.generated.call(request),
        }
    }
}

/// Answers one call of a method that takes one message and streams its reply.
async fn answer<Q, T, F>(
    request: Request<Body>,
    most: usize,
    method: F,
) -> Result<Response<Body>, Infallible>
where
    Q: prost::Message + Default + Send + 'static,
    T: BulkMessage,
    F: AsyncFnOnce(tonic::Request<Q>) -> Result<tonic::Response<Reply<T>>, Status>,
{
    let reply = async { method(read(request, most).await?).await };
    Ok(match reply.await {
        Err(status) => status.into_http(),
        Ok(reply) => {
            let (metadata, messages, extensions) = reply.into_parts();
            let mut response = Response::new(Body::new(Frames::new(messages)));
            *response.headers_mut() = metadata.into_headers();
            *response.extensions_mut() = extensions;
            response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
            response
        }
    })
}

/// The one message of a call, as the generated service reads it.
async fn read<Q>(request: Request<Body>, most: usize) -> Result<tonic::Request<Q>, Status>
where
    Q: prost::Message + Default + Send + 'static,
{
    let (parts, body) = request.into_parts();
    if let Some(encoding) = parts.headers.get("grpc-encoding")
        && encoding != HeaderValue::from_static("identity")
    {
        let text = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
        return Err(Status::unimplemented(format!(
            "requests compressed with {text:?} are not understood: send them uncompressed"
        )));
    }
    let decoder = ProstCodec::<Q, Q>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body, None, Some(most));
    let message = messages.message().await?;
    let message = message.ok_or_else(|| Status::internal("the request has no message"))?;
    // Until the caller has said all; requests have no trailers.
    messages.trailers().await?;
    let metadata = MetadataMap::from_headers(parts.headers);
    Ok(tonic::Request::from_parts(metadata, parts.extensions, message))
}

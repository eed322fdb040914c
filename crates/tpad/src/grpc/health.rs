//! `grpc.health.v1`: whether requests can be answered, of the whole and of each
//! service.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};
use tpad_engine::{Engine, Readiness};

/// The whole, and the services that have a health of their own.
const KNOWN: [&str; 4] =
    ["", "tpad.v1.ExpertService", "tpad.v1.ModelService", "tpad.v1.RoutingService"];

/// Answers from the engine's readiness.
#[derive(Debug)]
pub(super) struct Health {
    engine: Arc<Engine>,
}

impl Health {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !KNOWN.contains(&&*service) {
            let service: String = service.chars().take(200).collect();
            return Err(Status::not_found(format!("there is no service {service:?} here")));
        }
        Ok(Response::new(response(&self.engine.ready())))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !KNOWN.contains(&&*request.into_inner().service) {
            // The protocol wants a stream that stays open: it may be added.
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            let never = stream::once(async move { Ok(unknown) }).chain(stream::pending());
            return Ok(Response::new(never.boxed()));
        }
        let mut last = None;
        let changes = WatchStream::new(self.engine.watch_readiness()).filter_map(move |now| {
            let now = response(&now);
            let changed = last.replace(now) != Some(now);
            async move { changed.then_some(Ok(now)) }
        });
        Ok(Response::new(changes.boxed()))
    }
}

fn response(readiness: &Readiness) -> HealthCheckResponse {
    let status = match readiness {
        Readiness::Ready => ServingStatus::Serving,
        Readiness::NotReady(_) => ServingStatus::NotServing,
    };
    HealthCheckResponse { status: status.into() }
}

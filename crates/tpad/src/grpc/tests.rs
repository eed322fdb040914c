//! The services as clients see them, called without a network.

mod admin;
mod bulk;
mod fetch;
mod inspect;
mod resume;
mod routing;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt as _;
use tpad_engine::fixture::{Checkpoint, Shape};
use tpad_engine::{EngineConfig, EngineMetrics, ModelConfig, Readiness, RetryIntervals};
use tpad_manifest::{BlockKey, BlockRecord};
use tpad_proto::v1::admin_service_client::AdminServiceClient;
use tpad_proto::v1::expert_service_client::ExpertServiceClient;
use tpad_proto::v1::model_service_client::ModelServiceClient;
use tpad_proto::v1::routing_service_client::RoutingServiceClient;
use tpad_proto::v1::{self, BlockPart, block_part::Part};
use tpad_store::{HierarchyConfig, OriginOptions, StoreMetrics};

use super::*;
use crate::edge::RequestDeadline;

const OPTIONS: GrpcOptions = GrpcOptions {
    default_deadline: Duration::from_secs(20),
    request_bytes: 4 << 20,
    stream_look_ahead_bytes: 1 << 20,
    total_look_ahead_bytes: 4 << 20,
};

/// A daemon's inside: an engine with model "m" on `checkpoint`, and "absent",
/// which cannot be loaded.
struct Inside {
    checkpoint: Checkpoint,
    engine: Arc<Engine>,
    routes: Routes,
    /// What a client's wish for a drain cancels.
    drain: CancellationToken,
    _empty: Checkpoint,
}

/// What a fetch stream held.
struct Fetched {
    start: v1::StreamStart,
    blocks: BTreeMap<BlockKey, (BlockRecord, Vec<u8>)>,
    /// The largest payload message.
    largest: usize,
    end: Option<Status>,
}

impl Inside {
    async fn start(shape: &Shape) -> Self {
        let (checkpoint, empty) = (Checkpoint::new(shape), Checkpoint::empty());
        let model = |name: &str, checkpoint: &Checkpoint| ModelConfig {
            name: name.into(),
            root: checkpoint.root(),
            allowed_bases: Vec::new(),
            tier_sets: BTreeMap::new(),
            origin: OriginOptions::default(),
        };
        let models = vec![model("m", &checkpoint), model("absent", &empty)];
        let hour = Duration::from_secs(3600);
        let config = EngineConfig {
            retry: RetryIntervals { first: hour, longest: hour },
            ..EngineConfig::new(models, HierarchyConfig::new(64 << 20))
        };
        let engine = Engine::start(config, EngineMetrics::default(), StoreMetrics::default());
        let engine = engine.expect("it starts");
        let mut readiness = engine.watch_readiness();
        readiness.wait_for(Readiness::is_ready).await.expect("the engine lives");
        let admin = AdminOptions {
            origin: OriginOptions::default(),
            drain: CancellationToken::new(),
            drain_deadline: Duration::from_secs(7),
        };
        let drain = admin.drain.clone();
        let (routes, _) = routes(&engine, OPTIONS, admin);
        Self { checkpoint, engine, routes, drain, _empty: empty }
    }

    fn experts(&self) -> ExpertServiceClient<Routes> {
        ExpertServiceClient::new(self.routes.clone())
    }

    fn models(&self) -> ModelServiceClient<Routes> {
        ModelServiceClient::new(self.routes.clone())
    }

    fn routing(&self) -> RoutingServiceClient<Routes> {
        RoutingServiceClient::new(self.routes.clone())
    }

    fn admin(&self) -> AdminServiceClient<Routes> {
        AdminServiceClient::new(self.routes.clone())
    }

    fn health(&self) -> HealthClient<Routes> {
        HealthClient::new(self.routes.clone())
    }

    async fn stop(self) {
        self.engine.shutdown().await;
    }
}

/// Reads a fetch stream to its end, holding it to the protocol.
async fn drain<T>(mut stream: Streaming<T>, part: fn(T) -> Option<BlockPart>) -> Fetched {
    let first = stream.message().await.expect("a message").expect("a start");
    let Some(Part::Start(start)) = part(first).and_then(|part| part.part) else {
        panic!("a stream begins with its start");
    };
    let mut fetched = Fetched { start, blocks: BTreeMap::new(), largest: 0, end: None };
    let mut open: Option<(BlockKey, BlockRecord, u64, Vec<u8>)> = None;
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => part(message).and_then(|part| part.part),
            Ok(None) => break,
            Err(status) => {
                fetched.end = Some(status);
                break;
            }
        };
        match message.expect("every message has content") {
            Part::Start(_) => panic!("a second start"),
            Part::Block(block) => {
                assert!(open.is_none(), "a block opens when the one before is complete");
                let bytes = block.image_bytes;
                let (key, record) = block.try_into().expect("an honest header");
                open = Some((key, record, bytes, Vec::new()));
            }
            Part::Payload(payload) => {
                assert!(!payload.is_empty());
                fetched.largest = fetched.largest.max(payload.len());
                open.as_mut().expect("bytes follow their block").3.extend_from_slice(&payload);
            }
        }
        if let Some((key, record, bytes, image)) = open.take() {
            if image.len() as u64 == bytes {
                let twice = fetched.blocks.insert(key, (record, image));
                assert!(twice.is_none(), "a block comes once");
            } else {
                open = Some((key, record, bytes, image));
            }
        }
    }
    assert!(open.is_none(), "no block ends early");
    fetched
}

#[test]
fn every_method_of_the_routes_is_known_to_metrics() {
    let sets = [
        tpad_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut described = BTreeSet::new();
    for set in sets {
        let set = prost_types::FileDescriptorSet::decode(set).expect("it decodes");
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let (service, method) = (service.name(), method.name());
                    described.insert(format!("{}.{service}/{method}", file.package()));
                }
            }
        }
    }
    assert_eq!(described, methods().into_iter().collect());
}

#[tokio::test]
async fn health_follows_readiness() {
    let inside = Inside::start(&Shape::mixed()).await;
    let ask = |service: &str| HealthCheckRequest { service: service.into() };
    for service in ["", "tpad.v1.ExpertService", "tpad.v1.ModelService", "tpad.v1.RoutingService"] {
        let answer = inside.health().check(ask(service)).await.expect("it is known");
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    let unknown = inside.health().check(ask("x")).await.expect_err("it is not known");
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watch = inside.health().watch(ask("")).await.expect("it is known").into_inner();
    let mut other = inside.health().watch(ask("x")).await.expect("it may come").into_inner();
    let first = watch.message().await.expect("open").expect("an answer");
    assert_eq!(first.status(), ServingStatus::Serving);
    let first = other.message().await.expect("open").expect("an answer");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    inside.engine.drain();
    let next = watch.message().await.expect("open").expect("an answer");
    assert_eq!(next.status(), ServingStatus::NotServing);
    inside.stop().await;
}

#[tokio::test]
async fn both_reflections_list_every_service() {
    use tonic_reflection::pb::{v1 as new, v1alpha as old};
    let inside = Inside::start(&Shape::mixed()).await;
    let services = [
        "grpc.health.v1.Health",
        "tpad.v1.ExpertService",
        "tpad.v1.ModelService",
        "tpad.v1.RoutingService",
    ];

    let ask = new::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = new::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client =
        new::server_reflection_client::ServerReflectionClient::new(inside.routes.clone());
    let reply = client.server_reflection_info(futures::stream::iter([ask])).await;
    let reply = reply.expect("it answers").into_inner().message().await.expect("a message");
    use new::server_reflection_response::MessageResponse as New;
    let Some(New::ListServicesResponse(list)) = reply.expect("one").message_response else {
        panic!("not a list");
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(services.iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");

    let ask = old::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = old::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client =
        old::server_reflection_client::ServerReflectionClient::new(inside.routes.clone());
    let reply = client.server_reflection_info(futures::stream::iter([ask])).await;
    let reply = reply.expect("it answers").into_inner().message().await.expect("a message");
    use old::server_reflection_response::MessageResponse as Old;
    let Some(Old::ListServicesResponse(list)) = reply.expect("one").message_response else {
        panic!("not a list");
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(services.iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
    inside.stop().await;
}

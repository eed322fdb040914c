//! The gRPC services: fetching parameters, describing models, routing masks,
//! administration, health and reflection.
//!
//! This is the wire's side of the engine: requests become keys, errors become
//! statuses, images become messages. Connections, admission, request ids and
//! deadlines are the edge's; it leaves the last two in a request's extensions.

mod admin;
mod bulk;
mod call;
mod expert;
mod health;
mod look_ahead;
mod model;
mod prefetch;
mod resume;
mod routing;
mod scope;
mod status;
mod stream;
mod watch;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tonic::service::{Routes, interceptor::InterceptedService};
use tonic_health::pb::health_server::HealthServer;
use tpad_engine::Engine;
use tpad_proto::v1::admin_service_server::AdminServiceServer;
use tpad_proto::v1::model_service_server::ModelServiceServer;
use tpad_proto::v1::routing_service_server::RoutingServiceServer;

use crate::edge::Direct;

use self::admin::Admin;
pub(crate) use self::admin::AdminOptions;
use self::bulk::Bulk;
use self::expert::Experts;
use self::health::Health;
use self::look_ahead::Budget;
use self::model::Models;
use self::routing::Routing;
pub(crate) use self::status::{code as code_of, retry_after};
pub(crate) use self::stream::medium;

/// Bounds of the services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrpcOptions {
    /// For a request whose deadline the edge did not set.
    pub(crate) default_deadline: Duration,
    /// The largest request message.
    pub(crate) request_bytes: usize,
    /// Blocks that one stream reads ahead of what its client has taken, in
    /// bytes. A block is read whatever its size when nothing else is ahead.
    pub(crate) stream_look_ahead_bytes: u64,
    /// The same for all streams together: what clients that stopped reading can
    /// keep of the cache, besides one block each.
    pub(crate) total_look_ahead_bytes: u64,
}

impl GrpcOptions {
    /// For a daemon with this much memory for blocks.
    pub(crate) fn new(
        default_deadline: Duration,
        request_bytes: usize,
        dram_capacity_bytes: u64,
    ) -> Self {
        // Four experts of 16 MiB hide the latency of an object store; all
        // streams together leave three quarters of the memory to the cache.
        let total_look_ahead_bytes = dram_capacity_bytes / 4;
        Self {
            default_deadline,
            request_bytes,
            stream_look_ahead_bytes: (64 << 20).min(total_look_ahead_bytes),
            total_look_ahead_bytes,
        }
    }
}

/// All services on one engine, and the one of them that is asked most.
pub(crate) fn routes(
    engine: &Arc<Engine>,
    options: GrpcOptions,
    admin: AdminOptions,
) -> (Routes, Direct) {
    let ahead = Budget::new(options.stream_look_ahead_bytes, options.total_look_ahead_bytes);
    let experts = Experts::new(Arc::clone(engine), options.default_deadline, ahead);
    let models = Models::new(Arc::clone(engine), options.default_deadline);
    let routing = Routing::new(Arc::clone(engine), options.default_deadline);
    let admin = Admin::new(Arc::clone(engine), options.default_deadline, admin);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tpad_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let valid = "descriptor sets are generated together with the code";
    let limit = options.request_bytes;
    let bulk = Bulk::new(experts, limit);
    let routes = Routes::new(bulk.clone())
        .add_service(ModelServiceServer::new(models).max_decoding_message_size(limit))
        .add_service(RoutingServiceServer::new(routing).max_decoding_message_size(limit))
        .add_service(InterceptedService::new(
            AdminServiceServer::new(admin).max_decoding_message_size(limit),
            admin::local_peers_only,
        ))
        .add_service(HealthServer::new(Health::new(Arc::clone(engine))))
        .add_service(reflection().build_v1().expect(valid))
        .add_service(reflection().build_v1alpha().expect(valid))
        .prepare();
    (routes, Direct::new(bulk))
}

const EXPERT_METHODS: &[&str] =
    &["FetchExperts", "FetchRouters", "FetchDense", "FetchFile", "Prefetch"];

const MODEL_METHODS: &[&str] =
    &["ListModels", "WatchModel", "DescribeModel", "ListBlocks", "GetStatus"];

const ADMIN_METHODS: &[&str] =
    &["LoadModel", "ReloadModel", "UnloadModel", "Drain", "Pin", "Unpin", "Evict"];

/// `package.Service/Method` of everything in [`routes`].
pub(crate) fn methods() -> HashSet<String> {
    let methods = [
        ("tpad.v1.ExpertService", EXPERT_METHODS),
        ("tpad.v1.ModelService", MODEL_METHODS),
        ("tpad.v1.RoutingService", &["GetRoutingMask", "WatchRoutingMask"][..]),
        ("tpad.v1.AdminService", ADMIN_METHODS),
        ("grpc.health.v1.Health", &["Check", "Watch"][..]),
        ("grpc.reflection.v1.ServerReflection", &["ServerReflectionInfo"][..]),
        ("grpc.reflection.v1alpha.ServerReflection", &["ServerReflectionInfo"][..]),
    ];
    let full = |service: &'static str, names: &'static [&'static str]| {
        names.iter().map(move |name| format!("{service}/{name}"))
    };
    methods.into_iter().flat_map(|(service, names)| full(service, names)).collect()
}

#[cfg(test)]
mod tests;

//! The daemon as a whole: started in one call, drained in another.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_engine::{Engine, EngineConfig, EngineMetrics, LeaseBounds, ModelConfig, Readiness};
use tpad_hbm::HbmMetrics;
use tpad_store::{HierarchyConfig, NvmeConfig, StoreMetrics};

use crate::config::{self, Config};
use crate::descriptors;
use crate::devices::{self, HbmStartError};
use crate::edge::{BindError, Bound, DrainReport, Edge, EdgeConfig, EdgeMetrics};
use crate::grpc::{self, AdminOptions, GrpcOptions};
use crate::handoff::{self, Handoff, HandoffMetrics};
use crate::http::Pages;

/// What the engine gets beyond the drain's deadline to end its tasks: none of them waits for a client.
const ENGINE_GRACE: Duration = Duration::from_millis(50);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    edge: Edge,
    handoff: Option<Handoff>,
    engine: Arc<Engine>,
    drain_deadline: Duration,
    drain_asked: CancellationToken,
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// GPU memory cannot be had as it is configured.
    #[error(transparent)]
    Hbm(#[from] HbmStartError),
    /// The engine or its store cannot be set up.
    #[error(transparent)]
    Engine(#[from] tpad_engine::StartError),
}

impl Daemon {
    /// Binds every listener, starts the engine, and serves. Models load in the background.
    ///
    /// # Errors
    /// When an address or the socket cannot be had, or the DRAM level cannot be set up.
    /// A model that cannot be loaded is no error: its status says so and it is tried again.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let Config {
            listen,
            models,
            origin,
            fetch,
            handoff,
            hbm,
            dram,
            nvme,
            budget_enforcement,
            ready_when,
            follow_interval,
            swap_patience,
            log: _,
            limits,
            deadlines,
            drain_deadline,
            warnings,
        } = config;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        if let Some(shortage) = descriptors::shortage(limits.connections + limits.http_connections)
        {
            tracing::warn!("{shortage}");
        }
        let bound = Bound::bind(&listen).await?;
        let bound_handoff = handoff::Bound::bind(handoff.as_ref())?;

        let mut registry = Registry::default();
        let (edge_metrics, engine_metrics, store_metrics) =
            (EdgeMetrics::default(), EngineMetrics::default(), StoreMetrics::default());
        let (handoff_metrics, hbm_metrics) = (HandoffMetrics::default(), HbmMetrics::default());
        hbm_metrics.register(&mut registry);
        handoff_metrics.register(&mut registry);
        edge_metrics.register(&mut registry);
        engine_metrics.register(&mut registry);
        store_metrics.register(&mut registry);
        registry.register(
            "tpad_build",
            "The version that runs",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );

        let engine_config = EngineConfig {
            budget_enforcement: match budget_enforcement {
                config::BudgetEnforcement::Warn => tpad_engine::BudgetEnforcement::Warn,
                config::BudgetEnforcement::Reject => tpad_engine::BudgetEnforcement::Reject,
            },
            ready_when: match ready_when {
                config::ReadyWhen::Loaded => tpad_engine::ReadyWhen::Loaded,
                config::ReadyWhen::Warm => tpad_engine::ReadyWhen::Warm,
            },
            follow: follow_interval,
            swap_patience,
            nvme: nvme.map(disk),
            devices: devices::open(hbm, hbm_metrics)?,
            leases: handoff.map_or(LeaseBounds::of_capacity(0), |handoff| LeaseBounds {
                bytes: handoff.lease_bytes,
                worker_bytes: handoff.worker_lease_bytes,
            }),
            ..EngineConfig::new(models.into_iter().map(model).collect(), hierarchy(&dram, fetch))
        };
        let engine = Engine::start(engine_config, engine_metrics, store_metrics)?;

        let options =
            GrpcOptions::new(deadlines.default, limits.request_bytes, dram.capacity_bytes);
        let drain_asked = CancellationToken::new();
        let admin = AdminOptions { origin, drain: drain_asked.clone(), drain_deadline };
        let (routes, direct) = grpc::routes(&engine, options, admin);
        let edge = bound.serve(EdgeConfig {
            routes,
            direct: Some(direct),
            methods: grpc::methods(),
            pages: pages(&engine, registry).router(),
            limits,
            deadlines,
            metrics: edge_metrics,
        });
        let handoff = bound_handoff.map(|bound| bound.serve(&engine, handoff_metrics));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            grpc = edge.grpc_addr().map(tracing::field::display),
            uds = edge.uds_path().map(|path| tracing::field::display(path.display())),
            handoff =
                handoff.as_ref().map(|handoff| tracing::field::display(handoff.path().display())),
            http = edge.http_addr().map(tracing::field::display),
            "tpad listens"
        );
        Ok(Self { edge, handoff, engine, drain_deadline, drain_asked })
    }

    /// The address of gRPC over TCP, its port as bound.
    #[must_use]
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.edge.grpc_addr()
    }

    /// The path of the Unix socket.
    #[must_use]
    pub fn uds_path(&self) -> Option<&Path> {
        self.edge.uds_path()
    }

    /// The path of the handoff socket.
    #[must_use]
    pub fn handoff_path(&self) -> Option<&Path> {
        self.handoff.as_ref().map(Handoff::path)
    }

    /// The address of the HTTP port, as bound.
    #[must_use]
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.edge.http_addr()
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Completes when a client has asked for a drain. Whoever runs the daemon then
    /// does as at a signal.
    pub async fn drain_asked(&self) {
        self.drain_asked.cancelled().await;
    }

    /// Stops: reports not ready, accepts nothing more, lets requests in progress
    /// finish until `drain.deadline`, cuts the rest, and ends every task.
    ///
    /// Over at most a quarter of a second after the deadline, whatever clients do.
    pub async fn drain(mut self) -> DrainReport {
        let began = Instant::now();
        self.engine.drain();
        if let Some(handoff) = &mut self.handoff {
            handoff.drain();
        }
        let deadline = began + self.drain_deadline;
        let mut report = self.edge.drain(deadline).await;
        let engine_deadline = deadline.max(Instant::now()) + ENGINE_GRACE;
        if tokio::time::timeout_at(engine_deadline, self.engine.shutdown()).await.is_err() {
            tracing::warn!("the engine's tasks did not end in time and are left behind");
        }
        report.took = began.elapsed();
        report
    }
}

fn model(model: config::Model) -> ModelConfig {
    let config::Model { name, root, allowed_bases, origin, tier_sets } = model;
    ModelConfig { name, root, allowed_bases, origin, tier_sets }
}

fn disk(nvme: config::Nvme) -> NvmeConfig {
    let config::Nvme { path, capacity_bytes, free_floor_bytes, io } = nvme;
    let io = match io {
        config::NvmeIo::Auto => tpad_store::NvmeIo::Auto,
        config::NvmeIo::IoUring => tpad_store::NvmeIo::IoUring,
        config::NvmeIo::Threads => tpad_store::NvmeIo::Threads,
    };
    NvmeConfig { path, capacity_bytes, free_floor_bytes, io }
}

fn hierarchy(dram: &config::Dram, fetch: config::Fetch) -> HierarchyConfig {
    let config::Dram { capacity_bytes, tier_bytes } = dram;
    let mut hierarchy = HierarchyConfig::new(*capacity_bytes);
    hierarchy.dram.class_budgets = tier_bytes.clone();
    let config::Fetch { least_ranges, most_ranges } = fetch;
    hierarchy.fetch.least_ranges = least_ranges;
    hierarchy.fetch.most_ranges = most_ranges;
    hierarchy
}

fn pages(engine: &Arc<Engine>, registry: Registry) -> Pages {
    let (ready, status) = (Arc::clone(engine), Arc::clone(engine));
    Pages {
        ready: Arc::new(move || match ready.ready() {
            Readiness::Ready => Ok(()),
            Readiness::NotReady(missing) => Err(missing),
        }),
        status: Arc::new(move || serde_json::to_string(&status.status())),
        registry: Arc::new(registry),
    }
}

//! `AdminService`: what the daemon serves is changed, by peers of its own
//! machine.
//!
//! **Invariant:** no method answers a peer that is not local: the whole service
//! stands behind [`local_peers_only`].

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tpad_engine::{Engine, Evictions, LONGEST_PIN, LoadOutcome, Loaded, ModelConfig, Target};
use tpad_proto::v1;
use tpad_proto::v1::admin_service_server::AdminService;
use tpad_proto::v1::reload_model_request;
use tpad_store::{Medium, OriginOptions};

use super::call::Call;
use super::scope::{amount, read_scope};
use super::status;
use crate::edge::Peer;

/// The longest root or base, in bytes: paths have at most 4096 on Linux.
const LONGEST_ROOT_BYTES: usize = 4096;

/// Bases that one request may allow.
const ALLOWED_BASES: usize = 64;

/// The longest name of a pin's owner, in bytes.
const LONGEST_OWNER_BYTES: usize = 128;

/// What administration needs besides the engine.
#[derive(Clone, Debug)]
pub(crate) struct AdminOptions {
    /// How the roots of models are reached that are added at run time.
    pub(crate) origin: OriginOptions,
    /// Cancelled to ask whoever runs the daemon to drain it.
    pub(crate) drain: CancellationToken,
    /// What a drain waits at most.
    pub(crate) drain_deadline: Duration,
}

/// Changes an engine.
#[derive(Debug)]
pub(super) struct Admin {
    engine: Arc<Engine>,
    default_deadline: Duration,
    options: AdminOptions,
}

impl Admin {
    pub(super) fn new(
        engine: Arc<Engine>,
        default_deadline: Duration,
        options: AdminOptions,
    ) -> Self {
        Self { engine, default_deadline, options }
    }
}

/// Refuses peers of other machines before their request is read: nothing says
/// who they are. So is whoever did not come through the edge.
pub(super) fn local_peers_only(request: Request<()>) -> Result<Request<()>, Status> {
    let local = request.extensions().get::<Peer>().is_some_and(Peer::is_local);
    if local {
        Ok(request)
    } else {
        Err(status::peer_not_local(&Call::of(&request, Duration::ZERO)))
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn load_model(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<v1::LoadModelResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let v1::LoadModelRequest { model, root, allowed_bases, origin_of } = request.into_inner();
        check_name(&model).map_err(|problem| status::invalid("model", &problem, &call))?;
        check_root(&root).map_err(|problem| status::invalid("root", &problem, &call))?;
        if allowed_bases.len() > ALLOWED_BASES {
            let problem = format!("{} bases, at most {ALLOWED_BASES} are", allowed_bases.len());
            return Err(status::invalid("allowed_bases", &problem, &call));
        }
        for (at, base) in allowed_bases.iter().enumerate() {
            let field = format!("allowed_bases[{at}]");
            check_root(base).map_err(|problem| status::invalid(&field, &problem, &call))?;
        }
        let origin = if origin_of.is_empty() {
            self.options.origin.clone()
        } else {
            self.engine.origin_of(&origin_of).map_err(|error| call.refuse(&error))?
        };
        let tier_sets = Default::default();
        let config = ModelConfig { name: model, root, allowed_bases, origin, tier_sets };
        let loaded = self.engine.add(config, call.deadline).await;
        let loaded = loaded.map_err(|error| call.refuse(&error))?;
        Ok(Response::new(v1::LoadModelResponse { loaded: Some(describe(&loaded)) }))
    }

    async fn reload_model(
        &self,
        request: Request<v1::ReloadModelRequest>,
    ) -> Result<Response<v1::ReloadModelResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let v1::ReloadModelRequest { model, target } = request.into_inner();
        let target = match target {
            None => Target::Known,
            Some(reload_model_request::Target::Revision(revision)) => Target::Revision(revision),
            Some(reload_model_request::Target::Follow(_)) => Target::Root,
        };
        let loaded = self.engine.reload_to(&model, target, call.deadline).await;
        let loaded = loaded.map_err(|error| call.refuse(&error))?;
        Ok(Response::new(v1::ReloadModelResponse { loaded: Some(describe(&loaded)) }))
    }

    async fn unload_model(
        &self,
        request: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let unloaded = self.engine.unload(&request.into_inner().model).await;
        let last = unloaded.map_err(|error| call.refuse(&error))?.generation;
        Ok(Response::new(v1::UnloadModelResponse {
            revision: last.as_ref().map_or(0, |generation| generation.revision()),
            generation: last.as_ref().map_or(0, |generation| generation.number()),
        }))
    }

    async fn drain(
        &self,
        _: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        // At once, so that whoever has the answer sees a daemon that is not ready.
        self.engine.drain();
        self.options.drain.cancel();
        let deadline_ms = self.options.drain_deadline.as_millis().try_into().unwrap_or(u64::MAX);
        Ok(Response::new(v1::DrainResponse { deadline_ms }))
    }

    async fn pin(
        &self,
        request: Request<v1::PinRequest>,
    ) -> Result<Response<v1::PinResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let v1::PinRequest { model, owner, scope, ttl_ms } = request.into_inner();
        check_owner(&owner, &call)?;
        let scope = read_scope(scope.unwrap_or_default(), &call)?;
        let ttl = Duration::from_millis(ttl_ms);
        if ttl.is_zero() || ttl > LONGEST_PIN {
            let problem =
                format!("{ttl_ms} is not above 0 and at most {}", LONGEST_PIN.as_millis());
            return Err(status::invalid("ttl_ms", &problem, &call));
        }
        let pinned = self.engine.pin(&model, &owner, scope, ttl, call.deadline).await;
        let pinned = pinned.map_err(|error| call.refuse(&error))?;
        Ok(Response::new(v1::PinResponse {
            held: Some(amount(pinned.held)),
            revision: pinned.revision,
            renewed: pinned.renewed,
        }))
    }

    async fn unpin(
        &self,
        request: Request<v1::UnpinRequest>,
    ) -> Result<Response<v1::UnpinResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let v1::UnpinRequest { model, owner, scope } = request.into_inner();
        check_owner(&owner, &call)?;
        let scope = scope.map(|scope| read_scope(scope, &call)).transpose()?;
        let unpinned = self.engine.unpin(&model, &owner, scope.as_ref());
        let (pins, held) = unpinned.map_err(|error| call.refuse(&error))?;
        Ok(Response::new(v1::UnpinResponse { pins, held: Some(amount(held)) }))
    }

    async fn evict(
        &self,
        request: Request<v1::EvictRequest>,
    ) -> Result<Response<v1::EvictResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let level = match request.get_ref().level() {
            v1::CostClass::Unspecified => None,
            v1::CostClass::Hbm => Some(Medium::Hbm),
            v1::CostClass::Dram => Some(Medium::Dram),
            v1::CostClass::Nvme => Some(Medium::Nvme),
            _ => return Err(status::invalid("level", "hbm, dram or nvme is expected", &call)),
        };
        let v1::EvictRequest { model, scope, .. } = request.into_inner();
        let scope = read_scope(scope.unwrap_or_default(), &call)?;
        let evicted = self.engine.evict(&model, &scope, level, call.deadline).await;
        let Evictions { hbm, dram, nvme, pinned } = evicted.map_err(|error| call.refuse(&error))?;
        Ok(Response::new(v1::EvictResponse {
            hbm: Some(amount(hbm)),
            dram: Some(amount(dram)),
            nvme: Some(amount(nvme)),
            pinned: Some(amount(pinned)),
        }))
    }
}

fn describe(loaded: &Loaded) -> v1::LoadedModel {
    let outcome = match loaded.outcome {
        LoadOutcome::Loaded => v1::LoadOutcome::Loaded,
        LoadOutcome::Reloaded => v1::LoadOutcome::Reloaded,
        LoadOutcome::Unchanged => v1::LoadOutcome::Unchanged,
    };
    v1::LoadedModel {
        outcome: outcome.into(),
        revision: loaded.generation.revision(),
        generation: loaded.generation.number(),
    }
}

fn check_owner(owner: &str, call: &Call) -> Result<(), Status> {
    if (1..=LONGEST_OWNER_BYTES).contains(&owner.len()) && !owner.chars().any(char::is_control) {
        return Ok(());
    }
    let problem =
        format!("1 to {LONGEST_OWNER_BYTES} bytes without control characters are expected");
    Err(status::invalid("owner", &problem, call))
}

/// As for the configuration's models: names are labels of metrics.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is missing: say what requests shall call the model".to_owned());
    }
    if name.len() > 256 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("is longer than 256 bytes or has white space or control characters".to_owned());
    }
    Ok(())
}

fn check_root(root: &str) -> Result<(), String> {
    if root.is_empty() {
        return Err(
            "is missing: give a directory or URL, such as \"s3://bucket/prefix\"".to_owned()
        );
    }
    if root.len() > LONGEST_ROOT_BYTES {
        return Err(format!("{} bytes, at most {LONGEST_ROOT_BYTES} are read", root.len()));
    }
    if !root.contains("://") && !root.starts_with('/') {
        return Err("a path starts with /: nobody knows where the daemon was started".to_owned());
    }
    Ok(())
}

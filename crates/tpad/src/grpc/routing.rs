//! `RoutingService`: which experts a router may pick.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tpad_engine::{Engine, EngineError, MaskRequest, Residency};
use tpad_manifest::{CostClass, MAX_TIER_SET_ENTRIES, TierSet};
use tpad_proto::v1::routing_service_server::RoutingService;
use tpad_proto::v1::watch_routing_mask_response::Event;
use tpad_proto::v1::{self, WatchRoutingMaskResponse};
use tpad_store::ErrorKind;

use super::call::Call;
use super::status;

/// The longest id or name of a TierSet that is looked up, in bytes: longer ones
/// exist nowhere, and unknown ones come back in the reply.
const LONGEST_NAME_BYTES: usize = 128;

/// Answers from an engine.
#[derive(Debug)]
pub(super) struct Routing {
    engine: Arc<Engine>,
    default_deadline: Duration,
}

/// A watch: what it asks for, and what its client has.
struct Watch {
    engine: Arc<Engine>,
    model: String,
    request: MaskRequest,
    changes: watch::Receiver<u64>,
    /// For each computation: the watch itself has no end.
    patience: Duration,
    call: Call,
    /// The etag that the client named, before the first message.
    known: Option<String>,
    last: Option<Last>,
}

/// What was sent last.
#[derive(PartialEq, Eq)]
enum Last {
    Mask(String),
    /// By its reason: a failing model's words differ at each attempt.
    None(&'static str),
}

impl Routing {
    pub(super) fn new(engine: Arc<Engine>, default_deadline: Duration) -> Self {
        Self { engine, default_deadline }
    }
}

#[tonic::async_trait]
impl RoutingService for Routing {
    type WatchRoutingMaskStream = BoxStream<'static, Result<WatchRoutingMaskResponse, Status>>;

    async fn get_routing_mask(
        &self,
        request: Request<v1::GetRoutingMaskRequest>,
    ) -> Result<Response<v1::GetRoutingMaskResponse>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let v1::GetRoutingMaskRequest { model, tier_set, omit_sources, etag, resident } =
            request.into_inner();
        let request = MaskRequest {
            set: read_set(tier_set, &call)?,
            sources: !omit_sources,
            resident: resident.map(|resident| read_residency(resident, &call)).transpose()?,
        };
        let found = self.engine.mask(&model, &request, call.deadline).await;
        let found = found.map_err(|error| call.refuse(&error))?;
        let mask = tpad_proto::routing_mask(&found.mask, found.generation);
        let mask = if mask.etag == etag { unchanged(mask) } else { mask };
        Ok(Response::new(v1::GetRoutingMaskResponse { mask: Some(mask) }))
    }

    async fn watch_routing_mask(
        &self,
        request: Request<v1::WatchRoutingMaskRequest>,
    ) -> Result<Response<Self::WatchRoutingMaskStream>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let v1::WatchRoutingMaskRequest { model, tier_set, omit_sources, etag } =
            request.into_inner();
        let set = read_set(tier_set, &call)?;
        // A model that loads later may come; one that is not configured will not.
        self.engine.view(&model).map_err(|error| call.refuse(&error))?;
        let watch = Watch {
            changes: self.engine.watch_models(),
            engine: Arc::clone(&self.engine),
            model,
            request: MaskRequest { set, sources: !omit_sources, resident: None },
            patience: self.default_deadline,
            call,
            known: Some(etag),
            last: None,
        };
        let events = stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            match watch.next().await {
                Ok(event) => {
                    Some((Ok(WatchRoutingMaskResponse { event: Some(event) }), Some(watch)))
                }
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(events.boxed()))
    }
}

impl Watch {
    /// The mask as it is now, then what it changes to.
    async fn next(&mut self) -> Result<Event, Status> {
        loop {
            if self.last.is_some() && self.changes.changed().await.is_err() {
                return Err(self.call.refuse(&EngineError::Stopping));
            }
            // Marked before the model is looked at, so that no change is lost.
            self.changes.mark_unchanged();
            let deadline = Instant::now() + self.patience;
            let (event, now) = match self.engine.mask(&self.model, &self.request, deadline).await {
                Ok(found) => {
                    let mask = tpad_proto::routing_mask(&found.mask, found.generation);
                    let now = Last::Mask(mask.etag.clone());
                    let known = self.known.take().is_some_and(|known| known == mask.etag);
                    (Event::Mask(if known { unchanged(mask) } else { mask }), now)
                }
                Err(error) if may_pass(&error) => {
                    let reason = error.reason();
                    let message = error.to_string();
                    let none = v1::NoMask { reason: reason.to_owned(), message };
                    (Event::None(none), Last::None(reason))
                }
                Err(error) => return Err(self.call.refuse(&error)),
            };
            if self.last.as_ref() != Some(&now) {
                self.last = Some(now);
                return Ok(event);
            }
        }
    }
}

/// Whether a change of the model can mend the error: then there is no mask for
/// a while, and the watch goes on.
fn may_pass(error: &EngineError) -> bool {
    match error {
        EngineError::UnknownModel { .. }
        | EngineError::ModelLoading { .. }
        | EngineError::ModelFailed { .. } => true,
        EngineError::Mask { .. } => error.kind() != ErrorKind::InvalidArgument,
        _ => false,
    }
}

/// The same mask for a client that has its content.
fn unchanged(mask: v1::RoutingMask) -> v1::RoutingMask {
    tpad_proto::unchanged_mask(mask.revision, mask.generation, mask.etag)
}

fn read_set(set: Option<v1::TierSet>, call: &Call) -> Result<TierSet, Status> {
    let invalid = |problem: &str| status::invalid("tier_set", problem, call);
    let set = match set {
        None => TierSet::Default,
        Some(set) => TierSet::try_from(set).map_err(|error| invalid(&error.to_string()))?,
    };
    let names = match &set {
        TierSet::Default => &[][..],
        TierSet::Tiers(tiers) => tiers,
        TierSet::Named(name) | TierSet::UpTo(name) => std::slice::from_ref(name),
    };
    if names.len() > MAX_TIER_SET_ENTRIES {
        let count = names.len();
        return Err(invalid(&format!(
            "{count} tiers, at most {MAX_TIER_SET_ENTRIES} are looked up"
        )));
    }
    if let Some(long) = names.iter().find(|name| name.len() > LONGEST_NAME_BYTES) {
        let problem =
            format!("a name has {} bytes, at most {LONGEST_NAME_BYTES} are looked up", long.len());
        return Err(invalid(&problem));
    }
    Ok(set)
}

fn read_residency(resident: v1::Residency, call: &Call) -> Result<Residency, Status> {
    let level = v1::CostClass::try_from(resident.level).ok().map(CostClass::try_from);
    match level {
        Some(Ok(level)) if level != CostClass::Unavailable => {
            Ok(Residency { level, layers: resident.layers })
        }
        _ => {
            let problem = "hbm, dram, nvme or object_store is expected";
            Err(status::invalid("resident.level", problem, call))
        }
    }
}

//! `ExpertService`: parameters by key.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};
use tpad_engine::{Engine, Selected, Selection};
use tpad_manifest::{ExpertKey, TierId};
use tpad_proto::WireError;
use tpad_proto::v1::expert_service_server::ExpertService;
use tpad_proto::v1::{
    self, BlockPart, FetchDenseRequest, FetchDenseResponse, FetchExpertsRequest,
    FetchExpertsResponse, FetchFileRequest, FetchFileResponse, FetchRoutersRequest,
    FetchRoutersResponse, FileStart, PrefetchRequest, PrefetchResponse,
    fetch_file_response::Part as FilePart,
};

use super::call::Call;
use super::look_ahead::Budget;
use super::prefetch;
use super::resume::Resume;
use super::scope::read_scope;
use super::status;
use super::stream::{BlockStream, PAYLOAD_BYTES};

/// What a fetch sends, or how it ends.
pub(super) type Reply<T> = BoxStream<'static, Result<T, Status>>;

/// Fetches from an engine.
#[derive(Debug)]
pub(super) struct Experts {
    engine: Arc<Engine>,
    default_deadline: Duration,
    ahead: Budget,
}

impl Experts {
    pub(super) fn new(engine: Arc<Engine>, default_deadline: Duration, ahead: Budget) -> Self {
        Self { engine, default_deadline, ahead }
    }

    /// The blocks of a selection, each message wrapped for its method.
    fn reply<T: 'static>(
        &self,
        selected: Selected,
        resume: Option<v1::Resume>,
        call: Call,
        wrap: fn(BlockPart) -> T,
    ) -> Result<Response<Reply<T>>, Status> {
        let resume = Resume::read(resume, &selected, &call)?;
        let parts = BlockStream::new(selected, resume, call, &self.ahead);
        Ok(Response::new(parts.map(move |part| part.map(wrap)).boxed()))
    }
}

#[tonic::async_trait]
impl ExpertService for Experts {
    type FetchExpertsStream = Reply<FetchExpertsResponse>;
    type FetchRoutersStream = Reply<FetchRoutersResponse>;
    type FetchDenseStream = Reply<FetchDenseResponse>;
    type FetchFileStream = Reply<FetchFileResponse>;
    type PrefetchStream = Reply<PrefetchResponse>;

    async fn fetch_experts(
        &self,
        request: Request<FetchExpertsRequest>,
    ) -> Result<Response<Self::FetchExpertsStream>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let FetchExpertsRequest { model, keys, blocks, tiers, layers, resume } =
            request.into_inner();
        let generation = self.engine.open(&model).map_err(|error| call.refuse(&error))?;
        let selection = Selection {
            keys: read_all("keys", keys, ExpertKey::try_from, &call)?,
            blocks: read_all("blocks", blocks, TryInto::try_into, &call)?,
            tiers: read_tiers(&tiers, &call)?,
            layers,
        };
        let selected = generation.select(&selection, call.deadline).await;
        let selected = selected.map_err(|error| call.refuse(&error))?;
        self.reply(selected, resume, call, |part| FetchExpertsResponse { part: Some(part) })
    }

    async fn fetch_routers(
        &self,
        request: Request<FetchRoutersRequest>,
    ) -> Result<Response<Self::FetchRoutersStream>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let FetchRoutersRequest { model, tiers, layers, resume } = request.into_inner();
        let generation = self.engine.open(&model).map_err(|error| call.refuse(&error))?;
        let tiers = read_tiers(&tiers, &call)?;
        let selected = generation.routers(&tiers, &layers, call.deadline).await;
        let selected = selected.map_err(|error| call.refuse(&error))?;
        self.reply(selected, resume, call, |part| FetchRoutersResponse { part: Some(part) })
    }

    async fn fetch_dense(
        &self,
        request: Request<FetchDenseRequest>,
    ) -> Result<Response<Self::FetchDenseStream>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let FetchDenseRequest { model, names, resume } = request.into_inner();
        let generation = self.engine.open(&model).map_err(|error| call.refuse(&error))?;
        let selected = generation.dense(&names, call.deadline).await;
        let selected = selected.map_err(|error| call.refuse(&error))?;
        self.reply(selected, resume, call, |part| FetchDenseResponse { part: Some(part) })
    }

    async fn fetch_file(
        &self,
        request: Request<FetchFileRequest>,
    ) -> Result<Response<Self::FetchFileStream>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let FetchFileRequest { model, name } = request.into_inner();
        let generation = self.engine.open(&model).map_err(|error| call.refuse(&error))?;
        let file = generation.file(&name, call.deadline).await;
        let (record, mut bytes) = file.map_err(|error| call.refuse(&error))?;
        let start = FilePart::Start(FileStart {
            name,
            revision: generation.revision(),
            generation: generation.number(),
            bytes: record.bytes,
            digest: bytes::Bytes::from_owner(*record.digest.as_bytes()),
        });
        let payload = std::iter::from_fn(move || {
            let piece = bytes.split_to(bytes.len().min(PAYLOAD_BYTES));
            (!piece.is_empty()).then_some(FilePart::Payload(piece))
        });
        let parts = std::iter::once(start).chain(payload);
        let parts = parts.map(|part| Ok(FetchFileResponse { part: Some(part) }));
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn prefetch(
        &self,
        request: Request<PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        let call = Call::of(&request, self.default_deadline);
        let PrefetchRequest { model, scope } = request.into_inner();
        let scope = read_scope(scope.unwrap_or_default(), &call)?;
        let prefetch = self.engine.prefetch(&model, &scope, call.deadline).await;
        let prefetch = prefetch.map_err(|error| call.refuse(&error))?;
        Ok(Response::new(prefetch::answers(prefetch, call)))
    }
}

/// Reads every entry of a repeated field, or says which one is wrong.
fn read_all<W, T>(
    field: &str,
    wire: Vec<W>,
    read: impl Fn(W) -> Result<T, WireError>,
    call: &Call,
) -> Result<Vec<T>, Status> {
    let entries = wire.into_iter().enumerate().map(|(n, entry)| {
        let wrong = |e: WireError| status::invalid(&format!("{field}[{n}]"), &e.to_string(), call);
        read(entry).map_err(wrong)
    });
    entries.collect()
}

fn read_tiers(tiers: &[String], call: &Call) -> Result<Vec<TierId>, Status> {
    let entries = tiers.iter().enumerate().map(|(n, tier)| {
        tier.parse().map_err(|error: tpad_manifest::TierIdError| {
            status::invalid(&format!("tiers[{n}]"), &error.to_string(), call)
        })
    });
    entries.collect()
}

//! From an HTTP/2 request to the gRPC routes: named, admitted or refused early, given a deadline.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower_service::Service;
use tracing::Instrument;

use super::account::{Account, Books};
use super::direct::Direct;
use super::in_flight::{InFlight, NoPlace, PeerName, Place, Share};
use super::metrics::EdgeMetrics;
use super::peer::Peer;
use super::refusal;
use super::reply::{Deadline, ReplyBody};
use super::request::{
    Malformed, REQUEST_ID, RequestBody, RequestDeadline, RequestId, RequestIds, timeout,
};
use super::stream::StreamState;
use crate::config::{Deadlines, Limits};

/// Methods of this package have one request message, which must come in time, and
/// all but [`WATCHES`] an end: they get a deadline even when the caller names none.
/// Health watches and reflection do not.
const OWN_PACKAGE: &str = "/tpad.";

/// Methods of the package whose replies have no end: a drain ends them.
const WATCHES: [&str; 1] = ["/tpad.v1.RoutingService/WatchRoutingMask"];

/// What the other methods' streams may bring over their life, which nothing else
/// ends: names of services and symbols.
const TALK_BYTES: usize = 64 << 10;

/// What all gRPC connections share.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) limits: Limits,
    pub(super) deadlines: Deadlines,
    pub(super) metrics: EdgeMetrics,
    routes: Routes,
    direct: Option<Direct>,
    /// Of everything that is served, by `package.Service/Method`.
    books: HashMap<String, Arc<Books>>,
    /// Of everything else.
    others: Arc<Books>,
    requests: Arc<Semaphore>,
    in_flight: Arc<InFlight>,
    ids: RequestIds,
    drain: CancellationToken,
}

/// What answers requests.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) routes: Routes,
    pub(super) direct: Option<Direct>,
    pub(super) methods: HashSet<String>,
}

/// One connection's way to the gateway.
#[derive(Clone, Debug)]
pub(super) struct ConnectionService {
    gateway: Arc<Gateway>,
    peer: Peer,
    /// The peer in logs.
    name: Arc<str>,
    share: Arc<Share>,
}

type Reply = Response<ReplyBody>;

impl Gateway {
    pub(super) fn new(
        Services { routes, direct, methods }: Services,
        limits: Limits,
        deadlines: Deadlines,
        metrics: EdgeMetrics,
        drain: CancellationToken,
        threads: usize,
    ) -> Self {
        let in_flight = InFlight::new(
            limits.in_flight_bytes,
            limits.in_flight_bytes_per_connection,
            threads,
            &metrics,
        );
        let books = methods.iter().map(|method| (method.clone(), Books::of(method, &metrics)));
        Self {
            limits,
            deadlines,
            routes: routes.prepare(),
            direct,
            books: books.collect(),
            others: Books::of("unknown", &metrics),
            requests: Arc::new(Semaphore::new(limits.requests)),
            in_flight: Arc::new(in_flight),
            ids: RequestIds::new(),
            drain,
            metrics,
        }
    }

    /// Runs as what serves the stream.
    async fn answer(&self, mut request: Request<Incoming>, from: &ConnectionService) -> Reply {
        let ConnectionService { peer, name, share, .. } = from;
        let stream = StreamState::current();
        let id = self.ids.name(request.headers());
        let path = request.uri().path().trim_start_matches('/');
        let books = Arc::clone(self.books.get(path).unwrap_or(&self.others));
        let own = request.uri().path().starts_with(OWN_PACKAGE);
        let bounded = own && !WATCHES.contains(&request.uri().path());
        let span =
            tracing::info_span!("request", id = id.as_str(), method = books.method(), peer = %name);

        let admitted = self.admit(share, &id);
        let deadline = self.deadline(request.headers(), bounded, &id);
        let (place, refusal) = match (admitted, &deadline) {
            (Err(refusal), _) => (None, Some(refusal)),
            (Ok(_), Err(status)) => (None, Some(status.clone())),
            (Ok(place), Ok(_)) => (Some(place), None),
        };
        let mut account = Account::open(books, id.clone(), span.clone(), place);
        let deadline = deadline.unwrap_or_default();
        if let Some(deadline) = deadline {
            stream.set_deadline(deadline);
            request.extensions_mut().insert(RequestDeadline(deadline));
        }
        let response = match refusal {
            Some(refusal) => refusal.into_http(),
            None => {
                request.extensions_mut().insert(id.clone());
                peer.describe(request.extensions_mut());
                self.route(request, own, deadline, &id).instrument(span).await
            }
        };
        // A drain waits for replies that have an end; the others it ends.
        let drain = (!bounded).then(|| Box::pin(self.drain.clone().cancelled_owned()));
        let deadline = deadline.map(Deadline::new);
        let (parts, body) = Self::head(response, &id, &mut account).into_parts();
        let body = ReplyBody::new(body, deadline, drain, stream, Arc::clone(share), account);
        Response::from_parts(parts, body)
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        one_message: bool,
        deadline: Option<Instant>,
        id: &RequestId,
    ) -> Response<tonic::body::Body> {
        let request = request.map(|body| {
            let patience = one_message.then_some(self.limits.progress_deadline);
            let most = self.limits.request_bytes;
            let most = if one_message { most } else { most.min(TALK_BYTES) };
            let in_flight = Arc::clone(&self.in_flight);
            RequestBody::new(body, most, in_flight, patience, id.clone())
        });
        let response = async {
            match &self.direct {
                Some(direct) if direct.serves(request.uri().path()) => {
                    direct.call(request.map(tonic::body::Body::new)).await
                }
                _ => {
                    let Ok(response) = self.routes.clone().call(request).await;
                    response
                }
            }
        };
        let response = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, response).await,
            None => Ok(response.await),
        };
        match response {
            Ok(response) if announced_too_much(&response) => {
                refusal::request_too_large(id, self.limits.request_bytes as u64).into_http()
            }
            Ok(response) => response,
            Err(_) => refusal::deadline(id, "before the reply began").into_http(),
        }
    }

    /// Names the request in its response, and records it at once if nothing follows the headers.
    fn head(
        mut response: Response<tonic::body::Body>,
        id: &RequestId,
        account: &mut Account,
    ) -> Response<tonic::body::Body> {
        account.keep(response.extensions_mut().remove());
        if let Ok(mut id) = HeaderValue::from_str(id.as_str()) {
            // It never comes again: HTTP/2 is not to keep it for later replies.
            id.set_sensitive(true);
            response.headers_mut().insert(REQUEST_ID, id);
        }
        if http_body::Body::is_end_stream(response.body()) {
            account.finish(Some(response.headers()));
        }
        response
    }

    /// A place for the request, or why it is better tried again later: known before
    /// anything of it is read.
    fn admit(&self, share: &Share, id: &RequestId) -> Result<Place, Status> {
        if share.saturated() {
            return Err(refusal::saturated(id));
        }
        share.enter(&self.requests).map_err(|no_place| match no_place {
            NoPlace::Full => refusal::too_many_requests(id, self.limits.requests),
            NoPlace::OfPeer => refusal::too_many_of_one(id, self.limits.requests),
        })
    }

    /// The caller's deadline within `deadlines.max`, else the default for calls that have an end.
    fn deadline(
        &self,
        headers: &HeaderMap,
        bounded: bool,
        id: &RequestId,
    ) -> Result<Option<Instant>, Status> {
        let own = timeout(headers).map_err(|Malformed| refusal::malformed_timeout(id))?;
        let timeout = match (own, bounded) {
            (Some(own), true) => own.min(self.deadlines.max),
            (Some(own), false) => own,
            (None, true) => self.deadlines.default,
            (None, false) => return Ok(None),
        };
        // Beyond the clock's range is no deadline at all.
        Ok(Instant::now().checked_add(timeout))
    }
}

/// Whether tonic has refused a message by its announced length, before its bytes
/// came: with a code that the services do not have, and without the request's name.
fn announced_too_much(response: &Response<tonic::body::Body>) -> bool {
    let code = response.headers().get("grpc-status");
    code.is_some_and(|code| Code::from_bytes(code.as_bytes()) == Code::OutOfRange)
}

impl ConnectionService {
    pub(super) fn new(gateway: Arc<Gateway>, peer: Peer) -> Self {
        let share = Arc::new(gateway.in_flight.join(PeerName::of(&peer)));
        Self { gateway, peer, name: peer.to_string().into(), share }
    }

    /// What the connection may hold and write.
    pub(super) fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share)
    }
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.gateway.answer(request, &this).await) })
    }
}

//! A daemon that answers with a script, however wrong the script is.

use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt as _, stream};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use tpad_manifest::BlockId;
use tpad_proto::v1;
use tpad_proto::v1::expert_service_server::{ExpertService, ExpertServiceServer};
use tpad_proto::v1::model_service_server::{ModelService, ModelServiceServer};

/// What the daemon answers with.
pub(crate) struct Script {
    parts: Vec<v1::BlockPart>,
    /// Ends a fetch with this status.
    pub(crate) last: Option<Status>,
    /// Never ends a fetch.
    pub(crate) hang: bool,
    /// Turns this many fetches away with this status.
    pub(crate) turned_away: (u32, Option<Status>),
    /// Answers a file request.
    pub(crate) file: Option<(v1::FileStart, Vec<u8>)>,
    /// Answers list requests; a page's token is the number of the next.
    pub(crate) pages: Vec<v1::ListBlocksResponse>,
}

impl Script {
    /// Answers fetches with these messages.
    pub(crate) fn of(parts: impl IntoIterator<Item = v1::BlockPart>) -> Self {
        Self {
            parts: parts.into_iter().collect(),
            last: None,
            hang: false,
            turned_away: (0, None),
            file: None,
            pages: Vec::new(),
        }
    }
}

/// The message that opens a fetch.
pub(crate) fn start(blocks: u64, bytes: u64) -> v1::BlockPart {
    part(v1::block_part::Part::Start(v1::StreamStart {
        model: "m".to_owned(),
        revision: 4,
        generation: 2,
        blocks,
        bytes,
        resumed: false,
    }))
}

/// The message that opens expert t/0/`expert` at layer 3, of two tensors that
/// share `image` half and half.
pub(crate) fn block(expert: u32, image: &[u8]) -> v1::BlockPart {
    let half = image.len() as u64 / 2;
    let tensor = |name: &str, shape: Vec<u64>, offset| v1::Tensor {
        name: name.to_owned(),
        dtype: "U8".to_owned(),
        shape,
        offset,
        bytes: half,
        projection: v1::Projection::Up.into(),
        part: v1::Part::Weight.into(),
        values_per_element: 1,
        ..v1::Tensor::default()
    };
    let key = v1::ExpertKey { tier: "t".to_owned(), group: 0, expert };
    let key = v1::ExpertAtLayer { key: Some(key), layer: 3 };
    part(v1::block_part::Part::Block(v1::Block {
        key: Some(v1::BlockKey { key: Some(v1::block_key::Key::Expert(key)) }),
        block_id: BlockId::of(image).as_bytes().to_vec().into(),
        image_bytes: image.len() as u64,
        tensors: vec![tensor("w", vec![half], 0), tensor("s", vec![half / 16, 16], half)],
        source_expert: Some(9),
        router_column: Some(8),
        medium: v1::Medium::Dram.into(),
        ordinal: None,
        offset: 0,
    }))
}

/// The next bytes of an image.
pub(crate) fn payload(bytes: &[u8]) -> v1::BlockPart {
    part(v1::block_part::Part::Payload(bytes.to_vec().into()))
}

fn part(part: v1::block_part::Part) -> v1::BlockPart {
    v1::BlockPart { part: Some(part) }
}

/// The running daemon; it ends when dropped.
pub(crate) struct Daemon {
    address: String,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

struct State {
    script: Script,
    calls: AtomicU32,
    timeout: Mutex<Option<String>>,
    dropped: Notify,
}

impl Daemon {
    /// Listens on a free port.
    pub(crate) async fn start(script: Script) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        Self::run(address, script, move |server| async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            server.serve_with_incoming(TcpListenerStream::new(listener)).await
        })
    }

    /// Listens on a free port with TLS.
    pub(crate) async fn start_with_tls(script: Script, tls: ServerTlsConfig) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = format!("https://{}", listener.local_addr().expect("bound"));
        let server = Server::builder().tls_config(tls).expect("a certificate");
        Self::run_on(server, address, script, move |server| async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            server.serve_with_incoming(TcpListenerStream::new(listener)).await
        })
    }

    /// Listens on a Unix socket.
    pub(crate) async fn start_at(path: &Path, script: Script) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(path).expect("a free path");
        listener.set_nonblocking(true).expect("a socket");
        Self::run(format!("unix://{}", path.display()), script, move |server| async move {
            let listener = UnixListener::from_std(listener).expect("a socket");
            server.serve_with_incoming(UnixListenerStream::new(listener)).await
        })
    }

    fn run<F>(
        address: String,
        script: Script,
        serve: impl FnOnce(tonic::transport::server::Router) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
    {
        Self::run_on(Server::builder(), address, script, serve)
    }

    fn run_on<F>(
        mut server: Server,
        address: String,
        script: Script,
        serve: impl FnOnce(tonic::transport::server::Router) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
    {
        let state = Arc::new(State {
            script,
            calls: AtomicU32::new(0),
            timeout: Mutex::new(None),
            dropped: Notify::new(),
        });
        let scripted = Scripted(Arc::clone(&state));
        let server = server
            .add_service(ExpertServiceServer::new(scripted.clone()))
            .add_service(ModelServiceServer::new(scripted));
        // A runtime of its own, so that killing it closes every connection.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.spawn(serve(server));
        Self { address, state, runtime: Some(runtime) }
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    /// Fetches so far.
    pub(crate) fn calls(&self) -> u32 {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// The last fetch's `grpc-timeout` header.
    pub(crate) fn timeout(&self) -> Option<String> {
        self.state.timeout.lock().expect("not poisoned").clone()
    }

    /// Waits until a reply was dropped before its end.
    pub(crate) async fn stream_was_dropped(&self) {
        self.state.dropped.notified().await;
    }

    /// Ends the daemon and its connections at once.
    pub(crate) fn kill(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Clone)]
struct Scripted(Arc<State>);

struct OnDrop(Arc<State>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.dropped.notify_one();
    }
}

type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Scripted {
    fn answer<R, T: Send + 'static>(
        &self,
        request: &Request<R>,
        wrap: fn(v1::BlockPart) -> T,
    ) -> Result<Response<Parts<T>>, Status> {
        let header = request.metadata().get("grpc-timeout");
        *self.0.timeout.lock().expect("not poisoned") =
            header.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let call = self.0.calls.fetch_add(1, Ordering::SeqCst);
        let script = &self.0.script;
        if let (times, Some(status)) = &script.turned_away
            && call < *times
        {
            return Err(status.clone());
        }
        let parts: Vec<_> = script.parts.iter().cloned().map(|part| Ok(wrap(part))).collect();
        let last = script.last.clone().map(Err);
        let parts = stream::iter(parts).chain(stream::iter(last));
        if !script.hang {
            return Ok(Response::new(parts.boxed()));
        }
        let guard = OnDrop(Arc::clone(&self.0));
        let hang = stream::once(async move {
            let _guard = guard;
            std::future::pending().await
        });
        Ok(Response::new(parts.chain(hang).boxed()))
    }
}

#[tonic::async_trait]
impl ExpertService for Scripted {
    type FetchExpertsStream = Parts<v1::FetchExpertsResponse>;
    type FetchRoutersStream = Parts<v1::FetchRoutersResponse>;
    type FetchDenseStream = Parts<v1::FetchDenseResponse>;
    type FetchFileStream = Parts<v1::FetchFileResponse>;
    type PrefetchStream = Parts<v1::PrefetchResponse>;

    async fn fetch_experts(
        &self,
        request: Request<v1::FetchExpertsRequest>,
    ) -> Result<Response<Self::FetchExpertsStream>, Status> {
        self.answer(&request, |part| v1::FetchExpertsResponse { part: Some(part) })
    }

    async fn fetch_routers(
        &self,
        request: Request<v1::FetchRoutersRequest>,
    ) -> Result<Response<Self::FetchRoutersStream>, Status> {
        self.answer(&request, |part| v1::FetchRoutersResponse { part: Some(part) })
    }

    async fn fetch_dense(
        &self,
        request: Request<v1::FetchDenseRequest>,
    ) -> Result<Response<Self::FetchDenseStream>, Status> {
        self.answer(&request, |part| v1::FetchDenseResponse { part: Some(part) })
    }

    async fn fetch_file(
        &self,
        _request: Request<v1::FetchFileRequest>,
    ) -> Result<Response<Self::FetchFileStream>, Status> {
        use v1::fetch_file_response::Part;
        let (start, bytes) = self.0.script.file.clone().expect("a scripted file");
        let parts = [Part::Start(start), Part::Payload(bytes.into())];
        let parts = parts.map(|part| Ok(v1::FetchFileResponse { part: Some(part) }));
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn prefetch(
        &self,
        _request: Request<v1::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

#[tonic::async_trait]
impl ModelService for Scripted {
    type WatchModelStream = Parts<v1::WatchModelResponse>;

    async fn watch_model(
        &self,
        _request: Request<v1::WatchModelRequest>,
    ) -> Result<Response<Self::WatchModelStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn list_models(
        &self,
        _request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn describe_model(
        &self,
        _request: Request<v1::DescribeModelRequest>,
    ) -> Result<Response<v1::DescribeModelResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn list_blocks(
        &self,
        request: Request<v1::ListBlocksRequest>,
    ) -> Result<Response<v1::ListBlocksResponse>, Status> {
        let token = &request.get_ref().page_token;
        let page = if token.is_empty() { 0 } else { token.parse().expect("a number") };
        Ok(Response::new(self.0.script.pages[page].clone()))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

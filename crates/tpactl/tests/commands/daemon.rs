//! A small daemon: one expert, one that does not exist, one with a wrong byte,
//! and a list that never answers.

use std::pin::Pin;
use std::sync::Mutex;
use std::sync::mpsc;

use futures::{Stream, StreamExt as _, stream};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tpad_manifest::BlockId;
use tpad_proto::v1;
use tpad_proto::v1::expert_service_server::{ExpertService, ExpertServiceServer};
use tpad_proto::v1::model_service_server::{ModelService, ModelServiceServer};

/// The status document, with spacing that no serializer would keep.
pub(crate) const STATUS: &str = "{\"uptime\":  1,\"a\":[ ]}";

/// The image of the only expert.
pub(crate) const IMAGE: &[u8] = &[7; 256];

/// The running daemon; it ends when dropped.
pub(crate) struct Daemon {
    pub(crate) address: String,
    listed: Mutex<mpsc::Receiver<()>>,
    runtime: Option<Runtime>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener =
            runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let (list, listed) = mpsc::sync_channel(1);
        let server = Server::builder()
            .add_service(ExpertServiceServer::new(Small))
            .add_service(ModelServiceServer::new(Lists(list)));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, listed: Mutex::new(listed), runtime: Some(runtime) }
    }

    /// Waits until somebody asked for the list of models.
    pub(crate) fn wait_for_list(&self) {
        let listed = self.listed.lock().expect("not poisoned");
        listed.recv().expect("the daemon runs");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Small;

struct Lists(mpsc::SyncSender<()>);

type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ExpertService for Small {
    type FetchExpertsStream = Parts<v1::FetchExpertsResponse>;
    type FetchRoutersStream = Parts<v1::FetchRoutersResponse>;
    type FetchDenseStream = Parts<v1::FetchDenseResponse>;
    type FetchFileStream = Parts<v1::FetchFileResponse>;
    type PrefetchStream = Parts<v1::PrefetchResponse>;

    async fn fetch_experts(
        &self,
        request: Request<v1::FetchExpertsRequest>,
    ) -> Result<Response<Self::FetchExpertsStream>, Status> {
        use v1::block_part::Part;
        let request = request.into_inner();
        let [key] = &request.keys[..] else { return Err(Status::invalid_argument("one key")) };
        let image = match key.expert {
            0 => IMAGE.to_vec(),
            2 => vec![8; IMAGE.len()],
            _ => return Err(Status::not_found("group 0 has experts 0 and 2")),
        };
        let start = Part::Start(v1::StreamStart {
            model: request.model,
            revision: 4,
            generation: 1,
            blocks: 1,
            bytes: IMAGE.len() as u64,
            resumed: false,
        });
        let at = v1::ExpertAtLayer { key: Some(key.clone()), layer: request.layers[0] };
        let block = Part::Block(v1::Block {
            key: Some(v1::BlockKey { key: Some(v1::block_key::Key::Expert(at)) }),
            block_id: BlockId::of(IMAGE).as_bytes().to_vec().into(),
            image_bytes: IMAGE.len() as u64,
            tensors: vec![v1::Tensor {
                name: "layers.3.experts.up".to_owned(),
                dtype: "U8".to_owned(),
                shape: vec![4, 64],
                bytes: IMAGE.len() as u64,
                projection: v1::Projection::Up.into(),
                part: v1::Part::Weight.into(),
                values_per_element: 1,
                sliced: true,
                ..v1::Tensor::default()
            }],
            source_expert: Some(9),
            router_column: Some(9),
            medium: v1::Medium::ObjectStore.into(),
            ordinal: None,
            offset: 0,
        });
        let parts = [start, block, Part::Payload(image.into())].map(|part| {
            Ok(v1::FetchExpertsResponse { part: Some(v1::BlockPart { part: Some(part) }) })
        });
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn fetch_routers(
        &self,
        _request: Request<v1::FetchRoutersRequest>,
    ) -> Result<Response<Self::FetchRoutersStream>, Status> {
        Err(Status::not_found("no routers"))
    }

    async fn fetch_dense(
        &self,
        _request: Request<v1::FetchDenseRequest>,
    ) -> Result<Response<Self::FetchDenseStream>, Status> {
        Err(Status::not_found("no dense tensors"))
    }

    async fn fetch_file(
        &self,
        _request: Request<v1::FetchFileRequest>,
    ) -> Result<Response<Self::FetchFileStream>, Status> {
        Err(Status::not_found("no files"))
    }

    async fn prefetch(
        &self,
        _request: Request<v1::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

#[tonic::async_trait]
impl ModelService for Lists {
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
        // One signal is enough for everybody who waits.
        let _full = self.0.try_send(());
        std::future::pending().await
    }

    async fn describe_model(
        &self,
        _request: Request<v1::DescribeModelRequest>,
    ) -> Result<Response<v1::DescribeModelResponse>, Status> {
        Err(Status::not_found("no such model"))
    }

    async fn list_blocks(
        &self,
        _request: Request<v1::ListBlocksRequest>,
    ) -> Result<Response<v1::ListBlocksResponse>, Status> {
        Err(Status::not_found("no such model"))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse { status_json: STATUS.to_owned() }))
    }
}

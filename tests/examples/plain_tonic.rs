//! The server that people would write with tonic's generated code: `FetchExperts`
//! from memory, as messages of 1 MiB. What tpad's own body of frames is measured
//! against.
//!
//! Prints its address, serves until its standard input ends, and then prints the
//! processor time that it took.
//!
//! usage: plain_tonic [BLOCKS [BLOCK_BYTES]]

#![expect(clippy::print_stdout, reason = "a measurement says where it listens")]

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};
use tpad_proto::v1;
use tpad_proto::v1::block_part::Part;
use tpad_proto::v1::expert_service_server::{ExpertService, ExpertServiceServer};
use tpad_tests::counts::Counts;

/// As tpad's own messages.
const PAYLOAD_BYTES: usize = 1 << 20;

type Reply<T> = BoxStream<'static, Result<T, Status>>;

/// The blocks, each the same bytes.
struct Blocks {
    count: usize,
    image: Bytes,
}

fn wrap(part: Part) -> Result<v1::FetchExpertsResponse, Status> {
    Ok(v1::FetchExpertsResponse { part: Some(v1::BlockPart { part: Some(part) }) })
}

#[tonic::async_trait]
impl ExpertService for Blocks {
    type FetchExpertsStream = Reply<v1::FetchExpertsResponse>;
    type FetchRoutersStream = Reply<v1::FetchRoutersResponse>;
    type FetchDenseStream = Reply<v1::FetchDenseResponse>;
    type FetchFileStream = Reply<v1::FetchFileResponse>;
    type PrefetchStream = Reply<v1::PrefetchResponse>;

    async fn fetch_experts(
        &self,
        _: Request<v1::FetchExpertsRequest>,
    ) -> Result<Response<Self::FetchExpertsStream>, Status> {
        let image = self.image.clone();
        let blocks = (0..self.count).flat_map(move |_| {
            let header = v1::Block { image_bytes: image.len() as u64, ..v1::Block::default() };
            let pieces: Vec<Bytes> = (0..image.len())
                .step_by(PAYLOAD_BYTES)
                .map(|from| image.slice(from..image.len().min(from + PAYLOAD_BYTES)))
                .collect();
            std::iter::once(wrap(Part::Block(header)))
                .chain(pieces.into_iter().map(|piece| wrap(Part::Payload(piece))))
        });
        Ok(Response::new(stream::iter(blocks).boxed()))
    }

    async fn fetch_routers(
        &self,
        _: Request<v1::FetchRoutersRequest>,
    ) -> Result<Response<Self::FetchRoutersStream>, Status> {
        Err(Status::unimplemented("experts alone"))
    }

    async fn fetch_dense(
        &self,
        _: Request<v1::FetchDenseRequest>,
    ) -> Result<Response<Self::FetchDenseStream>, Status> {
        Err(Status::unimplemented("experts alone"))
    }

    async fn fetch_file(
        &self,
        _: Request<v1::FetchFileRequest>,
    ) -> Result<Response<Self::FetchFileStream>, Status> {
        Err(Status::unimplemented("experts alone"))
    }

    async fn prefetch(
        &self,
        _: Request<v1::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        Err(Status::unimplemented("experts alone"))
    }
}

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let count = numbers.next().unwrap_or(16);
    let bytes = numbers.next().unwrap_or(16_515_072);
    let blocks = Blocks { count, image: vec![7; bytes].into() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let ended = tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin()));
    let served = tonic::transport::Server::builder().add_service(ExpertServiceServer::new(blocks));
    tokio::select! {
        served = served.serve_with_incoming(incoming) => served.expect("it serves"),
        read = ended => drop(read.expect("it is joined").expect("it ends")),
    }
    println!("{}", Counts::of(std::process::id()).cpu_seconds);
}

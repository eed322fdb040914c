//! What small requests take: an empty call of a plain tonic server, and of the
//! daemon a health check, a mask and a fetch of 4 KiB, on an idle daemon, beside
//! another client's bulk load, and on the connection that carries the load.
//!
//! Starts the `tpad` beside it and itself as the plain server. Prints a JSON
//! document of medians over the rounds, in microseconds.
//!
//! usage: small_requests [--rounds N] [--calls N] [--bulk CONNECTIONS]

#![expect(clippy::print_stdout, reason = "a measurement prints its result")]

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tpad_proto::v1;
use tpad_proto::v1::expert_service_client::ExpertServiceClient;
use tpad_proto::v1::routing_service_client::RoutingServiceClient;
use tpad_tests::bulk;
use tpad_tests::process::Process;
use tpad_tests::reader::{FRAME_BYTES, Reader};

/// Until sockets' buffers have grown to what the load wants.
const WARM: Duration = Duration::from_secs(1);

/// Percentiles of one kind of call in one state, round by round.
type Rounds = BTreeMap<String, Vec<[f64; 2]>>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    if arguments.first().is_some_and(|first| first == "plain") {
        return runtime.block_on(plain());
    }
    let (mut rounds, mut calls, mut bulk) = (5, 2000, 4);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { unreachable!("{pair:?} is no option with a value") };
        let value: usize = value.parse().expect("a number");
        match name.as_str() {
            "--rounds" => rounds = value,
            "--calls" => calls = value,
            "--bulk" => bulk = value,
            other => unreachable!("no option is called {other}"),
        }
    }
    runtime.block_on(measure(rounds, calls, bulk));
}

/// tonic's own server with its health service alone.
async fn plain() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    let (_reporter, health) = tonic_health::server::health_reporter();
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = tonic::transport::Server::builder().add_service(health);
    served.serve_with_incoming(incoming).await.expect("it serves");
}

async fn measure(rounds: usize, calls: usize, connections: usize) {
    let this = std::env::current_exe().expect("a program knows its path");
    let mut plain = tokio::process::Command::new(this);
    let mut plain =
        plain.arg("plain").stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
    let mut said = String::new();
    let output = plain.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut said).await.expect("its address");
    let plain_address: SocketAddr = said.trim().parse().expect("an address");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let config =
        format!("{}[levels.dram]\ncapacity = \"512MiB\"\n", bulk::section(directory.path()));
    let daemon = Process::serve(directory.path(), &config).await;
    let plain_channel = channel(plain_address).await;
    let own = channel(daemon.grpc()).await;

    let mut found = Rounds::new();
    for _ in 0..rounds {
        let empty = time(calls, || check(plain_channel.clone())).await;
        found.entry("empty call of plain tonic".to_owned()).or_default().push(empty);
        all_kinds(&mut found, "idle", &own, calls).await;
        let load = Load::start(&daemon, connections).await;
        all_kinds(&mut found, "beside another's bulk", &own, calls / 4).await;
        load.stop().await;
        let on_own = bulk_on(&own, 4).await;
        all_kinds(&mut found, "on a connection with bulk", &own, calls / 4).await;
        drop(on_own);
    }
    let medians: BTreeMap<&String, _> = found
        .iter()
        .map(|(name, rounds)| {
            let of = |n: usize| median(rounds.iter().map(|round| round[n]).collect());
            (name, json!({ "p50_us": of(0), "p99_us": of(1), "rounds": rounds }))
        })
        .collect();
    println!(
        "{:#}",
        json!({ "rounds": rounds, "calls": calls, "bulk": connections, "found": medians })
    );
    let (status, log) = daemon.terminate();
    assert!(status.success(), "{status}\n{log}");
}

async fn all_kinds(found: &mut Rounds, state: &str, channel: &Channel, calls: usize) {
    let mut add =
        |kind: &str, round| found.entry(format!("{kind}, {state}")).or_default().push(round);
    add("health check", time(calls, || check(channel.clone())).await);
    add("mask", time(calls, || mask(channel.clone())).await);
    add("fetch of 4 KiB", time(calls, || small(channel.clone())).await);
}

/// The median and the 99th percentile of so many calls one after the other, in microseconds.
async fn time<F: Future<Output = ()>>(calls: usize, call: impl Fn() -> F) -> [f64; 2] {
    let mut taken = Vec::with_capacity(calls);
    for n in 0..calls + calls / 10 {
        let began = Instant::now();
        call().await;
        // The first ones warm up.
        if n >= calls / 10 {
            taken.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    taken.sort_by(f64::total_cmp);
    [taken[taken.len() / 2], taken[taken.len() * 99 / 100]]
}

async fn check(channel: Channel) {
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    answer.expect("it is healthy");
}

async fn mask(channel: Channel) {
    let request = v1::GetRoutingMaskRequest { model: bulk::MODEL.to_owned(), ..Default::default() };
    RoutingServiceClient::new(channel).get_routing_mask(request).await.expect("a mask");
}

async fn small(channel: Channel) {
    let request = v1::FetchDenseRequest {
        model: bulk::MODEL.to_owned(),
        names: vec![bulk::SMALL_TENSOR.to_owned()],
        ..v1::FetchDenseRequest::default()
    };
    let answer = ExpertServiceClient::new(channel).fetch_dense(request).await;
    let mut messages = answer.expect("it is served").into_inner();
    let mut bytes = 0;
    while let Some(message) = messages.message().await.expect("all of it") {
        if let Some(v1::BlockPart { part: Some(v1::block_part::Part::Payload(payload)) }) =
            message.part
        {
            bytes += payload.len();
        }
    }
    assert_eq!(bytes, 4096);
}

/// Fetches without end on the connection itself.
async fn bulk_on(channel: &Channel, streams: usize) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let mut client =
            ExpertServiceClient::new(channel.clone()).max_decoding_message_size(8 << 20);
        tasks.spawn(async move {
            loop {
                let request = v1::FetchExpertsRequest {
                    model: bulk::MODEL.to_owned(),
                    tiers: vec!["base".to_owned()],
                    ..v1::FetchExpertsRequest::default()
                };
                let answer = client.fetch_experts(request).await.expect("it is served");
                let mut messages = answer.into_inner();
                while messages.message().await.expect("all of it").is_some() {}
            }
        });
    }
    tokio::time::sleep(WARM).await;
    tasks
}

/// Another client's bulk load.
struct Load {
    tasks: JoinSet<()>,
    taken: Arc<AtomicU64>,
}

impl Load {
    async fn start(daemon: &Process, connections: usize) -> Self {
        let (mut tasks, taken) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
        for n in 0..connections {
            let from = Some(Ipv4Addr::new(127, 0, 0, 9));
            let reader = Reader::connect(daemon.grpc(), from, FRAME_BYTES).await;
            let (mut reader, taken) = (reader.expect("it is accepted"), Arc::clone(&taken));
            tasks.spawn(async move {
                for n in n as u64.. {
                    let asked = reader.ask(bulk::FETCH_EXPERTS, &bulk::one_block(n)).await;
                    asked.expect("the connection stays");
                    reader.take(&taken).await.expect("the connection stays");
                }
            });
        }
        tokio::time::sleep(WARM).await;
        Self { tasks, taken }
    }

    async fn stop(mut self) {
        assert!(self.taken.load(Ordering::Relaxed) > 1 << 30, "the load was none");
        self.tasks.shutdown().await;
    }
}

async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("a URL");
    let endpoint = endpoint
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(64 << 20)
        .tcp_nodelay(true);
    endpoint.connect().await.expect("it answers")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

//! The image, run as the manifests deploy it: import, serve, fetch, stop.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use safetensors::SafeTensors;
use serde_json::Value;
use tokio::net::TcpStream;
use tpad::memory::MemoryLimit;
use tpad_tests::checkpoint::{fixture, said, upload};
use tpad_tests::container::{Container, Image, Running, Volumes, volumes};
use tpad_tests::http;
use tpad_tests::kube::Rendered;
use tpad_tests::reference::{Exact, Reference, Tensors};
use tpad_tests::scene::{Scene, play};
use tpad_tests::weed::{ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, Weed};

const PAGES: ([u8; 4], u16) = ([127, 0, 0, 1], 7071);

/// A debug build on a loaded machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What a host needs for the overlays' capacity of 12 GiB and what is beside it.
const ENOUGH_MEMORY: u64 = 14 << 30;

fn secrets() -> [(&'static str, String); 5] {
    [
        ("AWS_ENDPOINT_URL", Weed::shared().endpoint()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()),
    ]
}

fn texts(value: &Value) -> Vec<String> {
    let values = value.as_array().into_iter().flatten();
    values.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("the file was written");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let exact = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let shape = view.shape().iter().map(|dim| *dim as u64).collect();
        let tensor = Exact { dtype: view.dtype().to_string(), shape, bytes: view.data().to_vec() };
        (name.to_owned(), tensor)
    };
    file.iter().map(exact).collect()
}

/// The tensors of one expert in every layer of the checkpoint.
fn expected(reference: &Reference, expert: u32) -> Tensors {
    let of = reference.experts.iter().filter(|((_, number), _)| *number == expert);
    of.flat_map(|(_, tensors)| tensors.clone()).collect()
}

/// A daemon of an overlay, from the image.
struct Daemon {
    rendered: Rendered,
    container: Container,
    running: Running,
    volumes: Volumes,
}

impl Daemon {
    async fn start(overlay: &str, kind: &str, image: &Image, directory: &Path) -> Self {
        let rendered = Rendered::of(overlay);
        let workload = &rendered.one(kind)["spec"];
        let spec = &workload["template"]["spec"];
        let maps = rendered.all("ConfigMap");
        let volumes = volumes(spec, &workload["volumeClaimTemplates"], &maps, directory);
        let container = Container::of(spec, image, &volumes, &secrets(), directory);
        let mut start = container.clone();
        if MemoryLimit::detect().bytes < ENOUGH_MEMORY {
            // The capacity of the ConfigMap would be refused, rightly.
            start = start.with(&["--dram".to_owned(), "1GiB".to_owned()]);
        }
        let mut daemon = Self { running: start.start(), rendered, container, volumes };
        let ready = tokio::time::timeout(START_DEADLINE, daemon.wait_until_ready()).await;
        assert!(ready.is_ok(), "{overlay} is not ready:\n{}", daemon.running.log());
        daemon
    }

    /// As the kubelet does: asks the readiness probe's page again and again.
    async fn wait_until_ready(&mut self) {
        let pages = SocketAddr::from(PAGES);
        loop {
            assert!(!self.running.ended(), "tpad ended:\n{}", self.running.log());
            if TcpStream::connect(pages).await.is_ok() && http::get(pages, "/readyz").await.0 == 200
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The user and groups of the manifest, no capability, a root that cannot be
    /// written: else the test would prove less than it says.
    fn assert_confined(&self, user: &str) {
        let status = self.running.proc("status");
        let line = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name));
            found.expect("a line of the process's status").split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(line("Uid:"), [user; 4]);
        assert_eq!(line("Gid:"), ["65532"; 4]);
        for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(line("NoNewPrivs:"), ["1"]);
        let mounts = self.running.proc("mountinfo");
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"));
        let options = root.and_then(|line| line.split(' ').nth(5)).expect("a root");
        assert!(options.split(',').any(|option| option == "ro"), "{options}");
    }

    /// The image's HEALTHCHECK, run beside the daemon.
    fn health(&self, image: &Image) -> bool {
        let check = texts(&image.config()["Healthcheck"]["Test"]);
        let (kind, command) = check.split_first().expect("a health check");
        assert_eq!(kind, "CMD", "no shell");
        self.container.exec(command).run().status.success()
    }
}

/// Runs the import Job, once for all overlays.
fn import(image: &Image, directory: &Path) {
    let rendered = Rendered::of("import");
    let spec = &rendered.one("Job")["spec"]["template"]["spec"];
    let volumes = volumes(spec, &Value::Null, &[], directory);
    let output = Container::of(spec, image, &volumes, &secrets(), directory).run();
    assert!(output.status.success(), "the import: {}", said(&output));
}

/// Runs the sample worker and returns what it has fetched; without the socket's
/// group it fetches nothing.
fn worker(image: &Image, directory: &Path) -> Tensors {
    let rendered = Rendered::of("overlays/node/worker");
    let spec = &rendered.one("Pod")["spec"];
    let volumes = volumes(spec, &Value::Null, &[], directory);
    let fetched = volumes["out"].join("expert.safetensors");

    let mut stranger = spec.clone();
    stranger["securityContext"]["supplementalGroups"] = Value::Array(Vec::new());
    let output = Container::of(&stranger, image, &volumes, &[], directory).run();
    assert!(!output.status.success() && !fetched.exists(), "a stranger: {}", said(&output));

    let output = Container::of(spec, image, &volumes, &[], directory).run();
    assert!(output.status.success(), "the worker: {}", said(&output));
    read(&fetched)
}

fn room(scene: &Scene, name: &str) -> std::path::PathBuf {
    let path = scene.directory().join(name);
    std::fs::create_dir(&path).expect("a new directory");
    path
}

#[test]
fn the_image_serves_as_the_manifests_deploy_it() {
    play(async |scene| {
        let image = Image::built();
        upload(&fixture("mixtral"), "s3://models/mixtral").await;
        let reference = Reference::read(&fixture("mixtral"));
        import(&image, &room(scene, "import"));

        let stop = image.config()["StopSignal"].as_str().expect("a stop signal");
        for (overlay, kind, user) in
            [("overlays/node", "DaemonSet", "0"), ("overlays/cache", "StatefulSet", "65532")]
        {
            let place = room(scene, kind);
            let daemon = Daemon::start(overlay, kind, &image, &place).await;
            daemon.assert_confined(user);
            assert!(daemon.health(&image), "{overlay}");
            if kind == "DaemonSet" {
                let fetched = worker(&image, &room(scene, "worker"));
                assert_eq!(fetched, expected(&reference, 0), "{overlay}");
            }
            // What the documentation shows for `kubectl exec`.
            let reload = ["/usr/local/bin/tpactl", "load", "mixtral"].map(str::to_owned);
            let output = daemon.container.exec(&reload).run();
            assert!(output.status.success(), "{overlay}: {}", said(&output));
            // Over the network, into the daemon's only writable place.
            let fetch = "/usr/local/bin/tpactl --addr http://127.0.0.1:7070 fetch --model mixtral \
                --tier base --group 0 --expert 3 --out /run/tpad/expert.safetensors";
            let fetch: Vec<String> = fetch.split_whitespace().map(str::to_owned).collect();
            let output = daemon.container.exec(&fetch).run();
            assert!(output.status.success(), "{overlay}: {}", said(&output));
            let fetched = read(&daemon.volumes["run"].join("expert.safetensors"));
            assert_eq!(fetched, expected(&reference, 3), "{overlay}");

            let Daemon { running, container, rendered, .. } = daemon;
            let log = running.log();
            let status = running.stop(stop);
            assert_eq!((status.code(), status.signal()), (Some(0), None), "{log}");
            assert!(!log.contains("\"WARN\"") && !log.contains("\"ERROR\""), "{log}");
            let check = texts(&image.config()["Healthcheck"]["Test"]);
            let unhealthy = container.exec(&check[1..]).run();
            assert!(!unhealthy.status.success(), "{} is stopped", rendered.name);
        }
    });
}

#[test]
fn the_image_has_what_the_programs_need_and_no_more() {
    let image = Image::built();
    let config = image.config();
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/local/bin/tpad"]));
    let labels = &config["Labels"];
    assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(labels["org.opencontainers.image.licenses"], "Apache-2.0");
    for program in ["bin/sh", "usr/bin/sh", "bin/bash", "usr/bin/env", "usr/bin/apt"] {
        assert!(!image.root().join(program).exists(), "{program}: nothing may need it");
    }
    let certificates = image.root().join("etc/ssl/certs/ca-certificates.crt");
    let certificates = std::fs::read_to_string(certificates).expect("authorities for https");
    assert!(certificates.contains("BEGIN CERTIFICATE"));
}

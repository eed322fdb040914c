//! The manifests in `deploy/kustomize`: what a cluster would get is valid, and
//! agrees with the configuration that it carries.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tpad::config::{Config, Origin, Surroundings};
use tpad::memory::{LimitSource, MemoryLimit};
use tpad_tests::checkpoint::said;
use tpad_tests::kube::{self, Rendered, bytes, kustomizations, selects};
use tpad_tests::pod_security::{against_baseline, against_restricted, containers};
use tpad_tests::tools;

/// The overlays, each with the kind of its workload.
const OVERLAYS: [(&str, &str); 2] =
    [("overlays/node", "DaemonSet"), ("overlays/cache", "StatefulSet")];

/// The oldest version that docs/kubernetes.md names, and the newest that the
/// validator knows.
const VERSIONS: [&str; 2] = ["1.30.0", "1.37.0"];

/// Beyond the drain, the process gets a quarter of a second and the kubelet
/// some time to notice.
const GRACE_MARGIN: Duration = Duration::from_secs(5);

/// A daemon of an overlay: its Pod, and the configuration that it would read.
struct Deployed {
    rendered: Rendered,
    kind: &'static str,
    config: Config,
}

impl Deployed {
    fn all() -> [Self; 2] {
        OVERLAYS.map(|(name, kind)| {
            let rendered = Rendered::of(name);
            let config = configuration(&rendered, kind);
            Self { rendered, kind, config }
        })
    }

    fn workload(&self) -> &Value {
        self.rendered.one(self.kind)
    }

    fn pod(&self) -> &Value {
        &self.workload()["spec"]["template"]
    }

    fn container(&self) -> &Value {
        &self.pod()["spec"]["containers"][0]
    }

    /// The number of a port that is given by name or by number.
    fn port(&self, port: &Value) -> u16 {
        let named = |known: &&Value| known["name"] == *port || known["containerPort"] == *port;
        let ports = self.container()["ports"].as_array().expect("ports");
        let found = ports.iter().find(named).expect("a port of the container");
        number(&found["containerPort"]).try_into().expect("a port")
    }
}

/// Reads the configuration that a daemon's container is started with, as the
/// daemon would within the container's memory.
fn configuration(rendered: &Rendered, kind: &str) -> Config {
    let spec = &rendered.one(kind)["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let args: Vec<&str> = array(&container["args"]).iter().filter_map(Value::as_str).collect();
    assert_eq!(args[..2], ["serve", "--config"], "{}", rendered.name);
    let path = PathBuf::from(args[2]);
    let mounts = array(&container["volumeMounts"]);
    let mount = mounts
        .iter()
        .find(|mount| mount["mountPath"].as_str().map(PathBuf::from).as_deref() == path.parent());
    let name = &mount.expect("the configuration is mounted")["name"];
    let volume = array(&spec["volumes"]).iter().find(|volume| volume["name"] == *name);
    let map = &volume.expect("the volume")["configMap"]["name"];
    let found =
        rendered.all("ConfigMap").into_iter().find(|found| found["metadata"]["name"] == *map);
    let file = path.file_name().and_then(|name| name.to_str()).expect("a file's name");
    let text = found.expect("the ConfigMap that is mounted")["data"][file].as_str();
    let surroundings = Surroundings {
        memory: MemoryLimit {
            bytes: bytes(&container["resources"]["limits"]["memory"]),
            source: LimitSource::Cgroup("the container's limit".into()),
        },
        socket: "/nowhere".into(),
        origin: Origin::default(),
        disk_bytes: |_| Ok(u64::MAX),
    };
    let config = Config::from_toml(text.expect("the file"), &surroundings);
    config.map_err(|error| format!("{}: {error}", rendered.name)).expect("the daemon takes it")
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

#[test]
fn every_kustomization_passes_the_strict_schemas() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let names = kustomizations();
    for (overlay, _) in OVERLAYS {
        assert!(names.iter().any(|name| name == overlay), "{names:?}");
    }
    for name in names {
        let rendered = Rendered::of(&name);
        for version in VERSIONS {
            let output = kube::validate(directory.path(), &rendered.text, version);
            assert!(output.status.success(), "{name} for {version}: {}", said(&output));
        }
        // The validator would have said so: one unknown field, one wrong type.
        for (right, wrong) in [("\nkind: ", "\nkindd: x\nkind: "), ("  name: ", "  name: 7 #")] {
            assert!(rendered.text.contains(right), "{name}");
            let spoiled = rendered.text.replacen(right, wrong, 1);
            let output = kube::validate(directory.path(), &spoiled, VERSIONS[0]);
            assert!(!output.status.success(), "{name} with {wrong:?} passed");
        }
    }
}

#[test]
fn the_daemon_takes_each_configuration_within_its_containers_memory() {
    for deployed in Deployed::all() {
        let name = &deployed.rendered.name;
        let config = &deployed.config;
        assert_eq!(config.warnings, Vec::<String>::new(), "{name}");
        let listen = &config.listen;
        for (address, port) in [(listen.grpc, "grpc"), (listen.http, "http")] {
            let address = address.unwrap_or_else(|| panic!("{name} does not bind {port}"));
            // Outside loopback, which Config refuses without allow_plaintext.
            assert!(!address.ip().is_loopback(), "{name} {address}");
            assert_eq!(address.port(), deployed.port(&port.into()), "{name} {port}");
        }
        let socket = listen.uds.as_ref().expect("a Unix socket");
        let mounts = array(&deployed.container()["volumeMounts"]);
        let directory = socket.path.parent().and_then(|path| path.to_str());
        assert!(mounts.iter().any(|mount| mount["mountPath"].as_str() == directory), "{name}");
        let env = array(&deployed.container()["env"]);
        let address = format!("unix://{}", socket.path.display());
        assert!(
            env.iter().any(|var| var["name"] == "TPAD_ADDR" && var["value"] == *address),
            "{name}"
        );
    }
}

#[test]
fn memory_has_room_for_the_capacity_and_what_is_beside_it() {
    for deployed in Deployed::all() {
        let resources = &deployed.container()["resources"];
        let limit = bytes(&resources["limits"]["memory"]);
        let capacity = deployed.config.dram.capacity_bytes;
        // docs/operations.md: a tenth and 256 MiB beside the capacity. Volumes
        // in memory are counted with the container that writes them.
        let volumes = array(&deployed.pod()["spec"]["volumes"]).iter();
        let in_memory = volumes.filter(|volume| volume["emptyDir"]["medium"] == "Memory");
        let in_memory: u64 = in_memory.map(|volume| bytes(&volume["emptyDir"]["sizeLimit"])).sum();
        let needed = capacity + capacity / 10 + (256 << 20) + in_memory;
        let name = &deployed.rendered.name;
        assert!(limit >= needed, "{name}: {limit} of memory, {needed} needed");
        assert!(limit / 2 <= capacity, "{name}: half of {limit} is never used by {capacity}");
        // Blocks cannot be reclaimed: what is not requested is not there.
        assert_eq!(resources["requests"]["memory"], resources["limits"]["memory"], "{name}");
    }
}

#[test]
fn the_disk_level_is_on_a_volume_that_outlives_its_container() {
    let mut on_disk = 0;
    for deployed in Deployed::all() {
        let Some(nvme) = &deployed.config.nvme else { continue };
        let mounts = array(&deployed.container()["volumeMounts"]);
        let mount = mounts.iter().find(|mount| {
            mount["mountPath"].as_str().is_some_and(|path| nvme.path.starts_with(path))
        });
        let name = mount.expect("the path is on a volume")["name"].clone();
        let volumes = array(&deployed.pod()["spec"]["volumes"]);
        let in_pod = volumes.iter().find(|volume| volume["name"] == name);
        let passing = in_pod.is_some_and(|volume| !volume["emptyDir"].is_null());
        assert!(!passing, "{}: {name} goes with its Pod", deployed.rendered.name);
        on_disk += 1;
    }
    assert_eq!(on_disk, 1, "the cache has a disk level");
}

#[test]
fn the_grace_period_outlasts_the_drain() {
    for deployed in Deployed::all() {
        let spec = &deployed.pod()["spec"];
        let grace = Duration::from_secs(number(&spec["terminationGracePeriodSeconds"]));
        let before = number(&deployed.container()["lifecycle"]["preStop"]["sleep"]["seconds"]);
        let needed = Duration::from_secs(before) + deployed.config.drain_deadline + GRACE_MARGIN;
        assert!(grace >= needed, "{}: {grace:?}, {needed:?} needed", deployed.rendered.name);
    }
}

#[test]
fn probes_ask_the_pages_that_the_daemon_has() {
    for deployed in Deployed::all() {
        let container = deployed.container();
        let http = deployed.config.listen.http.expect("an HTTP port").port();
        for (probe, page) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            let get = &container[probe]["httpGet"];
            assert_eq!(get["path"], page, "{probe}");
            assert_eq!(deployed.port(&get["port"]), http, "{probe}");
        }
        let annotations = &deployed.pod()["metadata"]["annotations"];
        assert_eq!(annotations["prometheus.io/port"], http.to_string());
        assert_eq!(annotations["prometheus.io/path"], "/metrics");
    }
}

#[test]
fn services_policies_and_budgets_find_the_daemons_and_only_them() {
    let import = Rendered::of("import");
    let worker = Rendered::of("overlays/node/worker");
    let others: Vec<&Value> = [&import, &worker].into_iter().flat_map(Rendered::pods).collect();
    for deployed in Deployed::all() {
        let name = &deployed.rendered.name;
        let labels = &deployed.pod()["metadata"]["labels"];
        let grpc = deployed.config.listen.grpc.expect("gRPC").port();
        let http = deployed.config.listen.http.expect("HTTP").port();
        let service = &deployed.rendered.one("Service")["spec"];
        let policy = &deployed.rendered.one("NetworkPolicy")["spec"];
        let own = &deployed.workload()["spec"]["selector"]["matchLabels"];
        let mut selectors = vec![own, &service["selector"], &policy["podSelector"]["matchLabels"]];
        selectors.extend(
            deployed
                .rendered
                .all("PodDisruptionBudget")
                .into_iter()
                .map(|budget| &budget["spec"]["selector"]["matchLabels"]),
        );
        for selector in selectors {
            assert!(selects(selector, labels), "{name}: {selector} misses {labels}");
            for other in &others {
                assert!(!selects(selector, &other["metadata"]["labels"]), "{name}: {selector}");
            }
        }
        for port in array(&service["ports"]) {
            assert_eq!(deployed.port(&port["targetPort"]), grpc, "{name}");
            assert_eq!(port["port"], grpc, "{name}");
        }
        assert_eq!(policy["policyTypes"], serde_json::json!(["Ingress", "Egress"]), "{name}");
        let rules = array(&policy["ingress"]).iter();
        let admitted = rules.map(|rule| {
            // A rule without `from` would admit everyone.
            assert!(!array(&rule["from"]).is_empty(), "{name}: {rule}");
            array(&rule["ports"]).iter().map(|port| deployed.port(&port["port"])).collect()
        });
        assert_eq!(admitted.collect::<Vec<Vec<u16>>>(), [[grpc], [http]], "{name}");
    }
    let cache = Rendered::of("overlays/cache");
    let service = cache.one("Service");
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(cache.one("StatefulSet")["spec"]["serviceName"], service["metadata"]["name"]);
    assert_eq!(cache.one("PodDisruptionBudget")["spec"]["maxUnavailable"], 1);
}

#[test]
fn pods_keep_to_the_security_level_of_their_namespace() {
    for name in kustomizations() {
        let rendered = Rendered::of(&name);
        for pod in rendered.pods() {
            let spec = &pod["spec"];
            for container in containers(spec) {
                let context = &container["securityContext"];
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}");
            }
            assert_eq!(spec["automountServiceAccountToken"], false, "{name}");
            if name.starts_with("overlays/node") {
                // The one thing that the overlay needs the privileged level for.
                let against = against_baseline(spec);
                assert_eq!(against.len(), 1, "{name}: {against:?}");
                assert!(against[0].starts_with("hostPath volume"), "{name}: {against:?}");
            } else {
                assert_eq!(against_restricted(spec), Vec::<String>::new(), "{name}");
            }
        }
    }
    for (overlay, level) in [("overlays/node", "privileged"), ("overlays/cache", "restricted")] {
        let rendered = Rendered::of(overlay);
        let namespace = &rendered.one("Namespace")["metadata"];
        assert_eq!(namespace["labels"]["pod-security.kubernetes.io/enforce"], level, "{overlay}");
        for object in rendered.objects.iter().filter(|object| object["kind"] != "Namespace") {
            assert_eq!(object["metadata"]["namespace"], namespace["name"], "{overlay}");
        }
    }
}

#[test]
fn the_sample_worker_shares_the_nodes_socket() {
    let [node, _] = Deployed::all();
    let worker = Rendered::of("overlays/node/worker");
    let pod = &worker.one("Pod")["spec"];
    let host = |spec: &Value| {
        let volumes = array(&spec["volumes"]).iter();
        let paths = volumes.filter_map(|volume| volume["hostPath"]["path"].as_str());
        paths.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(host(pod), host(&node.pod()["spec"]));
    let group = &node.pod()["spec"]["securityContext"]["runAsGroup"];
    assert!(array(&pod["securityContext"]["supplementalGroups"]).contains(group), "{group}");
    let socket = node.config.listen.uds.as_ref().expect("a socket");
    assert_eq!(socket.mode, 0o660);
    let env = &pod["containers"][0]["env"][0];
    assert_eq!(env["value"], format!("unix://{}", socket.path.display()));
    let model = format!("--model={}", node.config.models[0].name);
    assert!(array(&pod["containers"][0]["args"]).contains(&model.into()));
}

#[test]
fn the_import_makes_what_the_overlays_serve() {
    let import = Rendered::of("import");
    let container = &import.one("Job")["spec"]["template"]["spec"]["containers"][0];
    for deployed in Deployed::all() {
        let model = &deployed.config.models[0];
        let args = array(&container["args"]);
        assert_eq!(args[..2], [Value::from("import"), Value::from(model.root.as_str())]);
        assert!(args.contains(&format!("--model={}", model.name).into()), "{args:?}");
        // Who serves must not be able to write, so not with the same secret.
        let secret = |of: &Value| of["envFrom"][0]["secretRef"]["name"].clone();
        assert_ne!(secret(container), secret(deployed.container()));
    }
}

#[test]
fn one_version_of_the_image_is_deployed() {
    let version = concat!(":", env!("CARGO_PKG_VERSION"));
    for name in kustomizations() {
        let rendered = Rendered::of(&name);
        for container in rendered.pods().iter().flat_map(|pod| containers(&pod["spec"])) {
            let image = container["image"].as_str().expect("an image");
            assert!(image.ends_with(version), "{name}: {image} is not {version}");
        }
    }
}

#[test]
fn the_documentation_names_every_kustomization() {
    let path = tools::workspace().join("docs/kubernetes.md");
    let text = std::fs::read_to_string(path).expect("the documentation");
    for name in kustomizations() {
        assert!(text.contains(&format!("deploy/kustomize/{name}")), "{name}");
    }
    let oldest = VERSIONS[0].trim_end_matches(".0");
    assert!(text.contains(&format!("Kubernetes {oldest}")), "{oldest}");
}

#[test]
fn the_documented_overlay_of_ones_own_keeps_its_configuration() {
    let path = tools::workspace().join("docs/kubernetes.md");
    let text = std::fs::read_to_string(path).expect("the documentation");
    let (_, block) = text.split_once("```yaml\n").expect("the overlay");
    let (kustomization, _) = block.split_once("```").expect("the block's end");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let deploy = tools::workspace().join("deploy");
    let mut copy = Command::new("cp");
    copy.arg("-r").args([&deploy, &directory.path().join("deploy")]);
    assert!(copy.status().expect("cp runs").success());
    let mine = directory.path().join("mine");
    std::fs::create_dir(&mine).expect("a new directory");
    let theirs = std::fs::read_to_string(deploy.join("kustomize/overlays/cache/tpad.toml"));
    let configured = theirs.expect("the overlay's file").replace("12GiB", "24GiB");
    std::fs::write(mine.join("tpad.toml"), configured).expect("it is written");
    std::fs::write(mine.join("kustomization.yaml"), kustomization).expect("it is written");

    let rendered = Rendered::below(directory.path(), "mine");
    // Read through the name that the Pod mounts, within the patched memory.
    let config = configuration(&rendered, "StatefulSet");
    assert_eq!(config.dram.capacity_bytes, 24 << 30);
    assert_eq!(config.warnings, Vec::<String>::new());
    for version in VERSIONS {
        let output = kube::validate(directory.path(), &rendered.text, version);
        assert!(output.status.success(), "{version}: {}", said(&output));
    }
}

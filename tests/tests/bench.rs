//! `tpactl bench` against a real daemon: what it says is what happened.

use std::time::Duration;

use serde_json::Value;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::process::Process;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};

async fn daemon(scene: &Scene) -> Process {
    let checkpoint =
        Checkpoint::import(&fixture("mixtral"), Store::Directory, scene.directory(), None).await;
    let cache = scene.directory().join("cache");
    let config = format!(
        "{}[levels.dram]\ncapacity = \"16MiB\"\n\
         [levels.nvme]\npath = {cache:?}\ncapacity = \"64MiB\"\nfree_floor = \"0\"\n",
        checkpoint.section()
    );
    Process::serve(scene.directory(), &config).await
}

/// Runs it beside what the test does meanwhile.
async fn bench(daemon: &Process, args: &[&str], meanwhile: impl Future<Output = ()>) -> Value {
    let mut command = tpactl();
    command.args(["--addr", &daemon.address(), "--json", "bench"]).args(args);
    let running = tokio::task::spawn_blocking(move || command.output().expect("tpactl runs"));
    meanwhile.await;
    let output = running.await.expect("the thread ends");
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| unreachable!("{value} is no number"))
}

fn percentile(report: &Value, name: &str) -> f64 {
    number(&report["latency_ms"]["percentiles"][name])
}

#[test]
fn it_counts_what_a_daemon_gave() {
    play(async |scene| {
        let daemon = daemon(scene).await;
        let plot = scene.directory().join("latency.svg");
        let plot_text = plot.to_str().expect("text");
        let load = ["fetch", "--model", "mixtral", "--duration", "1", "--warmup", "0.1"];
        let more = ["--concurrency", "4", "--connections", "2", "--plot", plot_text];
        let report = bench(&daemon, &[&load[..], &more].concat(), async {}).await;
        assert_eq!((&report["loop"], &report["connections"]), (&"closed".into(), &2.into()));
        let requests = number(&report["requests"]);
        assert!(requests > 10.0, "{report:#}");
        // Every expert of the fixture has one size.
        let original = Reference::read(&fixture("mixtral"));
        let expert = original.experts.values().next().expect("an expert");
        let image: usize =
            expert.values().map(|tensor| tensor.bytes.len().next_multiple_of(256)).sum();
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let expected = requests * image as f64;
        assert!((number(&report["bytes"]) - expected).abs() < 1.0, "{report:#}");
        assert_eq!(report["blocks"], report["requests"]);
        assert!(report["errors"].as_object().is_some_and(serde_json::Map::is_empty));
        assert!(percentile(&report, "p50") <= percentile(&report, "p99"));
        assert!(percentile(&report, "p99") <= number(&report["latency_ms"]["max"]) * 1.01);
        // The daemon's own count, which began a moment later.
        let reads: f64 = report["reads"].as_object().expect("levels").values().map(number).sum();
        assert!((reads - requests).abs() <= 16.0 + requests * 0.2, "{report:#}");
        for side in ["client", "daemon"] {
            assert!(number(&report[side]["cpu_seconds_per_gb"]) > 0.0, "{report:#}");
        }
        let picture = std::fs::read_to_string(plot).expect("it is drawn");
        assert!(picture.starts_with("<svg") && picture.contains("<polyline points=\""));

        // One step at two layers, and an expert of another model.
        let trace = scene.directory().join("route.csv");
        let text = "turn,phase,step,layer,slot,expert,weight\n0,0,0,0,0,3,0.5\n0,0,0,0,1,5,0.5\n\
                    0,0,0,1,0,7,1\n0,0,0,1,1,99,1\n";
        std::fs::write(&trace, text).expect("written");
        let keys = ["--keys", trace.to_str().expect("text")];
        let report = bench(&daemon, &[&load[..], &keys].concat(), async {}).await;
        let per_request = number(&report["blocks"]) / number(&report["requests"]);
        assert!((per_request - 1.5).abs() < 0.2, "two experts, then one: {report:#}");

        let mask = ["mask", "--model", "mixtral", "--duration", "0.5", "--warmup", "0.1"];
        let report = bench(&daemon, &mask, async {}).await;
        assert!(number(&report["requests"]) > 5.0 && report["bytes"] == 0, "{report:#}");

        let cold = ["cold", "--model", "mixtral", "--tier", "base", "--rounds", "2"];
        let report = bench(&daemon, &cold, async {}).await;
        for round in report["rounds"].as_array().expect("rounds") {
            assert_eq!(round["blocks"], original.experts.len(), "{report:#}");
            assert_eq!(round["reads"]["object_store"], original.experts.len(), "{report:#}");
        }
        daemon.terminate();
    });
}

/// A closed loop asks a stalled daemon nothing, and so hardly notices.
#[test]
fn an_open_loop_charges_a_stall_to_every_request_that_was_due() {
    play(async |scene| {
        let daemon = daemon(scene).await;
        let stall = async || {
            tokio::time::sleep(Duration::from_millis(900)).await;
            daemon.signal("STOP");
            tokio::time::sleep(Duration::from_millis(800)).await;
            daemon.signal("CONT");
        };
        let load = ["fetch", "--model", "mixtral", "--duration", "2", "--warmup", "0.1"];
        let open = ["--concurrency", "64", "--rate", "100"];
        let report = bench(&daemon, &[&load[..], &open].concat(), stall()).await;
        assert_eq!(report["loop"], "open");
        let all = number(&report["requests"]) + number(&report["overdue"]);
        assert!((190.0..=210.0).contains(&all), "{report:#}");
        // Of 200 requests 80 were due meanwhile.
        assert!(percentile(&report, "p90") > 200.0, "{report:#}");
        daemon.terminate();
    });
}

#[test]
fn what_cannot_be_measured_is_said() {
    play(async |scene| {
        let daemon = daemon(scene).await;
        for (args, code) in [
            (vec!["fetch", "--model", "nobody"], 4),
            (vec!["mask", "--model", "nobody", "--duration", "0.1", "--warmup", "0.01"], 4),
            (vec!["fetch", "--model", "mixtral", "--keys", "absent.csv"], 11),
            (vec!["cold", "--model", "mixtral", "--tier", "nowhere"], 4),
        ] {
            let mut command = tpactl();
            command.args(["--addr", &daemon.address(), "bench"]).args(&args);
            let output = command.output().expect("tpactl runs");
            assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        }
        daemon.terminate();
    });
}

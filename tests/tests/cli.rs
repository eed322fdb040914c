//! The two programs, as people and scripts use them.

use std::path::Path;
use std::process::{Command, Output};

use safetensors::SafeTensors;
use serde_json::Value;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::process::Process;
use tpad_tests::reference::{Exact, Reference, Tensors};
use tpad_tests::scene::{Scene, play};
use tpad_tests::tools;

fn run(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(command: &mut Command) -> Value {
    serde_json::from_str(&succeed(command)).expect("JSON")
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

async fn serve(scene: &Scene, name: &str) -> (Checkpoint, Process) {
    let directory = scene.directory();
    let checkpoint = Checkpoint::import(&fixture(name), Store::Directory, directory, None).await;
    let config = format!("{}[levels.dram]\ncapacity = \"16MiB\"\n", checkpoint.section());
    let daemon = Process::serve(directory, &config).await;
    (checkpoint, daemon)
}

#[test]
fn an_imported_expert_is_fetched_into_a_file() {
    play(async |scene| {
        for (name, layer) in [("gpt_oss", 1), ("deepseek_v3_fp8", 2)] {
            let directory = scene.directory().join(format!("{name}-place"));
            std::fs::create_dir(&directory).expect("a new directory");
            let original = fixture(name);
            let checkpoint =
                Checkpoint::import(&original, Store::Directory, &directory, None).await;
            let config = format!("{}[levels.dram]\ncapacity = \"16MiB\"\n", checkpoint.section());
            let daemon = Process::serve(&directory, &config).await;
            let models = json(tpactl().args(["--addr", &daemon.address(), "models", "--json"]));
            let tier = models["models"][0]["tiers"][0].as_str().expect("a tier").to_owned();
            let out = directory.join("expert.safetensors");
            let layers = layer.to_string();
            let fetched = json(
                tpactl()
                    .args(["--addr", &daemon.address(), "fetch", "--json", "--model", name])
                    .args(["--tier", &tier, "--group", "0", "--expert", "3", "--layer", &layers])
                    .arg("--out")
                    .arg(&out),
            );
            assert_eq!(fetched["blocks"][0]["source_expert"], 3);
            assert_eq!(read(&out), Reference::read(&original).experts[&(layer, 3)]);
            let (status, log) = daemon.terminate();
            assert!(status.success(), "{status}\n{log}");
        }
    });
}

#[test]
fn status_is_one_document_for_scripts() {
    play(async |scene| {
        let (checkpoint, daemon) = serve(scene, "mixtral").await;
        let by_flag = json(tpactl().args(["--addr", &daemon.address(), "status", "--json"]));
        let by_variable =
            json(tpactl().env("TPAD_ADDR", daemon.address()).args(["status", "--json"]));
        for status in [by_flag, by_variable] {
            assert_eq!(status["ready"], true, "{status:#}");
            assert_eq!(status["models"][0]["name"], "mixtral");
            assert_eq!(status["models"][0]["state"], "serving");
            assert_eq!(status["models"][0]["root"], checkpoint.root.as_str());
        }
    });
}

#[test]
fn exit_codes_say_what_is_wrong() {
    play(async |scene| {
        let (checkpoint, daemon) = serve(scene, "mixtral").await;
        let code = |command: &mut Command| run(command).status.code();
        let out = scene.directory().join("out");
        let fetch = |model: &str, tier: &str| {
            let mut command = tpactl();
            command.args(["--addr", &daemon.address(), "fetch", "--model", model]);
            command.args(["--tier", tier, "--group", "0", "--expert", "0", "--out"]).arg(&out);
            code(&mut command)
        };
        assert_eq!(fetch("no_such_model", "x"), Some(4));
        assert_eq!(fetch("mixtral", "no_such_tier"), Some(4));
        let nobody = format!("unix://{}", scene.directory().join("nobody.sock").display());
        assert_eq!(code(tpactl().args(["--addr", &nobody, "status"])), Some(3));
        assert_eq!(code(tpactl().args(["fetch", "--model", "m"])), Some(2));
        assert_eq!(code(tpactl().args(["manifest", "check", &checkpoint.root])), Some(0));
        // One byte of one shard is another.
        let shard = Path::new(&checkpoint.root).join("model-00002-of-00005.safetensors");
        let mut bytes = std::fs::read(&shard).expect("the shard");
        *bytes.last_mut().expect("a byte") ^= 1;
        std::fs::write(&shard, bytes).expect("room");
        let check = run(tpactl().args(["manifest", "check", "--json", &checkpoint.root]));
        assert_eq!(check.status.code(), Some(1), "{}", said(&check));
        assert!(!out.exists(), "a failed fetch leaves no file");
    });
}

#[test]
fn a_bad_configuration_is_refused_before_anything_listens() {
    play(async |scene| {
        let path = scene.directory().join("bad.toml");
        let text =
            "[[models]]\nname = \"m\"\nroot = \"/m\"\n[levels.dram]\ncapacity = \"9000TiB\"\n";
        std::fs::write(&path, text).expect("room");
        let mut check = Command::new(tools::program("tpad"));
        let output = run(check.arg("serve").arg("--config").arg(&path).arg("--check-config"));
        assert!(!output.status.success(), "{}", said(&output));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("levels.dram.capacity"), "{said}");
    });
}

#[test]
fn the_demo_runs_to_its_report() {
    play(async |scene| {
        let mut demo = Command::new(tools::program("tpad"));
        demo.args(["demo", "--once"]).env("TMPDIR", scene.directory());
        let report = succeed(&mut demo);
        assert!(report.contains("tier"), "{report}");
        let left: Vec<_> = scene.directory().read_dir().expect("its directory").collect();
        assert!(left.is_empty(), "the demo leaves {left:?}");
    });
}

//! A checkpoint that is imported again with another plan, and the daemon that
//! follows it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tpad_client::{FetchExperts, GetMask};
use tpad_manifest::TierSet;
use tpad_tests::checkpoint::{Checkpoint, fixture, said, tpactl};
use tpad_tests::compare::collect;
use tpad_tests::daemon::Served;
use tpad_tests::scene::{Scene, play};

/// A debug build on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two tiers of a Mixtral.
#[derive(Clone, Copy, Debug)]
struct Choice {
    default: &'static str,
    k_expert: u32,
    placement: &'static str,
    /// The second tier's experts.
    experts: &'static str,
}

const FIRST: Choice =
    Choice { default: r#"["base"]"#, k_expert: 2, placement: "nvme", experts: "6, 7" };

impl Choice {
    fn plan(self) -> String {
        let Self { default, k_expert, placement, experts } = self;
        let unused = if experts == "6, 7" { "" } else { "[unused]\nexperts = \"6\"\n" };
        format!(
            "default_tier_set = {default}\n{unused}\
             [[tiers]]\nid = \"base\"\nk_expert = {k_expert}\n\
             [[tiers.groups]]\nexperts = \"0, 1, 2, 3, 4, 5\"\n\
             [[tiers]]\nid = \"more\"\nk_expert = 1\nplacement = \"{placement}\"\n\
             [[tiers.groups]]\nexperts = \"{experts}\"\n"
        )
    }
}

fn copy(scene: &Scene) -> PathBuf {
    let root = scene.directory().join("mixtral");
    std::fs::create_dir(&root).expect("a new directory");
    for entry in fixture("mixtral").read_dir().expect("the fixture") {
        let path = entry.expect("read").path();
        std::fs::copy(&path, root.join(path.file_name().expect("a name"))).expect("copied");
    }
    root
}

/// Imports it again; the new revision's document.
fn import(scene: &Scene, root: &Path, choice: Choice) -> Value {
    let plan = scene.directory().join("plan.toml");
    std::fs::write(&plan, choice.plan()).expect("written");
    let mut command = tpactl();
    command.arg("import").arg(root).args(["--model", "mixtral", "--json", "--plan"]).arg(&plan);
    command.arg("--state-dir").arg(scene.directory().join("state"));
    let output = command.output().expect("tpactl runs");
    assert!(output.status.success(), "{}", said(&output));
    let mut report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["outcome"], "written", "{report}");
    report["manifest"].take()
}

async fn follows(served: &Served, revision: u64) {
    let look = async {
        loop {
            let status = served.status().await;
            let model = &status["models"][0];
            if model["revision"] == revision {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, look).await;
    if seen.is_err() {
        unreachable!("revision {revision} is not followed: {:#}", served.status().await);
    }
}

/// Experts of the second tier that are fetched, and what a mask says of the
/// first: k and the tiers that requests without a TierSet get.
async fn seen(served: &Served) -> (usize, u32, usize) {
    let request = FetchExperts {
        model: "mixtral".into(),
        tiers: vec!["more".into()],
        ..FetchExperts::default()
    };
    let blocks = collect(served.client().fetch_experts(request).await).await;
    let mask = served.client().routing_mask(GetMask::of("mixtral", TierSet::Default)).await;
    let tiers = mask.expect("a mask").mask.expect("its content").tiers;
    (blocks.len(), tiers[0].k_expert, tiers.len())
}

#[test]
fn an_import_over_another_steps_the_version_by_what_it_breaks_and_daemons_follow() {
    play(async |scene| {
        let root = copy(scene);
        let checkpoint = Checkpoint::import_in_place(&root, Some(&FIRST.plan()));
        let config = format!(
            "follow_interval = \"20ms\"\n{}[levels.dram]\ncapacity = \"16MiB\"\n",
            checkpoint.section()
        );
        let served = Served::start(scene, &config).await;
        assert_eq!(seen(&served).await, (2 * 2, 2, 1));
        let k = Choice { k_expert: 1, ..FIRST };
        let moved = Choice { placement: "dram", ..k };
        let wider = Choice { default: r#"["base", "more"]"#, ..moved };
        let fewer = Choice { experts: "7", ..wider };
        for (revision, choice, version, grown, expected) in [
            (2, k, "2.0", false, (4, 1, 1)),
            (3, moved, "2.0", true, (4, 1, 1)),
            (4, wider, "3.0", false, (4, 1, 2)),
            (5, fewer, "4.0", false, (2, 1, 2)),
        ] {
            let manifest = import(scene, &root, choice);
            assert_eq!(manifest["revision"], revision, "{choice:?}");
            assert_eq!(manifest["model_version"], version, "{choice:?}");
            assert_eq!(manifest["parent"].is_string(), grown, "{choice:?}");
            follows(&served, revision).await;
            assert_eq!(seen(&served).await, expected, "{choice:?}");
            let url = |n: u64| root.join(format!("tpad/revisions/{n}.json"));
            let mut diff = tpactl();
            diff.args(["manifest", "diff"]).arg(url(revision - 1)).arg(url(revision));
            let diff = diff.output().expect("tpactl runs");
            assert!(diff.status.success(), "what breaks is announced: {}", said(&diff));
        }
    });
}

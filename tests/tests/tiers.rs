//! The story of `docs/tiers.md`, as it stands there, with clients that look closely.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tpad_client::{Client, FetchExperts, FetchedBlock, GetMask};
use tpad_manifest::{BlockKey, TierMask, TierSet};
use tpad_tests::compare::collect;
use tpad_tests::process::Process;
use tpad_tests::scene::play;
use tpad_tests::tools;

const PAGE: &str = include_str!("../../docs/tiers.md");

/// A fenced block: what its fence says, and what is in it.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let parts = PAGE.split("\n```").skip(1).step_by(2);
    parts.filter_map(|part| part.split_once('\n')).collect()
}

/// Puts a `python3` in front of the path that brings what the page imports.
fn python(directory: &Path) -> String {
    let bin = directory.join("bin");
    std::fs::create_dir(&bin).expect("a new directory");
    let python = tools::tool("python").display().to_string();
    let stand_in = tools::workspace().join("tests/python/without_torch.py");
    let script = format!("#!/bin/sh\nexec '{python}' '{}' \"$@\"\n", stand_in.display());
    std::fs::write(bin.join("python3"), script).expect("written");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bin.join("python3"), executable).expect("ours");
    let programs = tools::program("tpactl");
    let programs = programs.parent().expect("it is in a directory").display();
    format!("{}:{programs}:{}", bin.display(), std::env::var("PATH").unwrap_or_default())
}

/// Whether a line of `output` holds `expected`, whose `...` stand for anything.
fn says(output: &str, expected: &str) -> bool {
    output.lines().any(|line| {
        let mut rest = Some(line);
        for piece in expected.split("...").map(str::trim) {
            rest = rest.and_then(|rest| rest.split_once(piece)).map(|(_, after)| after);
        }
        rest.is_some()
    })
}

/// What a worker of the old tier sees.
#[derive(Debug, PartialEq)]
struct Seen {
    tiers: Vec<TierMask>,
    k_tier: u32,
    /// Hashes of the bytes that came.
    images: BTreeMap<BlockKey, String>,
}

/// The bytes of the old tier, and the mask of whoever names it.
async fn look(client: &Client) -> Seen {
    let (model, tiers) = ("demo".to_owned(), vec!["base".to_owned()]);
    let request = FetchExperts { model, tiers: tiers.clone(), ..FetchExperts::default() };
    let blocks = collect(client.fetch_experts(request).await).await;
    let mask = client.routing_mask(GetMask::of("demo", TierSet::Tiers(tiers)));
    let mask = mask.await.expect("an answer").mask.expect("a mask");
    let hash = |block: FetchedBlock| blake3::hash(&block.image).to_hex().to_string();
    let images = blocks.into_iter().map(|(key, block)| (key, hash(block))).collect();
    Seen { tiers: mask.tiers, k_tier: mask.k_tier, images }
}

#[test]
fn the_story_of_the_page_goes_as_it_says() {
    play(async |scene| {
        let directory = scene.directory();
        let path = python(directory);
        let script = blocks().into_iter().find(|(fence, _)| *fence == "python");
        let (_, script) = script.expect("the page has a writer");
        std::fs::write(directory.join("write_tier.py"), script).expect("written");
        let mut daemon = None;
        let (over, mut looks, mut bench) = (Arc::new(AtomicBool::new(false)), None, None);
        let mut said = String::new();
        for (fence, block) in blocks() {
            let address = daemon.as_ref().map(Process::address);
            let shell = |line: &str| {
                let mut command = Command::new("sh");
                command.arg("-euc").arg(line).current_dir(directory);
                command.env("PATH", &path).env_remove("TPAD_ADDR");
                command.envs(address.iter().map(|address| ("TPAD_ADDR", address)));
                command
            };
            match (fence, block.trim()) {
                ("sh", lines) => {
                    let output = shell(lines).output().expect("sh runs");
                    said = String::from_utf8_lossy(&output.stdout).into_owned();
                    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(output.status.success(), "{lines}\n{said}{errors}");
                    said += &errors;
                }
                ("text", lines) => {
                    for line in lines.lines() {
                        assert!(says(&said, line), "{line:?} is not in\n{said}");
                    }
                }
                ("sh background", "tpad serve demo") => {
                    let root = directory.join("demo");
                    let config = format!(
                        "[[models]]\nname = \"demo\"\nroot = {root:?}\n\
                         [levels.dram]\ncapacity = \"16MiB\"\n"
                    );
                    let process = Process::serve(directory, &config).await;
                    let client = Client::connect(&process.address()).await.expect("it answers");
                    daemon = Some(process);
                    let (first, over) = (look(&client).await, Arc::clone(&over));
                    looks = Some(tokio::spawn(async move {
                        let mut count = 0u64;
                        while !over.load(Ordering::Relaxed) {
                            assert_eq!(look(&client).await, first, "an old runtime carries on");
                            count += 1;
                        }
                        count
                    }));
                }
                ("sh background", line) => {
                    let line = format!("exec {line}");
                    let child = shell(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
                    bench = Some(child.expect("sh runs"));
                }
                _ => {}
            }
        }
        over.store(true, Ordering::Relaxed);
        let count =
            looks.expect("it was served").await.expect("nothing changed and nothing failed");
        assert!(count > 10, "{count} looks");
        let bench = bench.expect("a client loops");
        let interrupted =
            Command::new("kill").args(["-s", "INT", &bench.id().to_string()]).status();
        assert!(interrupted.expect("kill runs").success());
        let output = bench.wait_with_output().expect("it ends");
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(report.contains(" requests in ") && !report.contains("failed"), "{report}");
        daemon.expect("it was served").terminate();
    });
}

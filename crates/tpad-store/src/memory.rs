//! How much memory this process may use: the tightest cgroup limit above it, else the host's.
//!
//! A container's limit may sit on any ancestor of the process's cgroup, so every
//! one is read, in both hierarchies. Nothing here fails: a file that cannot be
//! read sets no limit, and the host's memory is the last word.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The most memory that the process can get, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes.
    pub bytes: u64,
    /// Where the number comes from.
    pub source: LimitSource,
}

/// Below this the host-memory level cannot hold one small block beside a fill.
pub const DRAM_LEAST: u64 = 1 << 20;

/// Who limits the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitSource {
    /// The file of the cgroup with the tightest limit.
    Cgroup(PathBuf),
    /// The machine has no more.
    Host,
}

impl fmt::Display for LimitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(file) => write!(f, "the cgroup's limit in {}", file.display()),
            Self::Host => f.write_str("the host's memory"),
        }
    }
}

impl MemoryLimit {
    /// Reads the limit of this process.
    #[must_use]
    pub fn detect() -> Self {
        Self::read(Path::new("/"))
    }

    /// The capacity of the host-memory level where nobody says another: a quarter
    /// of what there is, rounded down to a megabyte, since the node's memory is
    /// the workers', too.
    #[must_use]
    pub const fn default_dram_bytes(&self) -> u64 {
        let quarter = self.bytes / 4 / DRAM_LEAST * DRAM_LEAST;
        if quarter < DRAM_LEAST { DRAM_LEAST } else { quarter }
    }

    /// Reads the limit below `root`, which stands for `/`.
    fn read(root: &Path) -> Self {
        let host = host_bytes(&root.join("proc/meminfo")).unwrap_or(u64::MAX);
        let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mut tightest = Self { bytes: host, source: LimitSource::Host };
        for (directory, file) in cgroup_directories(root, &cgroups) {
            let file = directory.join(file);
            let Some(bytes) = read_limit(&file) else { continue };
            // An unset limit reads as "max" in v2 and as a huge number in v1:
            // whatever is above the host's memory limits nothing.
            if bytes < tightest.bytes {
                tightest = Self { bytes, source: LimitSource::Cgroup(file) };
            }
        }
        tightest
    }
}

/// Every directory whose limit binds the process, with the name of its limit file.
///
/// A line is `id:controllers:path`; v2 has no controllers. Inside a container
/// the path may be the host's while only the container's own subtree is
/// mounted, so the mount's root is always looked at as well.
fn cgroup_directories(root: &Path, cgroups: &str) -> Vec<(PathBuf, &'static str)> {
    let mut directories = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mount, file) = if controllers.is_empty() {
            let unified = root.join("sys/fs/cgroup/unified");
            let mount = if unified.is_dir() { unified } else { root.join("sys/fs/cgroup") };
            (mount, "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("sys/fs/cgroup/memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let relative = Path::new(path.trim_start_matches('/'));
        for ancestor in relative.ancestors() {
            directories.push((mount.join(ancestor), file));
        }
    }
    directories
}

fn read_limit(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn host_bytes(meminfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let root = Self(tempfile::tempdir().expect("a temporary directory"));
            root.write("proc/meminfo", "MemTotal:       1048576 kB\nMemFree: 5 kB\n");
            root
        }

        fn write(&self, path: &str, text: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
            self
        }

        fn limit(&self) -> MemoryLimit {
            MemoryLimit::read(self.0.path())
        }

        fn cgroup(&self, file: &str) -> LimitSource {
            LimitSource::Cgroup(self.0.path().join(file))
        }
    }

    #[test]
    fn without_a_cgroup_the_host_is_the_limit() {
        let limit = Root::new().limit();
        assert_eq!(limit, MemoryLimit { bytes: 1 << 30, source: LimitSource::Host });
    }

    #[test]
    fn the_tightest_limit_of_nested_groups_wins() {
        let root = Root::new();
        root.write("proc/self/cgroup", "0::/pod/container/leaf\n")
            .write("sys/fs/cgroup/pod/memory.max", "536870912\n")
            .write("sys/fs/cgroup/pod/container/memory.max", "268435456\n")
            .write("sys/fs/cgroup/pod/container/leaf/memory.max", "max\n");
        let limit = root.limit();
        assert_eq!(limit.bytes, 256 << 20);
        assert_eq!(limit.source, root.cgroup("sys/fs/cgroup/pod/container/memory.max"));
    }

    #[test]
    fn a_container_that_sees_only_its_own_subtree_is_read_at_the_mount() {
        let root = Root::new();
        root.write("proc/self/cgroup", "0::/kubepods/burstable/pod1/abc\n")
            .write("sys/fs/cgroup/memory.max", "134217728\n");
        assert_eq!(root.limit().bytes, 128 << 20);
    }

    #[test]
    fn version_one_is_read_and_its_unset_value_limits_nothing() {
        let root = Root::new();
        root.write("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a/b\n")
            .write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
            .write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "67108864\n")
            .write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
        let limit = root.limit();
        assert_eq!(limit.bytes, 64 << 20);
        assert_eq!(limit.source, root.cgroup("sys/fs/cgroup/memory/a/memory.limit_in_bytes"));
    }

    #[test]
    fn a_hybrid_host_is_read_in_both_hierarchies() {
        let root = Root::new();
        root.write("proc/self/cgroup", "4:memory:/a\n0::/a\n")
            .write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "67108864\n")
            .write("sys/fs/cgroup/unified/a/memory.max", "33554432\n");
        assert_eq!(root.limit().bytes, 32 << 20);
    }

    #[test]
    fn this_machine_has_a_limit() {
        let limit = MemoryLimit::detect();
        assert!(limit.bytes > 1 << 20 && limit.bytes < u64::MAX, "{limit:?}");
    }
}

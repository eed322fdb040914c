//! A disk of its own, small enough to be filled, in a mount namespace of its own.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rustix::mount::{MountFlags, mount, mount_remount};
use tpad_store::{Health, Hierarchy, Level as _, Medium, NvmeLevel, Origin, StoreMetrics};

use crate::model::{MIB, Model, check, metric};
use crate::{model, open, runtime};

/// What the blocks would take is more.
const DISK: u64 = 3 * MIB / 2;

pub(crate) fn run() {
    let scratch = tempfile::tempdir().expect("scratch");
    let own = std::env::current_exe().expect("its own path");
    let mut command = Command::new("unshare");
    command.args(namespace()).arg(own).arg("refuse").arg(scratch.path());
    let status = command.status().expect("it runs itself");
    assert!(status.success(), "{status}");
}

struct Load {
    level: Arc<NvmeLevel>,
    hierarchy: Arc<Hierarchy>,
    metrics: StoreMetrics,
    reads: Arc<AtomicU64>,
    from_disk: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

pub(crate) fn child(path: &Path) {
    let size = std::ffi::CString::new(format!("size={DISK}")).expect("no zero");
    mount("tpad-test", path, "tmpfs", MountFlags::empty(), Some(&*size)).expect("a disk");
    let runtime = runtime();
    runtime.block_on(async {
        let model = Arc::new(model());
        let load = Load::start(path, &model).await;

        // The disk is full: someone takes whatever comes free.
        let full = Arc::new(AtomicBool::new(true));
        let hog = hog(path, &full);
        load.until("writing is refused", |load| matches!(load.level.health(), Health::ReadOnly(_)))
            .await;
        load.goes_on().await;
        full.store(false, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || hog.join()).await.expect("ended").expect("no panic");
        fs::remove_file(path.join("hog")).expect("removed");
        load.until("it is written again", |load| load.level.health() == Health::Ok).await;
        load.goes_on().await;

        // The disk cannot be written, and what is there is still read.
        let read_only = |_: &Load| mount_remount(path, MountFlags::RDONLY, c"").is_ok();
        load.until("the disk is read-only: no file is open for writing", read_only).await;
        load.until("writing is refused", |load| matches!(load.level.health(), Health::ReadOnly(_)))
            .await;
        let before = load.from_disk.load(Ordering::Relaxed);
        load.goes_on().await;
        assert!(load.from_disk.load(Ordering::Relaxed) > before, "nothing is read from the disk");
        mount_remount(path, MountFlags::empty(), c"").expect("remounted");
        load.until("it is written again", |load| load.level.health() == Health::Ok).await;
        load.goes_on().await;

        let reads = load.reads.load(Ordering::Relaxed);
        load.end().await;
        let unfinished = path.join("tpad-cache-v1/unfinished");
        assert_eq!(fs::read_dir(unfinished).expect("there").count(), 0, "a temporary file is left");
        println!("{reads} reads without an error");
    });
}

/// A namespace of mounts: as root, or else as root of a namespace of users.
fn namespace() -> &'static [&'static str] {
    const KINDS: [&[&str]; 2] = [&["--mount"], &["--mount", "--user", "--map-root-user"]];
    let works = |kind: &&&[&str]| {
        let tried = Command::new("unshare").args(**kind).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    KINDS.iter().find(works).expect(
        "this test mounts a disk of its own: `unshare --mount --user --map-root-user true` has to \
         work (util-linux, and kernel.unprivileged_userns_clone for who is not root)",
    )
}

/// Fills the disk, and fills it again when room comes free.
fn hog(path: &Path, full: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (path, full) = (path.join("hog"), Arc::clone(full));
    std::thread::spawn(move || {
        let mut file = File::create(path).expect("created");
        while full.load(Ordering::Relaxed) {
            if file.write_all(&[1; 4096]).is_err() {
                std::thread::yield_now();
            }
        }
    })
}

impl Load {
    async fn start(path: &Path, model: &Arc<Model>) -> Self {
        let metrics = StoreMetrics::default();
        // More than the disk has: who checks that at the start cannot know what
        // others write later.
        let (level, hierarchy) = open(path, 64 * MIB, &metrics);
        // Before that the disk is not to be filled: it could not be opened at all.
        level.scanned().await;
        let origin: Arc<dyn Origin> = model.origin();
        let (reads, from_disk) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let tasks = (0..4).map(|task| {
            let (model, origin, stop) = (Arc::clone(model), Arc::clone(&origin), Arc::clone(&stop));
            let (reads, from_disk) = (Arc::clone(&reads), Arc::clone(&from_disk));
            let hierarchy = Arc::clone(&hierarchy);
            tokio::spawn(async move {
                let mut rng = ChaCha8Rng::seed_from_u64(task);
                while !stop.load(Ordering::Relaxed) {
                    let block = &model.blocks[rng.random_range(0..model.blocks.len())];
                    // Fails on the first error and the first wrong byte.
                    let medium = check(&hierarchy, &origin, block).await;
                    reads.fetch_add(1, Ordering::Relaxed);
                    from_disk.fetch_add(u64::from(medium == Medium::Nvme), Ordering::Relaxed);
                }
            })
        });
        let tasks = tasks.collect();
        Self { level, hierarchy, metrics, reads, from_disk, stop, tasks }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let done = async {
            while !holds(self) {
                assert!(self.tasks.iter().all(|task| !task.is_finished()), "a read failed");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(90), done).await;
        assert!(done.is_ok(), "never: {what}; {:?}", self.level.health());
    }

    /// The load does a thousand reads more.
    async fn goes_on(&self) {
        let target = self.reads.load(Ordering::Relaxed) + 1000;
        self.until("reads go on", |load| load.reads.load(Ordering::Relaxed) >= target).await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no read failed");
        }
        self.hierarchy.shutdown().await;
        let errors = metric(&self.metrics, "tpad_level_errors_total{level=\"nvme\"}");
        assert_eq!(errors, 0, "a full disk is no broken one");
    }
}

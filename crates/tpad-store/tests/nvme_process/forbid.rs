//! A process that may not use io_uring, as in most containers.

use std::path::Path;

use tpad_store::{Level as _, LevelReader, Medium, NvmeConfig, NvmeIo, NvmeLevel, StoreMetrics};

use crate::model::{MIB, check};
use crate::{hierarchy, model, own, runtime};

/// Runs its arguments where `io_uring_setup` (425 everywhere) fails with EPERM: what
/// container runtimes do by default. A filter is four words of a small machine: load
/// the call's number, compare, refuse, allow.
const FORBID: &str = r#"
import ctypes, os, struct, sys
words = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *word) for word in words))
program = ctypes.create_string_buffer(struct.pack("@HP", len(words), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
for call in [(38, 1, 0, 0, 0), (22, 2, ctypes.addressof(program), 0, 0)]:
    if libc.prctl(*[ctypes.c_ulong(argument) for argument in call]) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
"#;

pub(crate) fn run() {
    for (forbidden, expected) in [(false, "io_uring"), (true, "threads")] {
        let scratch = tempfile::tempdir().expect("scratch");
        let own = own();
        let mut command = match forbidden {
            true => std::process::Command::new("python3"),
            false => std::process::Command::new(own.get_program()),
        };
        if forbidden {
            command.args(["-c", FORBID]).arg(own.get_program());
        }
        command.arg("forbid").arg(scratch.path()).arg(expected);
        let status = command.status().expect("it runs itself, through python3 where forbidden");
        assert!(status.success(), "forbidden: {forbidden}: {status}");
    }
}

/// The child: writes blocks, and reads them by the reader that it is to have.
pub(crate) fn child(path: &Path, expected: &str) {
    runtime().block_on(async {
        let model = model();
        let origin = model.origin();
        for io in [NvmeIo::Auto, NvmeIo::IoUring, NvmeIo::Threads] {
            let config = NvmeConfig {
                path: path.to_owned(),
                capacity_bytes: 64 * MIB,
                free_floor_bytes: 0,
                io,
            };
            let level = NvmeLevel::open(config, StoreMetrics::default()).expect("sound bounds");
            level.scanned().await;
            let LevelReader { io: chosen, reason } = level.reader().expect("it is open");
            if io == NvmeIo::Threads {
                assert_eq!((chosen, reason), ("threads", None));
            } else {
                assert_eq!(chosen, expected, "{io:?}: {reason:?}");
                let refused = |reason: &String| reason.starts_with("io_uring: ");
                assert_eq!(reason.as_ref().is_some_and(refused), expected == "threads");
            }
            let hierarchy = hierarchy(&level, &StoreMetrics::default());
            for block in &model.blocks {
                check(&hierarchy, &origin, block).await;
                while !level.contains(&block.fetch.id) {
                    tokio::task::yield_now().await;
                }
                hierarchy.evict(&block.fetch.id, Some(Medium::Dram)).await;
                assert_eq!(check(&hierarchy, &origin, block).await, Medium::Nvme);
            }
            hierarchy.shutdown().await;
        }
    });
}

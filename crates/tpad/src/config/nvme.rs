//! The disk level's section.

use std::path::{Path, PathBuf};

use super::resolve::{Problems, size};
use super::{Nvme, NvmeIo, Surroundings, mirror, show_bytes};

const PATH: &str = "levels.nvme.path";
const CAPACITY: &str = "levels.nvme.capacity";
const FLOOR: &str = "levels.nvme.free_floor";
const IO: &str = "levels.nvme.io";

/// Less holds no expert of any published model beside its documents.
const LEAST: u64 = 16 << 20;

/// What others find free by default: logs and images of a node need some.
const FLOOR_DEFAULT: u64 = 1 << 30;

/// The level, if the section names a path.
pub(super) fn resolve(
    nvme: mirror::Nvme,
    surroundings: &Surroundings,
    problems: &mut Problems,
) -> Option<Nvme> {
    let mirror::Nvme { path, capacity, free_floor, io } = nvme;
    let Some(path) = path.map(PathBuf::from) else {
        let others =
            [(CAPACITY, capacity.is_some()), (FLOOR, free_floor.is_some()), (IO, io.is_some())];
        for (key, set) in others {
            if set {
                problems
                    .add(key, format!("it says nothing without {PATH}: add the path or remove it"));
            }
        }
        return None;
    };
    if !path.is_absolute() {
        let shown = path.display();
        problems.add(PATH, format!("{shown:?} is not an absolute path: begin it with a slash"));
        return None;
    }
    let disk = match (surroundings.disk_bytes)(&path) {
        Ok(disk) => disk,
        Err(error) => {
            problems.add(
                PATH,
                format!("the file system of {} cannot be read: {error}", path.display()),
            );
            return None;
        }
    };
    let whole = 1 << 20;
    let half = (disk / 2 / whole * whole).max(LEAST);
    let capacity_bytes = size(CAPACITY, capacity, half, LEAST..=u64::MAX, problems);
    let floor = FLOOR_DEFAULT.min(disk / 20 / whole * whole);
    let free_floor_bytes = size(FLOOR, free_floor, floor, 0..=u64::MAX, problems);
    check(&path, capacity_bytes, free_floor_bytes, disk, problems);
    let io = match io.as_deref().unwrap_or("auto") {
        "auto" => NvmeIo::Auto,
        "io_uring" => NvmeIo::IoUring,
        "threads" => NvmeIo::Threads,
        other => {
            problems
                .add(IO, format!("{other:?} is none of \"auto\", \"io_uring\" and \"threads\""));
            NvmeIo::Auto
        }
    };
    Some(Nvme { path, capacity_bytes, free_floor_bytes, io })
}

fn check(path: &Path, capacity: u64, floor: u64, disk: u64, problems: &mut Problems) {
    if capacity.saturating_add(floor) <= disk {
        return;
    }
    let (shown, size) = (show_bytes(capacity), show_bytes(disk));
    let floor = match floor {
        0 => String::new(),
        floor => format!(" and {FLOOR} of {}", show_bytes(floor)),
    };
    let message = format!(
        "{shown}{floor} is more than the {size} of the file system of {}: lower it, or use a larger \
         disk",
        path.display()
    );
    problems.add(CAPACITY, message);
}

//! The section of GPU memory.

use std::path::PathBuf;

use tpad_cuda::DeviceName;

use super::resolve::{Problems, size};
use super::{Hbm, mirror};

const CAPACITY: &str = "levels.hbm.capacity";
const DEVICES: &str = "levels.hbm.devices";
const STAND_IN: &str = "levels.hbm.stand_in";

/// Less holds few experts of any published model.
const LEAST: u64 = 16 << 20;

/// The level, if the section gives it a capacity.
pub(super) fn resolve(hbm: mirror::Hbm, problems: &mut Problems) -> Option<Hbm> {
    let mirror::Hbm { capacity, devices, stand_in } = hbm;
    if capacity.is_none() {
        for (key, set) in [(DEVICES, devices.is_some()), (STAND_IN, stand_in.is_some())] {
            if set {
                let message = format!("it says nothing without {CAPACITY}: add it or remove this");
                problems.add(key, message);
            }
        }
        return None;
    }
    let capacity_bytes = size(CAPACITY, capacity, LEAST, LEAST..=u64::MAX, problems);
    let named = devices.unwrap_or_default();
    let mut devices = Vec::with_capacity(named.len());
    for (n, name) in named.iter().enumerate() {
        // A number is an index, anything else an identity.
        let Ok(name) = name.parse::<DeviceName>();
        if devices.contains(&name) {
            problems.add(format!("{DEVICES}[{n}]"), format!("{name} is named twice"));
        } else {
            devices.push(name);
        }
    }
    let stand_in = stand_in.map(PathBuf::from);
    if stand_in.as_ref().is_some_and(|path| !path.is_absolute()) {
        problems.add(STAND_IN, "it is not an absolute path: begin it with a slash");
    }
    Some(Hbm { capacity_bytes, devices, stand_in })
}

//! The values that are fetched: experts of synthetic checkpoints, and the same
//! lengths of random bytes for who has no experts.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::children::on;
use crate::place::Place;

/// One size of value.
///
/// An expert's image is three BF16 tensors, so no width makes exactly 2^20 bytes: the
/// three large sizes are within a thousandth of what they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// What it is called.
    pub(crate) name: &'static str,
    hidden: usize,
    intermediate: usize,
    /// How many values there are: more bytes than the last cache of a processor holds.
    pub(crate) keys: usize,
}

/// The sizes that are compared.
pub(crate) const SIZES: [Size; 3] = [
    Size { name: "1 MiB", hidden: 512, intermediate: 341, keys: 64 },
    Size { name: "16 MiB", hidden: 2048, intermediate: 1365, keys: 8 },
    Size { name: "128 MiB", hidden: 4096, intermediate: 5461, keys: 3 },
];

/// Just above 1 MiB, as the first is just below it: beyond 16 segments of loopback, where BBR
/// paces what is sent.
pub(crate) const ABOVE: Size = Size { name: "1.002 MiB", hidden: 512, intermediate: 342, keys: 64 };

/// For latency: the smallest image above 4 KiB.
pub(crate) const SMALL: Size = Size { name: "4.5 KiB", hidden: 32, intermediate: 24, keys: 64 };

/// For cold reads: 768 MiB in blocks of 16 MiB.
pub(crate) const COLD: Size = Size { name: "16 MiB", hidden: 2048, intermediate: 1365, keys: 48 };

impl Size {
    /// Bytes of a value.
    pub(crate) fn bytes(self) -> usize {
        3 * 2 * self.hidden * self.intermediate
    }

    /// What the model of its experts is called.
    pub(crate) fn model(self) -> String {
        format!("m{}", self.bytes())
    }

    /// Makes a checkpoint whose experts have this size, and imports it.
    pub(crate) fn checkpoint(self, place: &Place, at: &PathBuf) -> Result<()> {
        self.synthesize(place, at)?;
        let mut import = on(&place.all, place.program("tpactl")?);
        import.arg("import").arg(at).args(["--model", &self.model()]);
        place.prepare(&mut import).context("importing a checkpoint")?;
        Ok(())
    }

    /// Makes the checkpoint alone.
    pub(crate) fn synthesize(self, place: &Place, at: &PathBuf) -> Result<()> {
        let mut synth = on(&place.all, place.program("tpactl")?);
        synth.args(["synth", "--preset", "mixtral-8x7b", "--layers", "1", "--vocab", "256"]);
        synth.args(["--shard-size", "256MiB", "--dtype", "bf16"]);
        synth.arg("--experts").arg(self.keys.to_string());
        synth.arg("--hidden").arg(self.hidden.to_string());
        synth.arg("--intermediate").arg(self.intermediate.to_string()).arg(at);
        place.prepare(&mut synth).context("making a checkpoint")?;
        Ok(())
    }
}

/// Writes the values of every size into a directory, named `BYTES-KEY`.
pub(crate) fn write(place: &Place, sizes: &[Size]) -> Result<PathBuf> {
    let directory = place.memory.join("values");
    std::fs::create_dir_all(&directory)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    for size in sizes {
        for key in 0..size.keys {
            let mut value = vec![0; size.bytes()];
            rng.fill_bytes(&mut value);
            let name = tpad_peers::exchange::name(size.bytes(), key);
            std::fs::write(directory.join(name), value).context("no room for the values")?;
        }
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_they_are_called_to_a_thousandth() {
        for (size, mib) in SIZES.iter().zip([1, 16, 128]) {
            let called = mib << 20;
            assert!(size.bytes() <= called && size.bytes() > called - called / 1000, "{size:?}");
            // Images are padded to 256 bytes for each tensor: these are not.
            assert_eq!(size.bytes() % (3 * 256), 0, "{size:?}");
        }
        // 65,483 bytes are what a segment of loopback holds.
        assert!(SIZES[0].bytes() < 16 * 65_483 && ABOVE.bytes() > 16 * 65_483);
        assert_eq!(format!("{:.3} MiB", ABOVE.bytes() as f64 / f64::from(1 << 20)), ABOVE.name);
        assert_eq!(ABOVE.bytes() % (3 * 256), 0);
        assert_eq!(SMALL.bytes(), 4608);
    }
}

//! Values: random bits, shaped so that floats are finite and small.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use tpad_manifest::Dtype;

/// A tensor's values: random bits of which `keep` survive and to which `set`
/// is added, eight bytes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fill {
    keep: u64,
    set: u64,
}

impl Fill {
    /// What the format gives no meaning to, packed weights among them.
    pub(super) const BITS: Self = Self { keep: u64::MAX, set: 0 };

    /// Values that weights could have: of both signs, with magnitudes from
    /// 2^-7 to 2^-3. Two of the exponent's bits are random and the others
    /// fixed, so neither infinity nor NaN can come up.
    pub(super) fn weights(dtype: &Dtype) -> Self {
        let (keep, set) = match dtype.name() {
            "F64" => (0x803f_ffff_ffff_ffff, 0x3f80_0000_0000_0000),
            "F32" => (lanes32(0x81ff_ffff), lanes32(0x3c00_0000)),
            "BF16" => (lanes16(0x81ff), lanes16(0x3c00)),
            "F16" => (lanes16(0x8fff), lanes16(0x2000)),
            // Larger magnitudes, which the scales bring down.
            "F8_E4M3" => (lanes8(0x9f), lanes8(0x20)),
            "F8_E8M0" => (lanes8(0x03), lanes8(0x78)),
            _ => return Self::BITS,
        };
        Self { keep, set }
    }

    /// Positive values, for scales: the weights' without their sign.
    pub(super) fn scales(dtype: &Dtype) -> Self {
        let Self { keep, set } = Self::weights(dtype);
        let sign = match dtype.name() {
            "F64" => 0x8000_0000_0000_0000,
            "F32" => lanes32(0x8000_0000),
            "BF16" | "F16" => lanes16(0x8000),
            "F8_E4M3" => lanes8(0x80),
            _ => 0,
        };
        Self { keep: keep & !sign, set }
    }

    /// Exponents around that of one, for scales that are stored as U8.
    pub(super) fn exponents() -> Self {
        Self { keep: lanes8(0x03), set: lanes8(0x78) }
    }

    /// Ones, for norms.
    pub(super) fn ones(dtype: &Dtype) -> Self {
        let set = match dtype.name() {
            "F32" => lanes32(0x3f80_0000),
            "BF16" => lanes16(0x3f80),
            "F16" => lanes16(0x3c00),
            _ => return Self::weights(dtype),
        };
        Self { keep: 0, set }
    }

    /// Fills `into` with the bytes that the tensor of this `key` has from
    /// `offset` on, which is a multiple of eight.
    pub(super) fn write(self, key: [u8; 32], offset: u64, into: &mut [u8]) {
        debug_assert!(offset.is_multiple_of(8), "lanes would shift");
        if self.keep != 0 {
            let mut random = ChaCha8Rng::from_seed(key);
            random.set_word_pos(u128::from(offset / 4));
            random.fill_bytes(into);
        }
        let (keep, set) = (self.keep.to_le_bytes(), self.set.to_le_bytes());
        let mut words = into.chunks_exact_mut(8);
        for word in &mut words {
            let bits = word.try_into().map_or(0, u64::from_le_bytes);
            word.copy_from_slice(&((bits & self.keep) | self.set).to_le_bytes());
        }
        for (n, byte) in words.into_remainder().iter_mut().enumerate() {
            *byte = (*byte & keep[n]) | set[n];
        }
    }
}

const fn lanes8(lane: u64) -> u64 {
    lane * 0x0101_0101_0101_0101
}

const fn lanes16(lane: u64) -> u64 {
    lane * 0x0001_0001_0001_0001
}

const fn lanes32(lane: u64) -> u64 {
    lane * 0x0000_0001_0000_0001
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_make_the_same_tensor() {
        let fill = Fill::weights(&Dtype::from("BF16"));
        let mut whole = vec![0; 1003];
        fill.write([7; 32], 0, &mut whole);
        let mut pieces = vec![0; 1003];
        fill.write([7; 32], 504, &mut pieces[504..]);
        fill.write([7; 32], 0, &mut pieces[..504]);
        assert_eq!(whole, pieces);
    }

    #[test]
    fn floats_are_finite_and_small() {
        let mut bytes = vec![0; 1 << 16];
        Fill::weights(&Dtype::from("BF16")).write([1; 32], 0, &mut bytes);
        let bf16 = |word: &[u8]| f32::from_le_bytes([0, 0, word[0], word[1]]);
        assert!(bytes.chunks(2).map(bf16).all(|x| (0.007..0.126).contains(&x.abs())));
        Fill::weights(&Dtype::from("F32")).write([1; 32], 0, &mut bytes);
        let f32s = |word: &[u8]| f32::from_le_bytes(word.try_into().expect("four bytes"));
        assert!(bytes.chunks(4).map(f32s).all(|x| (0.007..0.126).contains(&x.abs())));
        Fill::scales(&Dtype::from("F32")).write([1; 32], 0, &mut bytes);
        assert!(bytes.chunks(4).map(f32s).all(|x| (0.007..0.126).contains(&x)));
        Fill::weights(&Dtype::from("F16")).write([1; 32], 0, &mut bytes);
        // An exponent of 8 to 11 with a bias of 15.
        let exponent = |word: &[u8]| (word[1] >> 2) & 0x1f;
        assert!(bytes.chunks(2).map(exponent).all(|x| (8..=11).contains(&x)));
        Fill::weights(&Dtype::from("F8_E4M3")).write([1; 32], 0, &mut bytes);
        assert!(bytes.iter().all(|byte| byte & 0x7f != 0x7f), "a NaN");
        Fill::ones(&Dtype::from("BF16")).write([1; 32], 0, &mut bytes);
        assert!(bytes.chunks(2).map(bf16).all(|x| x.to_bits() == 1.0f32.to_bits()));
    }
}

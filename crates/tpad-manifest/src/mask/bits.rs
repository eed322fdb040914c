//! Bitsets over the experts of a group.

use bytes::Bytes;

/// One bit for each expert of a group: expert `n` is bit `n % 8` of byte
/// `n / 8`, the least significant bit first. Bits beyond the last are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertBits {
    experts: u32,
    bytes: Bytes,
}

impl ExpertBits {
    /// Every expert.
    #[must_use]
    pub fn all(experts: u32) -> Self {
        let mut bits = vec![0xff; bytes(experts)];
        if let (Some(last), spare @ 1..) = (bits.last_mut(), experts % 8) {
            *last = (1 << spare) - 1;
        }
        Self { experts, bytes: bits.into() }
    }

    /// The experts for which `is_set` answers yes.
    #[must_use]
    pub fn of(set: impl ExactSizeIterator<Item = bool>) -> Self {
        let experts = u32::try_from(set.len()).unwrap_or(u32::MAX);
        let mut bits = vec![0; bytes(experts)];
        for (n, is_set) in set.enumerate() {
            if let (true, Some(byte)) = (is_set, bits.get_mut(n / 8)) {
                *byte |= 1 << (n % 8);
            }
        }
        Self { experts, bytes: bits.into() }
    }

    /// Bytes from elsewhere; `None` unless there are as many as `experts` need
    /// and no bit beyond the last expert is set.
    #[must_use]
    pub fn from_bytes(experts: u32, bytes: Bytes) -> Option<Self> {
        let fits = bytes.len() == self::bytes(experts);
        let spare = experts % 8;
        let beyond = spare > 0 && bytes.last().is_some_and(|last| last >> spare != 0);
        (fits && !beyond).then_some(Self { experts, bytes })
    }

    /// How many experts there are, set or not.
    #[must_use]
    pub const fn experts(&self) -> u32 {
        self.experts
    }

    /// Whether the expert's bit is set; no for an expert that does not exist.
    #[must_use]
    pub fn has(&self, expert: u32) -> bool {
        let byte = usize::try_from(expert / 8).ok().and_then(|at| self.bytes.get(at));
        byte.is_some_and(|byte| byte & (1 << (expert % 8)) != 0)
    }

    /// The bits in order of the experts.
    pub fn iter(&self) -> impl Iterator<Item = bool> + '_ {
        (0..self.experts).map(|expert| self.has(expert))
    }

    /// How many bits are set.
    #[must_use]
    pub fn ones(&self) -> u32 {
        self.bytes.iter().map(|byte| byte.count_ones()).sum()
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }
}

fn bytes(experts: u32) -> usize {
    usize::try_from(experts.div_ceil(8)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_least_significant_first_and_end_with_the_experts() {
        assert!(ExpertBits::all(0).as_bytes().is_empty());
        assert_eq!(**ExpertBits::all(8).as_bytes(), [0xff]);
        assert_eq!(**ExpertBits::all(11).as_bytes(), [0xff, 0b111]);
        let odd = ExpertBits::of((0..11).map(|n| n % 2 == 1));
        assert_eq!(**odd.as_bytes(), [0b1010_1010, 0b010]);
        assert_eq!(odd.iter().filter(|bit| *bit).count(), 5);
        assert_eq!(
            (odd.ones(), odd.has(9), odd.has(11), odd.has(u32::MAX)),
            (5, true, false, false)
        );
    }

    #[test]
    fn bytes_of_another_length_or_with_bits_beyond_are_refused() {
        let bits = ExpertBits::of([true, false, true].into_iter());
        assert_eq!(ExpertBits::from_bytes(3, bits.as_bytes().clone()), Some(bits));
        for (experts, bytes) in
            [(3, &[0b1000][..]), (3, &[]), (3, &[1, 0]), (0, &[0]), (9, &[0, 2]), (u32::MAX, &[])]
        {
            let bytes = Bytes::from_static(bytes);
            assert_eq!(ExpertBits::from_bytes(experts, bytes.clone()), None, "{experts} {bytes:?}");
        }
    }
}

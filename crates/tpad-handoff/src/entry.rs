//! Where a block lies, in one word that is read and written at once.

use std::fmt;
use std::num::NonZero;

const SLOT_BITS: u32 = 24;
const SLAB_BITS: u32 = 24;
const PLACE_BITS: u32 = SLAB_BITS + SLOT_BITS;

/// A slot of a slab, whatever block lies in it: what a worker names while it reads.
///
/// As a word: the slab in bits 24 to 47, the slot in bits 0 to 23. No slab is 0,
/// so no place is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(NonZero<u64>);

impl Place {
    /// `None` if the slab is 0, or if either does not fit into 24 bits.
    pub const fn new(slab: u32, slot: u32) -> Option<Self> {
        if slab == 0 || slab >> SLAB_BITS != 0 || slot >> SLOT_BITS != 0 {
            return None;
        }
        match NonZero::new((slab as u64) << SLOT_BITS | slot as u64) {
            Some(word) => Some(Self(word)),
            None => None,
        }
    }

    /// The place that a word of shared memory names; `None` if it names none.
    pub(crate) const fn from_word(word: u64) -> Option<Self> {
        if word >> PLACE_BITS != 0 || word >> SLOT_BITS == 0 {
            return None;
        }
        match NonZero::new(word) {
            Some(word) => Some(Self(word)),
            None => None,
        }
    }

    pub(crate) const fn word(self) -> u64 {
        self.0.get()
    }

    /// The slab, which is never 0.
    pub const fn slab(self) -> u32 {
        (self.word() >> SLOT_BITS & ((1 << SLAB_BITS) - 1)) as u32
    }

    /// The slot's index within its slab.
    pub const fn slot(self) -> u32 {
        (self.word() & ((1 << SLOT_BITS) - 1)) as u32
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slab {} slot {}", self.slab(), self.slot())
    }
}

/// What a directory says of a block: its [`Place`], and a version that tells one
/// stay of a block in a slot from the next.
///
/// As a word: the version in bits 48 to 63, the place below. 0 is no entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry(NonZero<u64>);

impl Entry {
    /// The version may be any number; a writer that counts it up, and around,
    /// for each use of a slot makes an old entry unlike the next ones.
    pub const fn new(version: u16, place: Place) -> Self {
        match NonZero::new((version as u64) << PLACE_BITS | place.word()) {
            Some(word) => Self(word),
            // A place alone is not 0.
            None => Self(place.0),
        }
    }

    /// The entry that a word of shared memory is; `None` if it is none.
    pub(crate) const fn from_word(word: u64) -> Option<Self> {
        if Place::from_word(word & ((1 << PLACE_BITS) - 1)).is_none() {
            return None;
        }
        match NonZero::new(word) {
            Some(word) => Some(Self(word)),
            None => None,
        }
    }

    pub(crate) const fn word(self) -> u64 {
        self.0.get()
    }

    /// Which stay of blocks in this slot it is, modulo 2^16.
    pub const fn version(self) -> u16 {
        (self.word() >> PLACE_BITS) as u16
    }

    /// Where the block lies.
    pub const fn place(self) -> Place {
        // The version is taken off; what is left is a place in every entry.
        match NonZero::new(self.word() & ((1 << PLACE_BITS) - 1)) {
            Some(word) => Place(word),
            None => Place(self.0),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} version {}", self.place(), self.version())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_does_not_fit_into_a_word_is_no_place() {
        let most = (1 << 24) - 1;
        assert_eq!(Place::new(0, 1), None);
        assert_eq!(Place::new(most + 1, 1), None);
        assert_eq!(Place::new(1, most + 1), None);
        let place = Place::new(most, most).expect("24 bits each");
        assert_eq!((place.slab(), place.slot()), (most, most));
        assert_eq!(Entry::new(u16::MAX, place).word(), u64::MAX);
        assert_eq!(format!("{:?}", Entry::new(3, place)), "slab 16777215 slot 16777215 version 3");
    }

    #[test]
    fn an_entry_and_none_take_one_word() {
        assert_eq!(size_of::<Option<Entry>>(), 8);
        assert_eq!(size_of::<Option<Place>>(), 8);
    }

    proptest! {
        #[test]
        fn an_entry_is_what_it_was_made_of(version: u16, slab in 1_u32..1 << 24, slot in 0_u32..1 << 24) {
            let place = Place::new(slab, slot).expect("24 bits each");
            let entry = Entry::new(version, place);
            prop_assert_eq!((entry.version(), entry.place()), (version, place));
            prop_assert_eq!((place.slab(), place.slot()), (slab, slot));
            prop_assert_eq!(Entry::from_word(entry.word()), Some(entry));
            prop_assert_eq!(Place::from_word(place.word()), Some(place));
        }

        #[test]
        fn any_word_is_an_entry_of_a_real_slab_or_none(word: u64, low in 0_u64..1 << 25) {
            for word in [word, low, word & !0xffff_ff00_0000] {
                match Entry::from_word(word) {
                    Some(entry) => {
                        let place = Place::new(entry.place().slab(), entry.place().slot());
                        prop_assert_eq!(place, Some(entry.place()));
                        prop_assert_eq!(entry.word(), word);
                    }
                    None => prop_assert_eq!(word >> 24 & 0xff_ffff, 0),
                }
                if let Some(place) = Place::from_word(word) {
                    prop_assert_eq!(Place::new(place.slab(), place.slot()), Some(place));
                }
            }
        }
    }
}

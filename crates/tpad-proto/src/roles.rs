//! The small closed vocabularies of a tensor, to the wire and back.

use tpad_manifest::{GateUp, Orientation, Part, Projection};

use crate::{WireError, v1};

/// Both directions of one enum, variant by variant, so that a variant added on
/// either side does not compile until it has its counterpart.
macro_rules! both_ways {
    ($name:ident { $($ours:ident <=> $wire:ident),+ $(,)? } $(missing: $field:literal)?) => {
        impl From<$name> for v1::$name {
            fn from(value: $name) -> Self {
                match value {
                    $($name::$ours => Self::$wire,)+
                }
            }
        }

        impl TryFrom<v1::$name> for $name {
            type Error = WireError;

            fn try_from(value: v1::$name) -> Result<Self, WireError> {
                match value {
                    $(v1::$name::$wire => Ok(Self::$ours),)+
                    $(v1::$name::Unspecified => Err(WireError::Missing($field)),)?
                }
            }
        }
    };
}

both_ways!(Projection {
    Gate <=> Gate,
    Up <=> Up,
    Down <=> Down,
    GateUp <=> GateUp,
    Router <=> Router,
    Other <=> Other,
    TierHead <=> TierHead,
    GroupHeads <=> GroupHeads,
} missing: "projection");

both_ways!(Part {
    Weight <=> Weight,
    Bias <=> Bias,
    Scale <=> Scale,
    GlobalScale <=> GlobalScale,
    InputScale <=> InputScale,
    ZeroPoint <=> ZeroPoint,
    GroupIndex <=> GroupIndex,
    Shape <=> Shape,
    CorrectionBias <=> CorrectionBias,
} missing: "part");

both_ways!(Orientation {
    Unknown <=> Unspecified,
    OutIn <=> OutIn,
    InOut <=> InOut,
});

both_ways!(GateUp {
    Unknown <=> Unspecified,
    Concatenated <=> Concatenated,
    Interleaved <=> Interleaved,
});

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value of the wire's enum that means something comes back as it was.
    macro_rules! assert_round_trip {
        ($name:ident, $least:expr) => {
            let mut meanings = 0;
            for number in 0..64 {
                let Ok(wire) = v1::$name::try_from(number) else { continue };
                let Ok(ours) = $name::try_from(wire) else { continue };
                assert_eq!(v1::$name::from(ours), wire);
                meanings += 1;
            }
            assert_eq!(meanings, $least);
        };
    }

    #[test]
    fn every_meaning_survives_the_wire() {
        assert_round_trip!(Projection, 8);
        assert_round_trip!(Part, 9);
        assert_round_trip!(Orientation, 3);
        assert_round_trip!(GateUp, 3);
    }

    #[test]
    fn a_role_that_was_left_out_is_named() {
        let missing = Projection::try_from(v1::Projection::Unspecified);
        assert_eq!(missing, Err(WireError::Missing("projection")));
    }
}

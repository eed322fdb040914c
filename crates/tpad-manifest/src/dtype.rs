//! Element types and the sizes they give tensors.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An element type, by the name that safetensors gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// A type whose size is known.
    Known(&'static str, u32),
    /// A type that this version does not know. Its tensors have no size, so a
    /// tier that uses it is skipped.
    Unknown(Arc<str>),
}

/// Name and bits of every type that safetensors 0.8 writes.
const KNOWN: &[(&str, u32)] = &[
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// Why a tensor has no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The element type's size is not known.
    #[error("dtype {0} has no known size")]
    UnknownDtype(Arc<str>),
    /// The product of the dimensions does not fit in 64 bits.
    #[error("shape {0:?} times {1} overflows")]
    Overflow(Vec<u64>, Dtype),
    /// The bits do not fill whole bytes.
    #[error("shape {0:?} of {1} does not fill whole bytes")]
    PartialByte(Vec<u64>, Dtype),
}

impl Dtype {
    /// Bits of one element; `None` when the type is unknown.
    #[must_use]
    pub fn bits(&self) -> Option<u32> {
        match self {
            Self::Known(_, bits) => Some(*bits),
            Self::Unknown(_) => None,
        }
    }

    /// The type's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Known(name, _) => name,
            Self::Unknown(name) => name,
        }
    }

    /// Bytes of a tensor of this type and `shape`. An empty shape is a scalar.
    ///
    /// # Errors
    /// When the size is unknown, overflows or is no whole number of bytes.
    pub fn tensor_bytes(&self, shape: &[u64]) -> Result<u64, SizeError> {
        let Self::Known(_, bits) = self else {
            return Err(SizeError::UnknownDtype(self.name().into()));
        };
        let total = elements(shape)
            .map(|n| u128::from(n) * u128::from(*bits))
            .ok_or_else(|| SizeError::Overflow(shape.to_vec(), self.clone()))?;
        if total % 8 != 0 {
            return Err(SizeError::PartialByte(shape.to_vec(), self.clone()));
        }
        u64::try_from(total / 8).map_err(|_| SizeError::Overflow(shape.to_vec(), self.clone()))
    }
}

/// Counted in order and in 64 bits, so that a zero at the end excuses nothing:
/// the readers of safetensors count so.
fn elements(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim))
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<&str> for Dtype {
    fn from(name: &str) -> Self {
        match KNOWN.iter().find(|(known, _)| *known == name) {
            Some((known, bits)) => Self::Known(known, *bits),
            None => Self::Unknown(name.into()),
        }
    }
}

impl FromStr for Dtype {
    type Err = std::convert::Infallible;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(name.into())
    }
}

impl Serialize for Dtype {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self::from(&*name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        let bf16 = Dtype::from("BF16");
        assert_eq!(bf16.tensor_bytes(&[3, 5]), Ok(30));
        assert_eq!(bf16.tensor_bytes(&[]), Ok(2));
        assert_eq!(bf16.tensor_bytes(&[0, u64::MAX]), Ok(0));
        assert!(matches!(bf16.tensor_bytes(&[u64::MAX, 2]), Err(SizeError::Overflow(..))));
        assert!(matches!(bf16.tensor_bytes(&[u64::MAX, 2, 0]), Err(SizeError::Overflow(..))));
        assert!(matches!(bf16.tensor_bytes(&[u64::MAX]), Err(SizeError::Overflow(..))));
        assert_eq!(Dtype::from("F4").tensor_bytes(&[4]), Ok(2));
        assert!(matches!(Dtype::from("F4").tensor_bytes(&[3]), Err(SizeError::PartialByte(..))));
        assert!(matches!(Dtype::from("Q9").tensor_bytes(&[3]), Err(SizeError::UnknownDtype(_))));
    }
}

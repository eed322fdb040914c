//! Which device, and what it is.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// A device's identity, the same in every process and container that sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceUuid([u8; 16]);

/// A device as an operator names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// By its place among those that this process sees: `0`. Another process may see
    /// others, in another order.
    Index(u32),
    /// By its identity, as `nvidia-smi -L` prints it, or the beginning of it.
    Uuid(String),
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceFacts {
    /// Its place among those that this process sees.
    pub index: u32,
    /// Its identity.
    pub uuid: DeviceUuid,
    /// Its maker's name for it. A stand-in says here that it is one.
    pub name: String,
    /// Its memory, in bytes.
    pub total_bytes: u64,
    /// Memory is created in multiples of this.
    pub granularity_bytes: u64,
    /// Whether its memory can be handed to other processes as a file descriptor.
    pub exports: bool,
}

/// What of a device's memory is in use, by whomever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryUse {
    /// Bytes that can be had.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

impl DeviceUuid {
    /// The identity of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU")?;
        for (n, byte) in self.0.iter().enumerate() {
            let dash = if matches!(n, 0 | 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for DeviceUuid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl DeviceName {
    /// Whether it names this device.
    #[must_use]
    pub fn names(&self, facts: &DeviceFacts) -> bool {
        match self {
            Self::Index(index) => *index == facts.index,
            Self::Uuid(uuid) => {
                let whole = facts.uuid.to_string();
                // As `CUDA_VISIBLE_DEVICES` takes it; `GPU-` alone would name any.
                uuid.len() > 4 && whole.starts_with(&uuid.replace("gpu-", "GPU-"))
            }
        }
    }
}

impl FromStr for DeviceName {
    type Err = Infallible;

    /// A number is an index, anything else an identity.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_| Self::Uuid(text.to_owned()), Self::Index))
    }
}

impl From<DeviceUuid> for DeviceName {
    fn from(uuid: DeviceUuid) -> Self {
        Self::Uuid(uuid.to_string())
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => index.fmt(f),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DeviceName {
        text.parse().expect("every text is a name")
    }

    #[test]
    fn a_device_is_named_by_index_or_identity() {
        let uuid = DeviceUuid::new([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255]);
        assert_eq!(uuid.to_string(), "GPU-01020304-0506-0708-090a-0b0c0d0e0fff");
        let facts = DeviceFacts {
            index: 3,
            uuid,
            name: "a device".to_owned(),
            total_bytes: 1,
            granularity_bytes: 1,
            exports: true,
        };
        assert!(name("3").names(&facts) && !name("0").names(&facts));
        assert!(DeviceName::from(uuid).names(&facts));
        assert!(name(&uuid.to_string()[..10]).names(&facts));
        for other in ["GPU-", "", "GPU-ff", "x"] {
            assert!(!name(other).names(&facts), "{other}");
        }
    }
}

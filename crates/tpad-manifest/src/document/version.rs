//! Versions: of the document and of the weights, `major.minor`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The document version that this code writes.
pub const FORMAT_VERSION: FormatVersion = FormatVersion { major: 1, minor: 1 };

/// The document's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FormatVersion {
    /// Another major cannot be read.
    pub major: u32,
    /// A newer minor is read, and what it adds is ignored.
    pub minor: u32,
}

/// The weights' version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelVersion {
    /// Stepped when something that existed has changed.
    pub major: u32,
    /// Stepped when tiers were added.
    pub minor: u32,
}

/// A text is not a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version: MAJOR.MINOR is expected, such as \"1.1\"")]
pub struct VersionError(String);

fn parse(text: &str) -> Result<(u32, u32), VersionError> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let canonical = part == "0" || !part.starts_with('0');
        if digits && canonical { part.parse().ok() } else { None }
    };
    text.split_once('.')
        .and_then(|(major, minor)| Some((number(major)?, number(minor)?)))
        .ok_or_else(|| VersionError(text.chars().take(40).collect()))
}

macro_rules! version {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}.{}", self.major, self.minor)
            }
        }

        impl FromStr for $name {
            type Err = VersionError;

            fn from_str(text: &str) -> Result<Self, VersionError> {
                parse(text).map(|(major, minor)| Self { major, minor })
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self { major: 1, minor: 0 }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": "^(0|[1-9][0-9]*)\\.(0|[1-9][0-9]*)$" })
            }
        }
    };
}

version!(FormatVersion);
version!(ModelVersion);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_two_canonical_numbers() {
        assert_eq!("1.10".parse(), Ok(FormatVersion { major: 1, minor: 10 }));
        for text in ["1", "1.", ".1", "1.01", "01.1", "1.1.1", "1.x", "+1.1", "1.99999999999"] {
            assert!(text.parse::<FormatVersion>().is_err(), "{text} was accepted");
        }
    }
}

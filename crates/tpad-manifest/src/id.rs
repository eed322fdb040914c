//! Tier ids.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest tier id that is accepted, in bytes. It bounds metric labels and
/// error messages.
const MAX_NAME_BYTES: usize = 128;

/// A tier's id as the manifest writes it: an integer or a string.
///
/// `1` and `"1"` read alike everywhere outside the manifest, so a manifest that
/// holds both is refused and the id's text (its [`Display`](fmt::Display) form)
/// names one tier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TierId {
    /// An integer id.
    Number(u64),
    /// A string id, such as `tier_10b`.
    Name(Arc<str>),
}

/// Why a text is not a tier id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TierIdError {
    /// The text is empty.
    #[error("a tier id may not be empty")]
    Empty,
    /// The text is too long.
    #[error("a tier id may have at most {MAX_NAME_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The text holds a character that keys and paths could not carry.
    #[error("tier id {0:?} holds {1:?}: letters, digits, '_', '-' and '.' are allowed")]
    Character(String, char),
}

impl TierId {
    /// Checks the rules for ids that come from outside.
    ///
    /// # Errors
    /// The first rule that a string id breaks; integers break none.
    pub fn check(&self) -> Result<(), TierIdError> {
        let Self::Name(name) = self else { return Ok(()) };
        if name.is_empty() {
            return Err(TierIdError::Empty);
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(TierIdError::TooLong(name.len()));
        }
        match name.chars().find(|c| !(c.is_ascii_alphanumeric() || "_-.".contains(*c))) {
            Some(c) => Err(TierIdError::Character(name.to_string(), c)),
            None => Ok(()),
        }
    }

    /// Whether `text` names this tier.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        match self {
            Self::Number(number) => number.to_string() == text,
            Self::Name(name) => &**name == text,
        }
    }
}

impl fmt::Display for TierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for TierId {
    type Err = TierIdError;

    /// Reads digits as an integer id, anything else as a string id.
    fn from_str(text: &str) -> Result<Self, TierIdError> {
        let canonical = text == "0" || !text.starts_with('0');
        let id = match text.parse() {
            Ok(number) if canonical && !text.starts_with('+') => Self::Number(number),
            _ => Self::Name(text.into()),
        };
        id.check()?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["0", "1", "tier_10b", "007", "18446744073709551616"] {
            let id: TierId = text.parse().expect("a valid id");
            assert_eq!(id.to_string(), text);
            assert!(id.is(text));
        }
        assert_eq!("7".parse(), Ok(TierId::Number(7)));
        assert_eq!("007".parse(), Ok(TierId::Name("007".into())));
    }

    #[test]
    fn ids_that_paths_and_keys_cannot_carry_are_refused() {
        for text in ["", "a/b", "a b", "ü", "a\n"] {
            assert!(text.parse::<TierId>().is_err(), "{text:?} was accepted");
        }
        assert!("x".repeat(129).parse::<TierId>().is_err());
    }
}

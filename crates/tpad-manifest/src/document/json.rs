//! A JSON value that keeps duplicate keys, so that they can be refused by name.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::Problem;
use crate::problem::note;

/// Values of one document, keys not counted. It bounds the memory that a
/// document of two bytes a value takes; an honest one has some hundred.
pub(super) const MAX_VALUES: usize = 1 << 18;

/// How much of a key a place shows.
const SHOWN_KEY_CHARS: usize = 128;

/// A JSON value; an object keeps its members in order, duplicates included.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Unsigned(u64),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// What the value is, for messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) => "an integer",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// Reads a document.
    pub(super) fn parse(document: &[u8]) -> serde_json::Result<Self> {
        let mut left = MAX_VALUES;
        let mut json = serde_json::Deserializer::from_slice(document);
        let value = Values { left: &mut left }.deserialize(&mut json)?;
        json.end()?;
        Ok(value)
    }

    /// Adds a problem for every key that an object holds twice.
    pub(super) fn duplicates(&self, problems: &mut Vec<Problem>) {
        self.duplicates_at(&Place::Root, problems);
    }

    fn duplicates_at(&self, place: &Place<'_>, problems: &mut Vec<Problem>) {
        match self {
            Self::List(items) => {
                for (n, item) in items.iter().enumerate() {
                    item.duplicates_at(&Place::Item(place, n), problems);
                }
            }
            Self::Object(members) => {
                let mut keys: Vec<&str> = members.iter().map(|(key, _)| &**key).collect();
                keys.sort_unstable();
                for pair in keys.windows(2).filter(|pair| pair[0] == pair[1]) {
                    let place = Place::Member(place, pair[0]);
                    note(problems, || Problem::new(place.text(), "the key appears more than once"));
                }
                for (key, value) in members {
                    value.duplicates_at(&Place::Member(place, key), problems);
                }
            }
            _ => {}
        }
    }
}

/// A place that is spelled out only when there is something to say of it: most
/// values are fine, and a key can be as long as the document.
enum Place<'a> {
    Root,
    Item(&'a Place<'a>, usize),
    Member(&'a Place<'a>, &'a str),
}

impl Place<'_> {
    fn text(&self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Item(parent, n) => format!("{}/{n}", parent.text()),
            Self::Member(parent, key) => pointer(&parent.text(), key),
        }
    }
}

/// The JSON pointer of a member; a key that is longer than any that means
/// something is cut.
pub(super) fn pointer(place: &str, key: &str) -> String {
    let shown = match key.char_indices().nth(SHOWN_KEY_CHARS) {
        Some((end, _)) => format!("{}...", &key[..end]),
        None => key.to_owned(),
    };
    format!("{place}/{}", shown.replace('~', "~0").replace('/', "~1"))
}

/// Reads values until there were too many.
struct Values<'a> {
    left: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        let left = self.left.checked_sub(1);
        *self.left = left.ok_or_else(|| {
            D::Error::custom(format_args!("more than {MAX_VALUES} values, which no manifest needs"))
        })?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Unsigned(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
        #[expect(clippy::cast_precision_loss, reason = "only ever shown as not an id")]
        Ok(u64::try_from(value).map_or(Json::Number(value as f64), Json::Unsigned))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Values { left: self.left })? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = access.next_key()? {
            members.push((key, access.next_value_seed(Values { left: self.left })?));
        }
        Ok(Json::Object(members))
    }
}

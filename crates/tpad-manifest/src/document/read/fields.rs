//! Typed access to an object's members that notes each problem and goes on.

use std::fmt::Display;
use std::str::FromStr;

use super::super::json::{Json, pointer};
use crate::Problem;
use crate::problem::note;

/// The longest string that is read as a value. Paths, names and times are far
/// shorter, and most of them come back in messages and replies.
const MAX_TEXT_BYTES: usize = 4096;

/// One object of a document, its place, and where its problems go.
pub(super) struct Fields<'a, 'p> {
    place: String,
    members: &'a [(String, Json)],
    problems: &'p mut Vec<Problem>,
}

impl<'a, 'p> Fields<'a, 'p> {
    pub(super) fn new(
        place: String,
        members: &'a [(String, Json)],
        problems: &'p mut Vec<Problem>,
    ) -> Self {
        Self { place, members, problems }
    }

    /// The place of a member.
    pub(super) fn place(&self, key: &str) -> String {
        pointer(&self.place, key)
    }

    pub(super) fn problem(&mut self, key: &str, message: impl Into<String>) {
        let place = self.place(key);
        self.problem_at(place, message);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The member, unless it is missing or null.
    fn get(&self, key: &str) -> Option<&'a Json> {
        let found = self.members.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        found.filter(|value| **value != Json::Null)
    }

    fn wrong(&mut self, key: &str, value: &Json, expected: &str) {
        self.problem(key, format!("{expected} is expected, this is {}", value.kind()));
    }

    /// A problem when the member is missing.
    pub(super) fn needs(&mut self, key: &str) {
        if !self.has(key) {
            self.problem(key, "missing");
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Option<&'a str> {
        match self.get(key)? {
            Json::Text(text) if text.len() > MAX_TEXT_BYTES => {
                self.problem(key, too_long(text));
                None
            }
            Json::Text(text) => Some(text),
            other => {
                self.wrong(key, other, "a string");
                None
            }
        }
    }

    /// A string member that is read by its type's `FromStr`.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        let parsed = self.text(key)?.parse();
        parsed.map_err(|error: T::Err| self.problem(key, error.to_string())).ok()
    }

    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Json::Bool(value) => Some(*value),
            other => {
                self.wrong(key, other, "true or false");
                None
            }
        }
    }

    pub(super) fn u64(&mut self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Json::Unsigned(value) => Some(*value),
            other => {
                self.wrong(key, other, "an integer from 0 to 2^64-1");
                None
            }
        }
    }

    pub(super) fn u32(&mut self, key: &str) -> Option<u32> {
        let value = self.u64(key)?;
        let narrow = u32::try_from(value);
        narrow.map_err(|_| self.problem(key, format!("{value} is above 2^32-1"))).ok()
    }

    pub(super) fn f64(&mut self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Json::Number(value) => Some(*value),
            #[expect(clippy::cast_precision_loss, reason = "a scale factor, not a count")]
            Json::Unsigned(value) => Some(*value as f64),
            other => {
                self.wrong(key, other, "a number");
                None
            }
        }
    }

    /// A list's items with their places; empty when missing or wrong.
    pub(super) fn list(&mut self, key: &str) -> Vec<(String, &'a Json)> {
        match self.get(key) {
            None => Vec::new(),
            Some(value) => self.items(&self.place(key), value),
        }
    }

    /// The items of a value found at `place`.
    pub(super) fn items(&mut self, place: &str, value: &'a Json) -> Vec<(String, &'a Json)> {
        match value {
            Json::List(items) => {
                items.iter().enumerate().map(|(n, item)| (format!("{place}/{n}"), item)).collect()
            }
            other => {
                let message = format!("a list is expected, this is {}", other.kind());
                self.problem_at(place.to_owned(), message);
                Vec::new()
            }
        }
    }

    pub(super) fn texts(&mut self, key: &str) -> Vec<String> {
        let mut texts = Vec::new();
        for (place, item) in self.list(key) {
            match item {
                Json::Text(text) if text.len() > MAX_TEXT_BYTES => {
                    self.problem_at(place, too_long(text));
                }
                Json::Text(text) => texts.push(text.clone()),
                other => {
                    let message = format!("a string is expected, this is {}", other.kind());
                    self.problem_at(place, message);
                }
            }
        }
        texts
    }

    /// An object member's own fields.
    pub(super) fn object(&mut self, key: &str) -> Option<Fields<'a, '_>> {
        let place = self.place(key);
        let value = self.get(key)?;
        self.fields(place, value)
    }

    /// The fields of a value found at `place`.
    pub(super) fn fields(&mut self, place: String, value: &'a Json) -> Option<Fields<'a, '_>> {
        match value {
            Json::Object(members) => Some(Fields::new(place, members, self.problems)),
            other => {
                let message = format!("an object is expected, this is {}", other.kind());
                self.problem_at(place, message);
                None
            }
        }
    }

    /// The member as it stands.
    pub(super) fn value(&self, key: &str) -> Option<&'a Json> {
        self.get(key)
    }

    /// Adds a problem at a place that is already spelled out.
    pub(super) fn problem_at(&mut self, place: String, message: impl Into<String>) {
        note(self.problems, || Problem::new(place, message));
    }

    /// An object member's own members, by place and name: none, with a problem,
    /// when there are more than `most`.
    pub(super) fn members(&mut self, key: &str, most: usize) -> Vec<(String, &'a str, &'a Json)> {
        let place = self.place(key);
        let Some(members) = self.object(key).map(|object| object.members) else {
            return Vec::new();
        };
        if members.len() > most {
            self.problem(key, format!("{} entries, at most {most} are supported", members.len()));
            return Vec::new();
        }
        members.iter().map(|(name, value)| (pointer(&place, name), &**name, value)).collect()
    }
}

fn too_long(text: &str) -> String {
    format!("{} bytes, at most {MAX_TEXT_BYTES} are read", text.len())
}

//! The values of a JSON document, one by one, and what changing each of them means
//! to a model that is in service.

use std::fmt;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tpad_manifest::Effect;

/// Where a value is: keys and places, from the document inwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf(Vec<String>);

/// Values that may differ between two revisions of a major version. A star is any
/// tier or file. All others, and whatever is unknown to this table, break.
const MAY_CHANGE: [(&str, Option<Effect>); 10] = [
    // What a revision says of itself.
    ("/revision", None),
    ("/parent", None),
    ("/created_at", None),
    ("/model_version", None),
    ("/format_version", Some(Effect::Metadata)),
    ("/model", Some(Effect::Metadata)),
    // What `tpactl tier set-placement` and `set-budget` change.
    ("/tiers/*/placement", Some(Effect::Metadata)),
    ("/tiers/*/parameter_budget", Some(Effect::Metadata)),
    // No reader computes with it.
    ("/tiers/*/created_at", Some(Effect::Metadata)),
    // The digest says what is there, wherever that is.
    ("/files/*/object", Some(Effect::Metadata)),
];

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.join("/"))
    }
}

/// Every value of a document that is no object and no list; empty ones count.
pub(crate) fn of(document: &Value) -> Vec<Leaf> {
    let mut found = Vec::new();
    walk(document, &mut Vec::new(), &mut found);
    found
}

fn walk(value: &Value, path: &mut Vec<String>, found: &mut Vec<Leaf>) {
    let mut inner = |key: String, value: &Value| {
        path.push(key);
        walk(value, path, found);
        path.pop();
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(key, value)| inner(key.clone(), value));
        }
        Value::Array(entries) if !entries.is_empty() => {
            entries.iter().enumerate().for_each(|(n, value)| inner(n.to_string(), value));
        }
        _ => found.push(Leaf(path.clone())),
    }
}

/// What a change of the value means.
pub(crate) fn effect(leaf: &Leaf) -> Option<Effect> {
    let inside = ["tiers", "files"].contains(&leaf.0[0].as_str());
    let star = |(n, part): (usize, &String)| match n {
        1 if inside => "*".to_owned(),
        _ => part.clone(),
    };
    let pattern: Vec<String> = leaf.0.iter().enumerate().map(star).collect();
    let pattern = format!("/{}", pattern.join("/"));
    let known = MAY_CHANGE.iter().find(|(may, _)| *may == pattern);
    known.map_or(Some(Effect::Breaking), |(_, effect)| *effect)
}

/// Changes the value, or takes it away; says what it did.
pub(crate) fn mutate(document: &mut Value, leaf: &Leaf, rng: &mut ChaCha8Rng) -> Option<String> {
    let (last, outer) = leaf.0.split_last()?;
    let mut parent = document;
    for part in outer {
        parent = match parent {
            Value::Array(entries) => entries.get_mut(part.parse::<usize>().ok()?)?,
            other => other.get_mut(part)?,
        };
    }
    if rng.random_bool(0.2) {
        return match parent {
            Value::Array(entries) => {
                Some(format!("without {}", entries.remove(last.parse().ok()?)))
            }
            other => Some(format!("without {}", other.as_object_mut()?.remove(last)?)),
        };
    }
    let value = match parent {
        Value::Array(entries) => entries.get_mut(last.parse::<usize>().ok()?)?,
        other => other.get_mut(last)?,
    };
    let was = value.clone();
    *value = match &was {
        Value::Bool(is) => (!is).into(),
        Value::Number(number) => match number.as_u64() {
            Some(number) => (number + rng.random_range(1..3u64)).into(),
            None => (number.as_f64()? * 1.5 + 0.25).into(),
        },
        Value::String(text) => other_text(text, rng).into(),
        Value::Null => 1.into(),
        Value::Array(_) | Value::Object(_) => return None,
    };
    Some(format!("{was} became {value}"))
}

/// A text of the same kind: one of its letters or digits is another.
fn other_text(text: &str, rng: &mut ChaCha8Rng) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    let Some(at) = (!characters.is_empty()).then(|| rng.random_range(0..characters.len())) else {
        return "x".to_owned();
    };
    characters[at] = match characters[at] {
        '0'..='8' => char::from(characters[at] as u8 + 1),
        '9' => '0',
        'a' => 'b',
        _ => 'a',
    };
    characters.into_iter().collect()
}

//! Reading an activation record.

use super::super::activation::{Activation, MAX_ACTIVATION_BYTES, MAX_REASON_BYTES};
use super::super::json::Json;
use super::fields::Fields;
use super::record::tier_ids;
use super::{understood, within};
use crate::{Problem, Rejected};

impl Activation {
    /// Reads a record. Unknown fields are ignored.
    ///
    /// # Errors
    /// Every problem with its place, or, for a version that is not known here,
    /// that problem alone.
    pub fn parse(document: &[u8]) -> Result<Self, Rejected> {
        let json = within(document, MAX_ACTIVATION_BYTES).map_err(|p| Rejected(vec![p]))?;
        let mut problems = Vec::new();
        json.duplicates(&mut problems);
        let Json::Object(members) = &json else {
            let message = format!("the document is {}, an object is expected", json.kind());
            return Err(Rejected(vec![Problem::new("", message)]));
        };
        let mut fields = Fields::new(String::new(), members, &mut problems);
        understood(&mut fields, "an activation record").map_err(|p| Rejected(vec![p]))?;
        let activation = record(&mut fields);
        problems.sort();
        problems.dedup();
        if problems.is_empty() { Ok(activation) } else { Err(Rejected(problems)) }
    }
}

fn record(fields: &mut Fields<'_, '_>) -> Activation {
    fields.needs("activation");
    fields.needs("revision");
    let default_tier_set = fields.has("default_tier_set").then(|| {
        let items = fields.list("default_tier_set");
        let set = tier_ids(fields, items);
        if set.is_empty() {
            fields.problem("default_tier_set", "names no tier: leave it out for the manifest's");
        }
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = set.iter().find(|tier| !seen.insert(tier.to_string())) {
            fields.problem("default_tier_set", format!("{twice} appears more than once"));
        }
        set
    });
    let reason = fields.text("reason").map(str::to_owned);
    if reason.as_ref().is_some_and(|reason| !is_reason(reason)) {
        fields.problem(
            "reason",
            format!("at most {MAX_REASON_BYTES} bytes without control characters are expected"),
        );
    }
    Activation {
        format_version: fields.parsed("format_version").unwrap_or_default(),
        activation: fields.u64("activation").unwrap_or(0),
        revision: fields.u64("revision").unwrap_or(0),
        default_tier_set,
        created_at: fields.parsed("created_at"),
        reason,
    }
}

/// Whether a record takes this as its reason.
pub(in crate::document) fn is_reason(text: &str) -> bool {
    text.len() <= MAX_REASON_BYTES && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FORMAT_VERSION;

    fn problems(document: &str) -> Vec<String> {
        let rejected = Activation::parse(document.as_bytes()).expect_err("it is wrong");
        rejected.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_written_reads_back() {
        let whole = Activation {
            format_version: FORMAT_VERSION,
            activation: 7,
            revision: u64::MAX,
            default_tier_set: Some(vec![
                "tier_1b".parse().expect("an id"),
                crate::TierId::Number(7),
            ]),
            created_at: "2026-01-02T03:04:05Z".parse().ok(),
            reason: Some("grown by \"tier_10b\"".to_owned()),
        };
        let least =
            Activation { default_tier_set: None, created_at: None, reason: None, ..whole.clone() };
        for record in [whole, least] {
            assert_eq!(Activation::parse(record.to_json().as_bytes()), Ok(record));
        }
    }

    #[test]
    fn every_problem_of_a_record_is_told_with_its_place() {
        let found = problems(
            "{\"format_version\": \"1.0\", \"revision\": -1, \"default_tier_set\": [\"a\", \"a\"], \
             \"reason\": \"x\\u0007\", \"created_at\": \"today\"}",
        );
        for place in ["/activation", "/revision", "/default_tier_set", "/reason", "/created_at"] {
            assert!(found.iter().any(|problem| problem.starts_with(place)), "{place}: {found:?}");
        }
        let empty = "{\"format_version\": \"1.9\", \"activation\": 1, \"revision\": 1, \
                     \"news\": [], \"default_tier_set\": []}";
        assert_eq!(problems(empty).len(), 1, "a newer minor's fields are ignored");
    }

    #[test]
    fn what_is_no_record_of_this_major_is_named() {
        let newer = problems("{\"format_version\": \"2.0\", \"activation\": \"?\"}");
        assert!(newer.len() == 1 && newer[0].contains("upgrade tpad"), "{newer:?}");
        assert!(problems("{}")[0].contains("an activation record names its version"));
        assert!(problems("[]")[0].contains("an object is expected"));
        assert!(problems("{")[0].contains("not JSON"));
        assert!(problems(&" ".repeat(MAX_ACTIVATION_BYTES + 1))[0].contains("at most"));
    }

    #[test]
    fn a_record_is_held_against_the_manifest_that_it_names() {
        let golden = crate::Manifest::parse(
            b"{\"format_version\": \"1.0\", \"revision\": 3, \"tiers\": [{\"id\": \"a\", \
              \"parameter_budget\": 9, \"groups\": [{\"experts\": 2}]}]}",
        );
        let manifest = golden.expect("it is small and sound").manifest;
        let record = |revision, tier: &str| Activation {
            format_version: FORMAT_VERSION,
            activation: 1,
            revision,
            default_tier_set: Some(vec![tier.parse().expect("an id")]),
            created_at: None,
            reason: None,
        };
        assert_eq!(record(3, "a").check(&manifest), []);
        let places: Vec<String> =
            record(4, "b").check(&manifest).into_iter().map(|problem| problem.place).collect();
        assert_eq!(places, ["/revision", "/default_tier_set/0"]);
    }
}

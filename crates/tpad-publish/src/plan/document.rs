//! The plan's TOML, as serde reads it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use tpad_manifest::{Placement, Problem, TierId, is_tier_set_name};

use super::{ExpertList, Members, Plan, TierPlan, wrong};

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    default_tier_set: Option<Vec<Id>>,
    #[serde(default)]
    tier_sets: BTreeMap<String, Vec<Id>>,
    #[serde(default)]
    unused: Option<Unused>,
    #[serde(default)]
    tiers: Vec<Tier>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unused {
    #[serde(default)]
    experts: Option<String>,
    #[serde(default)]
    layers: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tier {
    id: Id,
    #[serde(default)]
    placement: Placement,
    #[serde(default)]
    parameter_budget: Option<Count>,
    #[serde(default)]
    k_tier: Option<u32>,
    #[serde(default)]
    k_group: Option<u32>,
    #[serde(default)]
    k_expert: Option<u32>,
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    experts: String,
    #[serde(default)]
    layers: BTreeMap<String, String>,
}

/// A tier's id.
#[derive(Debug)]
struct Id(TierId);

/// A number of parameters.
#[derive(Debug)]
enum Count {
    Number(u64),
    Text(String),
}

impl Document {
    /// The plan, and every value in it that cannot be used.
    pub(super) fn check(self, problems: &mut Vec<Problem>) -> Plan {
        let Self { default_tier_set, tier_sets, unused, tiers } = self;
        if tiers.is_empty() {
            wrong(problems, "/tiers", "a plan has at least one [[tiers]]");
        }
        let tiers: Vec<TierPlan> = tiers
            .into_iter()
            .enumerate()
            .map(|(n, tier)| tier.check(&format!("/tiers/{n}"), problems))
            .collect();
        for (n, tier) in tiers.iter().enumerate() {
            let place = format!("/tiers/{n}/id");
            if let Err(error) = tier.id.check() {
                wrong(problems, place.clone(), error.to_string());
            }
            let text = tier.id.to_string();
            if tiers[..n].iter().any(|other| other.id.is(&text)) {
                wrong(problems, place, format!("tier {text} is there already"));
            }
        }
        let default_tier_set: Option<Vec<TierId>> =
            default_tier_set.map(|ids| ids.into_iter().map(|id| id.0).collect());
        if let Some(set) = &default_tier_set {
            check_set(set, &tiers, "/default_tier_set", problems);
        }
        let tier_sets: BTreeMap<String, Vec<TierId>> = tier_sets
            .into_iter()
            .map(|(name, ids)| (name, ids.into_iter().map(|id| id.0).collect()))
            .collect();
        for (name, set) in &tier_sets {
            let place = format!("/tier_sets/{name}");
            if !is_tier_set_name(name) {
                let what = "a name has 1 to 128 letters, digits, '_', '-' and '.'";
                wrong(problems, place.clone(), what);
            }
            check_set(set, &tiers, &place, problems);
        }
        let unused = unused.map_or_else(Members::default, |Unused { experts, layers }| Members {
            experts: experts.map_or_else(ExpertList::default, |experts| {
                list(&experts, "/unused/experts", problems)
            }),
            layers: lists(layers, "/unused/layers", problems),
        });
        Plan { tiers, unused, default_tier_set, tier_sets }
    }
}

/// A TierSet of the plan names tiers of the plan, each once.
fn check_set(set: &[TierId], tiers: &[TierPlan], place: &str, problems: &mut Vec<Problem>) {
    for (n, id) in set.iter().enumerate() {
        let place = format!("{place}/{n}");
        if !tiers.iter().any(|tier| tier.id == *id) {
            wrong(problems, place.clone(), format!("{id} is not a tier of this plan"));
        }
        if set.iter().take(n).any(|other| other == id) {
            wrong(problems, place, format!("{id} is there already"));
        }
    }
}

impl Tier {
    fn check(self, place: &str, problems: &mut Vec<Problem>) -> TierPlan {
        let Self { id, placement, parameter_budget, k_tier, k_group, k_expert, groups } = self;
        if groups.is_empty() {
            wrong(problems, format!("{place}/groups"), "a tier has at least one [[tiers.groups]]");
        }
        for (name, k) in [("k_tier", k_tier), ("k_group", k_group), ("k_expert", k_expert)] {
            if k == Some(0) {
                wrong(problems, format!("{place}/{name}"), "at least 1 is expected");
            }
        }
        let parameter_budget = match parameter_budget {
            Some(Count::Text(text)) => match count(&text) {
                Some(count) => Some(count),
                None => {
                    let what =
                        format!("{text:?} is no count such as 1500000000, \"1.5B\" or \"400M\"");
                    wrong(problems, format!("{place}/parameter_budget"), what);
                    None
                }
            },
            Some(Count::Number(count)) => Some(count),
            None => None,
        };
        let mut members = Vec::with_capacity(groups.len());
        for (n, Group { experts, layers }) in groups.into_iter().enumerate() {
            let place = format!("{place}/groups/{n}");
            members.push(Members {
                experts: list(&experts, &format!("{place}/experts"), problems),
                layers: lists(layers, &format!("{place}/layers"), problems),
            });
        }
        TierPlan {
            id: id.0,
            placement,
            parameter_budget,
            k_tier,
            k_group,
            k_expert,
            groups: members,
        }
    }
}

fn list(text: &str, place: &str, problems: &mut Vec<Problem>) -> ExpertList {
    text.parse().unwrap_or_else(|message| {
        wrong(problems, place, message);
        ExpertList::default()
    })
}

fn lists(
    layers: BTreeMap<String, String>,
    place: &str,
    problems: &mut Vec<Problem>,
) -> BTreeMap<u32, ExpertList> {
    let mut lists = BTreeMap::new();
    for (layer, experts) in layers {
        let place = format!("{place}/{layer}");
        let experts = list(&experts, &place, problems);
        match layer.parse::<u32>() {
            Ok(number) if number.to_string() == layer => {
                lists.insert(number, experts);
            }
            _ => wrong(problems, place, format!("{layer:?} is no layer's number")),
        }
    }
    lists
}

/// A count as people write it: `"10B"` is ten thousand million exactly.
fn count(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, zeros) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 3),
        (at, 'M') => (&text[..at], 6),
        (at, 'B' | 'G') => (&text[..at], 9),
        (at, 'T') => (&text[..at], 12),
        _ => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let fits = !whole.is_empty() && plain(whole) && plain(fraction) && fraction.len() <= zeros;
    let dotted = digits.contains('.');
    if !fits || dotted && fraction.is_empty() {
        return None;
    }
    let zeros = "0".repeat(zeros - fraction.len());
    format!("{whole}{fraction}{zeros}").parse().ok()
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id =
            deserializer.deserialize_any(Scalar("a tier id, an integer from 0 or a string"))?;
        Ok(Self(match id {
            Count::Number(number) => TierId::Number(number),
            Count::Text(name) => TierId::Name(name.into()),
        }))
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar("a count, an integer from 0 or text such as \"10B\""))
    }
}

/// Reads an integer or a string; says what was expected otherwise.
struct Scalar(&'static str);

impl Visitor<'_> for Scalar {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Count, E> {
        let unexpected = serde::de::Unexpected::Signed(number);
        u64::try_from(number).map(Count::Number).map_err(|_| E::invalid_value(unexpected, &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Count, E> {
        Ok(Count::Number(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Count, E> {
        Ok(Count::Text(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact() {
        for (text, expected) in [
            ("10B", Some(10_000_000_000)),
            ("1.5B", Some(1_500_000_000)),
            ("400M", Some(400_000_000)),
            ("0.001K", Some(1)),
            ("7", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("20000000T", None),
            ("0.0001K", None),
            ("1.5", None),
            ("1.K", None),
            (".5B", None),
            ("", None),
            ("B", None),
            ("-1", None),
            ("1 B", None),
            ("1é", None),
        ] {
            assert_eq!(count(text), expected, "{text:?}");
        }
    }
}

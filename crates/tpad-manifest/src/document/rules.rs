//! What must hold within one manifest.

use std::collections::{HashMap, HashSet};

use super::{IndexRef, Manifest, TierRecord};
use crate::problem::note;
use crate::{Problem, TierId, check_object_path};

/// Bounds that no honest manifest comes near; they keep counts in memory and
/// in replies small.
const MAX_TIERS: usize = 1024;
const MAX_GROUPS: usize = 65_536;
const MAX_LAYERS: usize = 65_536;
const MAX_EXPERTS_PER_TIER: u64 = 1 << 24;
/// The headers of all indexes: they are held as long as the model is served,
/// and each takes some five times its size.
const MAX_HEADERS_BYTES: u64 = 64 << 20;
pub(super) const MAX_FILES: usize = 4096;
pub(super) const MAX_TIER_SETS: usize = 1024;

/// The longest name of a TierSet, in bytes: names come back in replies.
const MAX_SET_NAME_BYTES: usize = 128;

/// Whether a name can be that of a TierSet: 1 to 128 letters, digits, `_`, `-`
/// and `.`, as in a tier's id.
#[must_use]
pub fn is_tier_set_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    (1..=MAX_SET_NAME_BYTES).contains(&name.len()) && name.bytes().all(letter)
}

impl Manifest {
    /// What is wrong with the manifest's content, up to a number of problems of
    /// which no more are told. [`Manifest::parse`] applies these rules, and a
    /// publisher applies them before it writes.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        bounded(&mut problems, "/tiers", self.tiers.len(), MAX_TIERS);
        bounded(&mut problems, "/layers", self.layers.len(), MAX_LAYERS);
        bounded(&mut problems, "/files", self.files.len(), MAX_FILES);
        bounded(&mut problems, "/tier_sets", self.tier_sets.len(), MAX_TIER_SETS);
        if !problems.is_empty() {
            // What follows compares entries with each other: not too many of them.
            return problems;
        }
        self.check_tiers(&mut problems);
        self.check_layers(&mut problems);
        self.check_files(&mut problems);
        if let Some(dense) = &self.dense {
            dense.check("/dense", &mut problems);
        }
        self.check_headers(&mut problems);
        if !self.scoring.scale.is_finite() {
            note(&mut problems, || Problem::new("/scoring/scale", "a finite number is expected"));
        }
        if let Some(base) = &self.objects_base
            && (base.is_empty() || base.chars().any(char::is_control))
        {
            note(&mut problems, || Problem::new("/objects_base", "a URL or directory is expected"));
        }
        problems
    }

    fn check_tiers(&self, problems: &mut Vec<Problem>) {
        let mut seen: HashMap<String, &TierId> = HashMap::new();
        for (n, tier) in self.tiers.iter().enumerate() {
            if let Some(other) = seen.insert(tier.id.to_string(), &tier.id) {
                let message = if *other == tier.id {
                    format!("tier {} appears more than once", tier.id)
                } else {
                    format!("{} is there as an integer and as a string: one must change", tier.id)
                };
                note(problems, || Problem::new(format!("/tiers/{n}/id"), message));
            }
            tier.check(&format!("/tiers/{n}"), problems);
        }
        let known: HashSet<&TierId> = self.tiers.iter().map(|tier| &tier.id).collect();
        check_set(&known, &self.default_tier_set, "/default_tier_set", problems);
        for (name, set) in &self.tier_sets {
            let place = super::json::pointer("/tier_sets", name);
            if !is_tier_set_name(name) {
                let message = "a name has 1 to 128 letters, digits, '_', '-' and '.'";
                note(problems, || Problem::new(place.clone(), message));
            }
            check_set(&known, set, &place, problems);
        }
    }

    /// Whether the headers of all indexes can be held.
    fn check_headers(&self, problems: &mut Vec<Problem>) {
        let dense = self.dense.as_ref().map(|index| (None, index));
        let tiers = self.tiers.iter().enumerate();
        let tiers = tiers.filter_map(|(n, tier)| Some((Some(n), tier.index.as_ref()?)));
        let mut sum = 0u64;
        for (tier, index) in dense.into_iter().chain(tiers) {
            sum = sum.saturating_add(index.header_bytes);
            if sum > MAX_HEADERS_BYTES {
                let place = tier.map_or("/dense".into(), |n| format!("/tiers/{n}/index"));
                let message = format!(
                    "the headers of the indexes up to here have {sum} bytes, at most \
                     {MAX_HEADERS_BYTES} are read"
                );
                problems.push(Problem::new(format!("{place}/header_bytes"), message));
                return;
            }
        }
    }

    fn check_layers(&self, problems: &mut Vec<Problem>) {
        for (n, pair) in self.layers.windows(2).enumerate() {
            if pair[0].layer >= pair[1].layer {
                let message = format!("layer {} follows layer {}", pair[1].layer, pair[0].layer);
                note(problems, || Problem::new(format!("/layers/{}", n + 1), message));
            }
        }
    }

    fn check_files(&self, problems: &mut Vec<Problem>) {
        for (name, file) in &self.files {
            let place = super::json::pointer("/files", name);
            if let Err(error) = check_object_path(name) {
                note(problems, || Problem::new(place.clone(), format!("the name: {error}")));
            }
            if let Err(error) = check_object_path(&file.object) {
                note(problems, || Problem::new(format!("{place}/object"), error.to_string()));
            }
        }
    }
}

impl TierRecord {
    fn check(&self, place: &str, problems: &mut Vec<Problem>) {
        if self.groups.is_empty() {
            note(problems, || {
                Problem::new(format!("{place}/groups"), "a tier has at least one group")
            });
        }
        bounded(problems, &format!("{place}/groups"), self.groups.len(), MAX_GROUPS);
        for (n, group) in self.groups.iter().enumerate() {
            if group.experts == 0 {
                let place = format!("{place}/groups/{n}/experts");
                note(problems, || Problem::new(place, "a group has at least one expert"));
            }
        }
        let experts: u64 = self.groups.iter().map(|group| u64::from(group.experts)).sum();
        if experts > MAX_EXPERTS_PER_TIER {
            let message =
                format!("{experts} experts, at most {MAX_EXPERTS_PER_TIER} are supported");
            note(problems, || Problem::new(format!("{place}/groups"), message));
        }
        self.check_routing(place, experts, problems);
        if let Some(index) = &self.index {
            index.check(&format!("{place}/index"), problems);
        }
    }

    fn check_routing(&self, place: &str, experts: u64, problems: &mut Vec<Problem>) {
        let groups = u64::try_from(self.groups.len()).unwrap_or(u64::MAX);
        let k = &self.routing;
        for (name, value, most, what) in [
            ("k_tier", k.k_tier, u64::MAX, ""),
            ("k_group", k.k_group, groups, "groups"),
            ("k_expert", k.k_expert, experts, "experts"),
        ] {
            let place = format!("{place}/routing/{name}");
            if value == 0 {
                note(problems, || Problem::new(place, "at least 1 is expected"));
            } else if u64::from(value) > most {
                note(problems, || Problem::new(place, format!("{value} of {most} {what}")));
            }
        }
    }
}

impl IndexRef {
    fn check(&self, place: &str, problems: &mut Vec<Problem>) {
        if self.header_bytes > self.bytes {
            let message =
                format!("{} is beyond the object's {} bytes", self.header_bytes, self.bytes);
            note(problems, || Problem::new(format!("{place}/header_bytes"), message));
        }
    }
}

/// A TierSet of the manifest names tiers of the manifest, each once.
fn check_set(known: &HashSet<&TierId>, set: &[TierId], place: &str, problems: &mut Vec<Problem>) {
    if bounded(problems, place, set.len(), MAX_TIERS) {
        return;
    }
    let mut seen = HashSet::new();
    for (n, id) in set.iter().enumerate() {
        if !known.contains(id) {
            note(problems, || {
                Problem::new(format!("{place}/{n}"), format!("{id} is not a tier of this manifest"))
            });
        }
        if !seen.insert(id) {
            note(problems, || {
                Problem::new(format!("{place}/{n}"), format!("{id} appears more than once"))
            });
        }
    }
}

/// Whether there are more than `most`, which is a problem.
fn bounded(problems: &mut Vec<Problem>, place: &str, count: usize, most: usize) -> bool {
    if count > most {
        let message = format!("{count} entries, at most {most} are supported");
        note(problems, || Problem::new(place, message));
    }
    count > most
}

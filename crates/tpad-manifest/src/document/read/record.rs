//! From fields to records, defaults filled in.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::super::json::Json;
use super::super::rules::{MAX_FILES, MAX_TIER_SETS};
use super::super::{
    Compatibility, FileRecord, GroupRecord, GroupScoring, IndexRef, LayerKind, LayerRecord,
    Manifest, Placement, Routing, Scoring, ScoringFunction, TierRecord,
};
use super::fields::Fields;
use super::unknown_requirements;
use crate::problem::note;
use crate::{Digest, Dtype, Problem, TierId};

/// The digest that stands in for one that could not be read; the problem that
/// goes with it refuses the document.
const NO_DIGEST: Digest = Digest::from_bytes([0; 32]);

pub(super) fn manifest(
    fields: &mut Fields<'_, '_>,
    warnings: &mut Vec<Problem>,
    skipped: &mut BTreeMap<TierId, String>,
) -> Manifest {
    fields.needs("tiers");
    let tiers = tiers(fields, warnings, skipped);
    let default_tier_set = if fields.has("default_tier_set") {
        let items = fields.list("default_tier_set");
        tier_ids(fields, items)
    } else {
        tiers.iter().map(|tier| tier.id.clone()).collect()
    };
    Manifest {
        format_version: fields.parsed("format_version").unwrap_or_default(),
        model_version: fields.parsed("model_version").unwrap_or_default(),
        model: fields.text("model").unwrap_or_default().to_owned(),
        revision: fields.u64("revision").unwrap_or(0),
        parent: fields.parsed("parent"),
        created_at: fields.parsed("created_at"),
        objects_base: fields.text("objects_base").map(str::to_owned),
        layers: layers(fields, warnings),
        scoring: scoring(fields, warnings),
        default_tier_set,
        tier_sets: tier_sets(fields),
        requires: fields.texts("requires"),
        files: files(fields),
        dense: index(fields, "dense"),
        tiers,
    }
}

fn layers(fields: &mut Fields<'_, '_>, warnings: &mut Vec<Problem>) -> Vec<LayerRecord> {
    let mut layers = Vec::new();
    for (place, item) in fields.list("layers") {
        if let Some(mut layer) = fields.fields(place, item) {
            layer.needs("layer");
            let kind = known(&mut layer, "kind", warnings, |text| match text {
                "moe" => Some(LayerKind::Moe),
                "mtp" => Some(LayerKind::Mtp),
                _ => None,
            });
            layers.push(LayerRecord { layer: layer.u32("layer").unwrap_or(0), kind });
        }
    }
    layers
}

/// A hint: an unknown value takes the default, with a warning.
fn known<T: Default>(
    fields: &mut Fields<'_, '_>,
    key: &str,
    warnings: &mut Vec<Problem>,
    read: impl Fn(&str) -> Option<T>,
) -> T {
    known_or(fields, key, warnings, (T::default(), "the default is taken"), read)
}

/// As [`known`], with what stands for a name that is not known and what the
/// warning says of that.
fn known_or<T: Default>(
    fields: &mut Fields<'_, '_>,
    key: &str,
    warnings: &mut Vec<Problem>,
    (otherwise, said): (T, &str),
    read: impl Fn(&str) -> Option<T>,
) -> T {
    let Some(text) = fields.text(key) else { return T::default() };
    read(text).unwrap_or_else(|| {
        let message = format!("{text:?} is not known here: {said}");
        note(warnings, || Problem::new(fields.place(key), message));
        otherwise
    })
}

fn scoring(fields: &mut Fields<'_, '_>, warnings: &mut Vec<Problem>) -> Scoring {
    let default = Scoring::default();
    let Some(mut scoring) = fields.object("scoring") else { return default };
    let scale = scoring.f64("scale").unwrap_or(default.scale);
    let said = "blocks are served, routers must refuse it";
    let unknown = (ScoringFunction::Unknown, said);
    let unknown_groups = (GroupScoring::Unknown, said);
    Scoring {
        function: known_or(&mut scoring, "function", warnings, unknown, |text| match text {
            "softmax" => Some(ScoringFunction::Softmax),
            "softmax_after_top_k" => Some(ScoringFunction::SoftmaxAfterTopK),
            "sigmoid" => Some(ScoringFunction::Sigmoid),
            "sqrt_softplus" => Some(ScoringFunction::SqrtSoftplus),
            _ => None,
        }),
        correction_bias: scoring.boolean("correction_bias").unwrap_or(default.correction_bias),
        normalize: scoring.boolean("normalize").unwrap_or(default.normalize),
        scale,
        groups: known_or(&mut scoring, "groups", warnings, unknown_groups, |text| match text {
            "log_sum_exp" => Some(GroupScoring::LogSumExp),
            "max" => Some(GroupScoring::Max),
            "top_two_sum" => Some(GroupScoring::TopTwoSum),
            _ => None,
        }),
    }
}

fn files(fields: &mut Fields<'_, '_>) -> BTreeMap<String, FileRecord> {
    let mut files = BTreeMap::new();
    for (place, name, value) in fields.members("files", MAX_FILES) {
        if *value == Json::Null {
            continue;
        }
        if let Some(mut file) = fields.fields(place, value) {
            for key in ["object", "bytes", "digest"] {
                file.needs(key);
            }
            let record = FileRecord {
                object: file.text("object").unwrap_or_default().to_owned(),
                bytes: file.u64("bytes").unwrap_or(0),
                digest: file.parsed("digest").unwrap_or(NO_DIGEST),
            };
            files.insert(name.to_owned(), record);
        }
    }
    files
}

fn index(fields: &mut Fields<'_, '_>, key: &str) -> Option<IndexRef> {
    let mut index = fields.object(key)?;
    for key in ["digest", "header_bytes", "bytes"] {
        index.needs(key);
    }
    Some(IndexRef {
        digest: index.parsed("digest").unwrap_or(NO_DIGEST),
        header_bytes: index.u64("header_bytes").unwrap_or(0),
        bytes: index.u64("bytes").unwrap_or(0),
    })
}

fn tier_id(value: &Json) -> Result<TierId, String> {
    match value {
        Json::Unsigned(number) => Ok(TierId::Number(*number)),
        Json::Text(name) => {
            let id = TierId::Name(name.as_str().into());
            id.check().map_err(|error| error.to_string())?;
            Ok(id)
        }
        other => Err(format!("a tier id is an integer or a string, this is {}", other.kind())),
    }
}

pub(super) fn tier_ids(fields: &mut Fields<'_, '_>, items: Vec<(String, &Json)>) -> Vec<TierId> {
    let mut ids = Vec::new();
    for (place, item) in items {
        match tier_id(item) {
            Ok(id) => ids.push(id),
            Err(message) => fields.problem_at(place, message),
        }
    }
    ids
}

fn tier_sets(fields: &mut Fields<'_, '_>) -> BTreeMap<String, Vec<TierId>> {
    let mut sets = BTreeMap::new();
    for (place, name, value) in fields.members("tier_sets", MAX_TIER_SETS) {
        if *value == Json::Null {
            fields.problem_at(place, "missing");
            continue;
        }
        let items = fields.items(&place, value);
        sets.insert(name.to_owned(), tier_ids(fields, items));
    }
    sets
}

fn tiers(
    fields: &mut Fields<'_, '_>,
    warnings: &mut Vec<Problem>,
    skipped: &mut BTreeMap<TierId, String>,
) -> Vec<TierRecord> {
    let mut tiers = Vec::new();
    for (place, item) in fields.list("tiers") {
        if let Some(mut fields) = fields.fields(place, item)
            && let Some(tier) = tier(&mut fields, warnings)
        {
            if let Some(reason) = skip(&tier.compatibility) {
                skipped.insert(tier.id.clone(), reason);
            }
            tiers.push(tier);
        }
    }
    tiers
}

fn tier(fields: &mut Fields<'_, '_>, warnings: &mut Vec<Problem>) -> Option<TierRecord> {
    fields.needs("parameter_budget");
    fields.needs("groups");
    let id = match fields.value("id").map(tier_id) {
        Some(Ok(id)) => Some(id),
        Some(Err(message)) => {
            fields.problem("id", message);
            None
        }
        None => {
            fields.problem("id", "missing");
            None
        }
    };
    let record = TierRecord {
        id: id.clone().unwrap_or(TierId::Number(0)),
        created_at: fields.parsed("created_at"),
        parameter_budget: fields.u64("parameter_budget").unwrap_or(0),
        groups: groups(fields),
        placement: known(fields, "placement", warnings, placement),
        routing: routing(fields),
        compatibility: compatibility(fields),
        index: index(fields, "index"),
    };
    id.map(|_| record)
}

fn placement(text: &str) -> Option<Placement> {
    match text {
        "hbm" => Some(Placement::Hbm),
        "dram" => Some(Placement::Dram),
        "nvme" => Some(Placement::Nvme),
        "object_store" => Some(Placement::ObjectStore),
        _ => None,
    }
}

fn groups(fields: &mut Fields<'_, '_>) -> Vec<GroupRecord> {
    let mut groups = Vec::new();
    for (place, item) in fields.list("groups") {
        if let Some(mut group) = fields.fields(place, item) {
            group.needs("experts");
            groups.push(GroupRecord {
                experts: group.u32("experts").unwrap_or(0),
                hidden_size: group.u64("hidden_size"),
                intermediate_size: group.u64("intermediate_size"),
            });
        }
    }
    groups
}

fn routing(fields: &mut Fields<'_, '_>) -> Routing {
    let default = Routing::default();
    let Some(mut routing) = fields.object("routing") else { return default };
    Routing {
        k_tier: routing.u32("k_tier").unwrap_or(default.k_tier),
        k_group: routing.u32("k_group").unwrap_or(default.k_group),
        k_expert: routing.u32("k_expert").unwrap_or(default.k_expert),
    }
}

fn compatibility(fields: &mut Fields<'_, '_>) -> Compatibility {
    let Some(mut flags) = fields.object("compatibility") else { return Compatibility::default() };
    Compatibility {
        format_version: flags.parsed("format_version").unwrap_or_default(),
        requires: flags.texts("requires"),
        dtypes: flags.texts("dtypes").iter().map(|name| Dtype::from(name.as_str())).collect(),
        quantization: flags.text("quantization").map(str::to_owned),
    }
}

/// Why a tier cannot be served by this version, if it cannot.
fn skip(flags: &Compatibility) -> Option<String> {
    let requires = unknown_requirements(&flags.requires);
    if !requires.is_empty() {
        return Some(format!(
            "it requires {}, which this version does not know",
            requires.join(", ")
        ));
    }
    let unknown = flags.dtypes.iter().find(|dtype| dtype.bits().is_none());
    unknown.map(|dtype| format!("its dtype {dtype} has a size that this version does not know"))
}

impl TierRecord {
    /// Reads one tier's metadata on its own, as `serde_json` writes it: no
    /// manifest, index or weights are needed.
    ///
    /// # Errors
    /// Every problem with its place.
    pub fn parse(document: &[u8]) -> Result<Self, crate::Rejected> {
        let json = super::tree(document).map_err(|problem| crate::Rejected(vec![problem]))?;
        let mut problems = Vec::new();
        json.duplicates(&mut problems);
        let record = match &json {
            Json::Object(members) => {
                let mut fields = Fields::new(String::new(), members, &mut problems);
                tier(&mut fields, &mut Vec::new())
            }
            other => {
                let message = format!("the document is {}, an object is expected", other.kind());
                problems.push(Problem::new("", message));
                None
            }
        };
        match record {
            Some(record) if problems.is_empty() => Ok(record),
            _ => Err(crate::Rejected(problems)),
        }
    }
}

impl FromStr for TierRecord {
    type Err = crate::Rejected;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.as_bytes())
    }
}

//! The daemon's status as tables: what an operator looks at first.

use serde::Deserialize;
use serde_json::Value;

use crate::output::{Output, Tone, human_bytes, printable};

/// What the tables show of the document. All of it may be missing: a daemon may
/// be older or newer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Summary {
    version: String,
    uptime_seconds: u64,
    ready: bool,
    models: Vec<Model>,
    pinned: Amount,
    hbm: Hbm,
    store: Store,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Model {
    name: String,
    root: String,
    state: String,
    reason: Option<String>,
    stale: Option<String>,
    revision: Option<u64>,
    generation: Option<u64>,
    activation: Option<u64>,
    pinned: bool,
    coming: Option<Coming>,
    tiers: Vec<Tier>,
    warnings: Vec<String>,
}

/// A revision that is about to be served.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Coming {
    revision: u64,
    tiers: Vec<ComingTier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ComingTier {
    id: String,
    warm: Warm,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tier {
    id: String,
    placement: String,
    home: String,
    home_reason: Option<String>,
    bytes: u64,
    resident_bytes: Resident,
    missing_bytes: u64,
    warm: Warm,
    reads: Lookups,
    skipped: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resident {
    hbm: u64,
    dram: u64,
    nvme: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Warm {
    state: String,
    done_bytes: u64,
    total_bytes: u64,
    problem: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lookups {
    hit_ratio: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Store {
    levels: Vec<Level>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Hbm {
    /// What it is made of: a word, or a word with its reason.
    mode: Value,
    health: Value,
    devices: Vec<Device>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Device {
    index: u64,
    name: String,
    blocks: u64,
    kept_bytes: u64,
    budget_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Level {
    level: String,
    usage: Usage,
    /// A word, or a word with its reason.
    health: Value,
    note: Option<String>,
    lookups: Lookups,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Usage {
    blocks: u64,
    bytes: u64,
    capacity: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Amount {
    blocks: u64,
    bytes: u64,
}

impl Summary {
    /// The tables, and below them whatever has a reason.
    pub(super) fn show(&self, output: &Output) -> String {
        let ready = match self.ready {
            true => output.tone(Tone::Good, "ready"),
            false => output.tone(Tone::Bad, "not ready"),
        };
        let version = printable(&self.version);
        let mut lines = vec![format!("tpad {version}, {ready}, up {} s", self.uptime_seconds)];
        let mut reasons = Vec::new();
        lines.extend([String::new(), self.models(output, &mut reasons)]);
        lines.extend([String::new(), self.tiers(output, &mut reasons)]);
        lines.extend([String::new(), self.levels(output, &mut reasons)]);
        if self.pinned.blocks > 0 {
            let Amount { blocks, bytes } = self.pinned;
            lines.extend([
                String::new(),
                format!("pinned  {blocks} blocks, {}", human_bytes(bytes)),
            ]);
        }
        if !reasons.is_empty() {
            lines.push(String::new());
            lines.extend(reasons);
        }
        lines.join("\n")
    }

    fn models(&self, output: &Output, reasons: &mut Vec<String>) -> String {
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let mut rows = Vec::new();
        for model in &self.models {
            let Model { name, root, state, revision, generation, activation, .. } = model;
            let chosen = match activation {
                Some(number) => format!("activation {number}"),
                None if model.pinned => "pinned".to_owned(),
                None => "highest".to_owned(),
            };
            let (revision, generation) = (number(*revision), number(*generation));
            let cells = [state.clone(), revision, chosen, generation, root.clone()];
            rows.push([name.clone()].into_iter().chain(cells).collect());
            let said = [("failed", &model.reason), ("stale", &model.stale)];
            let said = said.into_iter().filter_map(|(what, why)| Some((what, why.as_ref()?)));
            if let Some(Coming { revision, tiers }) = &model.coming {
                let tiers = tiers.iter().map(|tier| format!("{} {}", tier.id, tier.warm.show()));
                let tiers = tiers.collect::<Vec<_>>().join(", ");
                let (name, tiers) = (printable(name), printable(&tiers));
                reasons.push(format!("{name}: revision {revision} is brought home first: {tiers}"));
            }
            let warnings = model.warnings.iter().map(|warning| ("warning", warning));
            for (what, why) in said.chain(warnings) {
                reasons.push(format!("{}: {what}: {}", printable(name), printable(why)));
            }
        }
        output.table(&["MODEL", "STATE", "REVISION", "CHOSEN BY", "GENERATION", "ROOT"], &rows)
    }

    fn tiers(&self, output: &Output, reasons: &mut Vec<String>) -> String {
        let mut rows = Vec::new();
        for (model, tier) in self.models.iter().flat_map(|m| m.tiers.iter().map(move |t| (m, t))) {
            let skipped = tier.skipped.is_some();
            rows.push(vec![
                model.name.clone(),
                tier.id.clone(),
                tier.placement.clone(),
                if skipped { "skipped".to_owned() } else { tier.home.clone() },
                human_bytes(tier.bytes),
                human_bytes(tier.resident_bytes.hbm),
                human_bytes(tier.resident_bytes.dram),
                human_bytes(tier.resident_bytes.nvme),
                human_bytes(tier.missing_bytes),
                tier.warm.show(),
                tier.reads.show(),
            ]);
            let said = [
                ("skipped", &tier.skipped),
                ("home", &tier.home_reason),
                ("not brought home", &tier.warm.problem),
            ];
            for (what, why) in
                said.into_iter().filter_map(|(what, why)| Some((what, why.as_ref()?)))
            {
                let (model, tier) = (printable(&model.name), printable(&tier.id));
                reasons.push(format!("{model}: tier {tier}: {what}: {}", printable(why)));
            }
        }
        let headings = [
            "MODEL",
            "TIER",
            "PLACEMENT",
            "HOME",
            "SIZE",
            "IN HBM",
            "IN DRAM",
            "ON NVME",
            "MISSING",
            "WARM",
            "HITS",
        ];
        output.table(&headings, &rows)
    }

    fn levels(&self, output: &Output, reasons: &mut Vec<String>) -> String {
        let mut rows = self.devices(reasons);
        for level in &self.store.levels {
            let (health, why) = health(&level.health);
            rows.push(vec![
                level.level.clone(),
                health.clone(),
                level.usage.blocks.to_string(),
                human_bytes(level.usage.bytes),
                human_bytes(level.usage.capacity),
                level.lookups.show(),
                level.note.clone().unwrap_or_default(),
            ]);
            if let Some(why) = why {
                let (level, health) = (printable(&level.level), printable(&health));
                reasons.push(format!("{level}: {health}: {}", printable(&why)));
            }
        }
        let headings = ["LEVEL", "HEALTH", "BLOCKS", "USED", "CAPACITY", "HITS", "NOTE"];
        output.table(&headings, &rows)
    }
}

impl Summary {
    /// A row for each GPU.
    fn devices(&self, reasons: &mut Vec<String>) -> Vec<Vec<String>> {
        let Hbm { mode, health: state, devices } = &self.hbm;
        let (mode, off) = health(mode);
        let (state, broken) = health(state);
        for (what, why) in [(&mode, off), (&state, broken)] {
            if let Some(why) = why {
                reasons.push(format!("hbm: {}: {}", printable(what), printable(&why)));
            }
        }
        let row = |device: &Device| {
            vec![
                format!("hbm {}", device.index),
                state.clone(),
                device.blocks.to_string(),
                human_bytes(device.kept_bytes),
                human_bytes(device.budget_bytes),
                String::new(),
                format!("{}, {mode}", device.name),
            ]
        };
        devices.iter().map(row).collect()
    }
}

impl Warm {
    fn show(&self) -> String {
        match self.state.as_str() {
            "warming" | "waiting" if self.total_bytes > 0 => {
                let percent = u128::from(self.done_bytes) * 100 / u128::from(self.total_bytes);
                format!("{} {percent} %", self.state)
            }
            state => state.replace('_', " "),
        }
    }
}

impl Lookups {
    fn show(&self) -> String {
        self.hit_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0))
    }
}

/// `"ok"`, or `{"broken": "why"}`.
fn health(health: &Value) -> (String, Option<String>) {
    if let Some((word, why)) = health.as_object().and_then(|fields| fields.iter().next()) {
        return (word.replace('_', " "), why.as_str().map(str::to_owned));
    }
    (health.as_str().unwrap_or("-").to_owned(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(status: Value) -> String {
        let summary: Summary = serde_json::from_value(status).expect("it is read");
        summary.show(&Output::for_terminal(false, None))
    }

    #[test]
    fn what_has_a_reason_is_told_with_it() {
        let text = show(serde_json::json!({
            "version": "0.1.0", "uptime_seconds": 7, "ready": true,
            "models": [{
                "name": "m", "root": "s3://b/m", "state": "serving", "revision": 3, "generation": 1,
                "stale": "the store is away", "warnings": ["tier a is 2.0 GiB"],
                "coming": { "revision": 4, "tiers": [
                    { "id": "c", "home": "dram",
                      "warm": { "state": "warming", "done_bytes": 1, "total_bytes": 4 } }
                ] },
                "tiers": [
                    { "id": "a", "placement": "hbm", "home": "dram", "home_reason": "no GPU: served from dram",
                      "bytes": 2048, "resident_bytes": { "dram": 1024, "nvme": 0 }, "missing_bytes": 1024,
                      "warm": { "state": "warming", "done_bytes": 1024, "total_bytes": 2048, "problem": "no answer" },
                      "reads": { "hits": 1, "misses": 2, "hit_ratio": 0.3333 } },
                    { "id": "b", "placement": "nvme", "skipped": "requires \"x\"" }
                ]
            }],
            "pinned": { "blocks": 2, "bytes": 4096 },
            "hbm": { "mode": "cuda", "health": { "broken": "illegal address" }, "devices": [
                { "index": 1, "name": "a GPU", "blocks": 3, "kept_bytes": 3 << 20, "budget_bytes": 1 << 30 }
            ] },
            "store": { "levels": [
                { "level": "dram", "health": "ok", "usage": { "blocks": 1, "bytes": 4096, "capacity": 8192 } },
                { "level": "nvme", "health": { "read_only": "disk full" }, "note": "direct reads" }
            ] }
        }));
        for expected in [
            "tpad 0.1.0, ready, up 7 s",
            "warming 50 %",
            "33.3 %",
            "pinned  2 blocks, 4.00 KiB",
            "m: stale: the store is away",
            "m: revision 4 is brought home first: c warming 25 %",
            "m: warning: tier a is 2.0 GiB",
            "m: tier a: home: no GPU: served from dram",
            "m: tier a: not brought home: no answer",
            "m: tier b: skipped: requires \"x\"",
            "nvme: read only: disk full",
            "hbm 1",
            "a GPU, cuda",
            "hbm: broken: illegal address",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_document_of_another_version_is_shown_as_far_as_it_goes() {
        let text = show(serde_json::json!({ "models": [{ "name": "m", "news": 1 }], "news": [] }));
        assert!(text.contains("not ready") && text.contains('m'), "{text}");
    }
}

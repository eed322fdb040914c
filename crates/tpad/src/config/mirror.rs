//! The file as serde reads it: every key optional, unknown keys refused.
//!
//! Only [`super::resolve`] reads these structs, by exhaustive destructuring, so
//! a key that is added here and forgotten there does not compile.

use std::collections::BTreeMap;

use serde::Deserialize;
use tpad_manifest::TierId;

use super::Overrides;
use super::units::{DurationText, SizeText};

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) allow_plaintext: Option<bool>,
    pub(super) budget_enforcement: Option<String>,
    pub(super) ready_when: Option<String>,
    pub(super) follow_interval: Option<DurationText>,
    pub(super) swap_patience: Option<DurationText>,
    pub(super) listen: Listen,
    pub(super) handoff: Handoff,
    pub(super) models: Vec<Model>,
    pub(super) fetch: Fetch,
    pub(super) levels: Levels,
    pub(super) log: Log,
    pub(super) deadlines: Deadlines,
    pub(super) drain: Drain,
    pub(super) limits: Limits,
}

impl File {
    /// Puts the command line's values in the place of the file's.
    pub(super) fn replace(&mut self, overrides: Overrides) {
        let Overrides { grpc, uds, http, dram_capacity, log_level, log_format } = overrides;
        let replace = |key: &mut Option<String>, value: Option<String>| {
            if value.is_some() {
                *key = value;
            }
        };
        replace(&mut self.listen.grpc, grpc);
        replace(&mut self.listen.uds, uds);
        replace(&mut self.listen.http, http);
        replace(&mut self.log.level, log_level);
        replace(&mut self.log.format, log_format);
        if let Some(capacity) = dram_capacity {
            self.levels.dram.capacity = Some(SizeText::new(capacity));
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Listen {
    pub(super) grpc: Option<String>,
    pub(super) uds: Option<String>,
    pub(super) uds_mode: Option<String>,
    pub(super) http: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Handoff {
    pub(super) socket: Option<String>,
    pub(super) uids: Vec<u32>,
    pub(super) gids: Vec<u32>,
    pub(super) connections: Option<u64>,
    pub(super) lease_bytes: Option<SizeText>,
    pub(super) worker_lease_bytes: Option<SizeText>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    pub(super) name: Option<String>,
    pub(super) root: Option<String>,
    #[serde(default)]
    pub(super) allowed_bases: Option<Vec<String>>,
    #[serde(default)]
    pub(super) origin: Origin,
    #[serde(default)]
    pub(super) tier_sets: BTreeMap<String, Vec<TierId>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Origin {
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) google_credentials: Option<String>,
    pub(super) instance_credentials: Option<bool>,
    pub(super) allow_http: Option<bool>,
    pub(super) connect_timeout: Option<DurationText>,
    pub(super) read_timeout: Option<DurationText>,
    pub(super) retries: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fetch {
    pub(super) least_ranges: Option<u64>,
    pub(super) most_ranges: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Levels {
    pub(super) hbm: Hbm,
    pub(super) dram: Dram,
    pub(super) nvme: Nvme,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Hbm {
    pub(super) capacity: Option<SizeText>,
    pub(super) devices: Option<Vec<String>>,
    pub(super) stand_in: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Dram {
    pub(super) capacity: Option<SizeText>,
    pub(super) tiers: BTreeMap<String, SizeText>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Nvme {
    pub(super) path: Option<String>,
    pub(super) capacity: Option<SizeText>,
    pub(super) free_floor: Option<SizeText>,
    pub(super) io: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) level: Option<String>,
    pub(super) format: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Deadlines {
    pub(super) default: Option<DurationText>,
    pub(super) max: Option<DurationText>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Drain {
    pub(super) deadline: Option<DurationText>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) connections: Option<u64>,
    pub(super) http_connections: Option<u64>,
    pub(super) streams_per_connection: Option<u64>,
    pub(super) requests: Option<u64>,
    pub(super) in_flight_bytes: Option<SizeText>,
    pub(super) in_flight_bytes_per_connection: Option<SizeText>,
    pub(super) request_bytes: Option<SizeText>,
    pub(super) header_bytes: Option<SizeText>,
    pub(super) preface_deadline: Option<DurationText>,
    pub(super) progress_deadline: Option<DurationText>,
    pub(super) keepalive_interval: Option<DurationText>,
    pub(super) keepalive_timeout: Option<DurationText>,
}

//! From the file as written to a [`Config`]: defaults filled in, every value judged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tpad_manifest::{TierId, is_tier_set_name};

use crate::memory::DRAM_LEAST;

use super::units::{DurationText, SizeText, show_bytes};
use super::{
    BudgetEnforcement, Config, Deadlines, Dram, Fetch, Limits, Listen, Log, LogFormat, Model,
    Origin, Problem, ReadyWhen, Surroundings, UnixSocket, mirror,
};

const GRPC_DEFAULT: &str = "127.0.0.1:7070";
const HTTP_DEFAULT: &str = "127.0.0.1:7071";

/// `sun_path` holds 108 bytes with its end; the socket is made under a name four bytes longer first.
const SOCKET_PATH_MAX: usize = 103;

/// What the process needs beside the DRAM level: code, indexes, buffers.
const PROCESS_BYTES: u64 = 256 << 20;

/// Collects problems; every check hands back a value so that all the others still run.
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { key: key.into(), message: message.into() });
    }
}

pub(super) fn resolve(
    file: mirror::File,
    surroundings: &Surroundings,
) -> Result<Config, Vec<Problem>> {
    let mirror::File {
        allow_plaintext,
        budget_enforcement,
        ready_when,
        follow_interval,
        swap_patience,
        listen,
        models,
        fetch,
        levels: mirror::Levels { dram, nvme },
        log,
        deadlines,
        drain: mirror::Drain { deadline: drain_deadline },
        limits,
    } = file;
    let mut problems = Problems(Vec::new());
    let mut warnings = Vec::new();

    let listen =
        resolve_listen(listen, allow_plaintext.unwrap_or(false), surroundings, &mut problems);
    let models = resolve_models(models, surroundings, &mut problems);
    let fetch = resolve_fetch(fetch, &mut problems);
    let dram = resolve_dram(dram, surroundings, &mut problems, &mut warnings);
    let nvme = super::nvme::resolve(nvme, surroundings, &mut problems);
    let budget_enforcement = match budget_enforcement.as_deref().unwrap_or("warn") {
        "warn" => BudgetEnforcement::Warn,
        "reject" => BudgetEnforcement::Reject,
        other => {
            problems
                .add("budget_enforcement", format!("{other:?} is neither \"warn\" nor \"reject\""));
            BudgetEnforcement::Warn
        }
    };
    let ready_when = match ready_when.as_deref().unwrap_or("loaded") {
        "loaded" => ReadyWhen::Loaded,
        "warm" => ReadyWhen::Warm,
        other => {
            problems.add("ready_when", format!("{other:?} is neither \"loaded\" nor \"warm\""));
            ReadyWhen::Loaded
        }
    };
    let follow_interval = duration(
        "follow_interval",
        follow_interval,
        Duration::from_secs(30),
        Duration::ZERO..=hours(24),
        &mut problems,
    );
    let swap_patience = duration(
        "swap_patience",
        swap_patience,
        Duration::from_secs(600),
        Duration::ZERO..=hours(24),
        &mut problems,
    );
    let log = resolve_log(log, &mut problems);
    let deadlines = resolve_deadlines(deadlines, &mut problems);
    let drain_deadline = duration(
        "drain.deadline",
        drain_deadline,
        Duration::from_secs(30),
        Duration::ZERO..=hours(24),
        &mut problems,
    );
    let limits = resolve_limits(limits, &mut problems);

    if problems.0.is_empty() {
        Ok(Config {
            listen,
            models,
            origin: surroundings.origin.clone(),
            fetch,
            dram,
            nvme,
            budget_enforcement,
            ready_when,
            follow_interval: Some(follow_interval).filter(|interval| !interval.is_zero()),
            swap_patience,
            log,
            limits,
            deadlines,
            drain_deadline,
            warnings,
        })
    } else {
        Err(problems.0)
    }
}

fn resolve_listen(
    listen: mirror::Listen,
    allow_plaintext: bool,
    surroundings: &Surroundings,
    problems: &mut Problems,
) -> Listen {
    let mirror::Listen { grpc, uds, uds_mode, http } = listen;
    let grpc = address("listen.grpc", grpc.as_deref().unwrap_or(GRPC_DEFAULT), problems);
    if let Some(address) = grpc
        && !address.ip().is_loopback()
        && !allow_plaintext
    {
        problems.add(
            "listen.grpc",
            format!(
                "{address} is not a loopback address, and gRPC is neither encrypted nor authenticated here: \
                 whoever reaches the port can read every model; listen on 127.0.0.1, or set allow_plaintext = true \
                 if the network is trusted"
            ),
        );
    }
    let http = address("listen.http", http.as_deref().unwrap_or(HTTP_DEFAULT), problems);

    let mode = match uds_mode.as_deref().unwrap_or("0600") {
        "0600" => 0o600,
        "0660" => 0o660,
        other => {
            problems.add(
                "listen.uds_mode",
                format!(
                    "{other:?} is neither \"0600\" (this user) nor \"0660\" (this user's group too)"
                ),
            );
            0o600
        }
    };
    let path = match uds.as_deref() {
        Some("off") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(surroundings.socket.clone()),
    };
    if let Some(path) = &path {
        let length = path.as_os_str().len();
        if !path.is_absolute() {
            problems.add(
                "listen.uds",
                format!("{path:?} is not an absolute path; write one, or \"off\""),
            );
        } else if path.file_name().is_none() {
            problems.add("listen.uds", format!("{path:?} names no file"));
        } else if length > SOCKET_PATH_MAX {
            problems.add(
                "listen.uds",
                format!(
                    "the path has {length} bytes and a Unix socket's at most {SOCKET_PATH_MAX}: choose a shorter one"
                ),
            );
        }
    }
    if grpc.is_none() && path.is_none() && problems.0.is_empty() {
        problems.add(
            "listen",
            "grpc and uds are both off, so nobody could ask for anything: turn one on",
        );
    }
    Listen { grpc, uds: path.map(|path| UnixSocket { path, mode }), http }
}

fn address(key: &str, text: &str, problems: &mut Problems) -> Option<SocketAddr> {
    if text == "off" {
        return None;
    }
    let parsed = text.strip_prefix("localhost:").map_or_else(
        || text.parse::<SocketAddr>().ok(),
        |port| port.parse().ok().map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port))),
    );
    if parsed.is_none() {
        problems.add(
            key,
            format!(
                "{text:?} is not an address and port, such as \"127.0.0.1:7070\" or \"[::1]:7070\" (port 0 takes a free \
                 one); \"off\" turns it off"
            ),
        );
    }
    parsed
}

fn resolve_models(
    models: Vec<mirror::Model>,
    surroundings: &Surroundings,
    problems: &mut Problems,
) -> Vec<Model> {
    if models.is_empty() {
        problems.add(
            "models",
            "there is no model to serve: add a [[models]] section with name and root",
        );
    }
    let mut names = BTreeSet::new();
    let mut resolved = Vec::with_capacity(models.len());
    for (n, model) in models.into_iter().enumerate() {
        let mirror::Model { name, root, allowed_bases, origin, tier_sets } = model;
        let key = |field: &str| format!("models[{n}].{field}");
        let name = name.unwrap_or_default();
        if name.is_empty() {
            problems.add(key("name"), "is missing: say what requests shall call the model");
        } else if name.len() > 256 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            problems.add(
                key("name"),
                format!(
                    "{name:?} is longer than 256 bytes or has white space or control characters"
                ),
            );
        } else if !names.insert(name.clone()) {
            problems
                .add(key("name"), format!("{name:?} is taken by a model above; names are unique"));
        }
        let root = root.unwrap_or_default();
        if root.is_empty() {
            problems.add(
                key("root"),
                "is missing: give the checkpoint's directory or URL, such as \"s3://bucket/prefix\"",
            );
        }
        let allowed_bases = allowed_bases.unwrap_or_default();
        if allowed_bases.iter().any(String::is_empty) {
            problems.add(key("allowed_bases"), "has an empty entry; remove it");
        }
        let origin = resolve_origin(origin, &root, &key("origin"), &surroundings.origin, problems);
        check_tier_sets(&tier_sets, &key("tier_sets"), problems);
        resolved.push(Model { name, root, allowed_bases, origin, tier_sets });
    }
    resolved
}

/// Names and ids are well formed; which tiers exist is not known before a manifest is.
fn check_tier_sets(sets: &BTreeMap<String, Vec<TierId>>, key: &str, problems: &mut Problems) {
    for (name, tiers) in sets {
        let key = format!("{key}.{name}");
        if !is_tier_set_name(name) {
            let message = "a name has 1 to 128 letters, digits, '_', '-' and '.'; choose another";
            problems.add(key.clone(), message);
        }
        if tiers.is_empty() {
            problems.add(key.clone(), "names no tier: nothing could be routed to; remove the set");
        }
        let mut seen = BTreeSet::new();
        for tier in tiers {
            if let Err(error) = tier.check() {
                problems.add(key.clone(), error.to_string());
            } else if !seen.insert(tier.to_string()) {
                problems.add(key.clone(), format!("{tier} appears more than once"));
            }
        }
    }
}

/// A model's own options win; a credential taken from the environment comes with its own token or not at all.
fn resolve_origin(
    origin: mirror::Origin,
    root: &str,
    key: &str,
    environment: &Origin,
    problems: &mut Problems,
) -> Origin {
    let mirror::Origin {
        endpoint,
        region,
        access_key_id,
        secret_access_key,
        session_token,
        google_credentials,
        instance_credentials,
        allow_http,
        connect_timeout,
        read_timeout,
        retries,
    } = origin;
    let time = || Duration::from_millis(1)..=hours(1);
    let connect_timeout = duration(
        &format!("{key}.connect_timeout"),
        connect_timeout,
        environment.connect_timeout,
        time(),
        problems,
    );
    let read_timeout = duration(
        &format!("{key}.read_timeout"),
        read_timeout,
        environment.read_timeout,
        time(),
        problems,
    );
    let retries = retries.unwrap_or(u64::from(environment.retries));
    if retries > 100 {
        problems.add(format!("{key}.retries"), format!("{retries} is outside 0 to 100"));
    }
    if access_key_id.is_some() != secret_access_key.is_some() {
        problems
            .add(key, "access_key_id and secret_access_key belong together: give both or neither");
    }
    if session_token.is_some() && access_key_id.is_none() {
        problems.add(
            format!("{key}.session_token"),
            "belongs to an access_key_id and a secret_access_key: give them too",
        );
    }
    let own_credentials = access_key_id.is_some();
    let endpoint = endpoint.or_else(|| environment.endpoint.clone());
    let allow_http = allow_http.unwrap_or(environment.allow_http);
    // Elsewhere the environment's endpoint means nothing.
    if let Some(endpoint) = endpoint.as_deref().filter(|_| root.starts_with("s3://")) {
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            problems.add(
                format!("{key}.endpoint"),
                format!("{endpoint:?} does not start with https:// or http://"),
            );
        } else if endpoint.starts_with("http://") && !allow_http {
            problems.add(
                format!("{key}.endpoint"),
                format!(
                    "{endpoint} is not encrypted; use https://, or set allow_http = true in the same section \
                     (AWS_ALLOW_HTTP=true in the environment) if the network is trusted"
                ),
            );
        }
    }
    let (access_key_id, secret_access_key, session_token) = if own_credentials {
        (access_key_id, secret_access_key, session_token)
    } else {
        let Origin { access_key_id, secret_access_key, session_token, .. } = environment.clone();
        (access_key_id, secret_access_key, session_token)
    };
    Origin {
        endpoint,
        region: region.or_else(|| environment.region.clone()),
        access_key_id,
        secret_access_key,
        session_token,
        google_credentials: google_credentials.or_else(|| environment.google_credentials.clone()),
        instance_credentials: instance_credentials.unwrap_or(environment.instance_credentials),
        allow_http,
        connect_timeout,
        read_timeout,
        retries: narrow(retries),
    }
}

fn resolve_fetch(fetch: mirror::Fetch, problems: &mut Problems) -> Fetch {
    let mirror::Fetch { least_ranges, most_ranges } = fetch;
    let least_ranges = count("fetch.least_ranges", least_ranges, 4, 1024, problems);
    let most_ranges = count("fetch.most_ranges", most_ranges, 64.max(least_ranges), 1024, problems);
    if most_ranges < least_ranges {
        let message = format!("{most_ranges} is less than fetch.least_ranges, {least_ranges}");
        problems.add("fetch.most_ranges", message);
    }
    Fetch { least_ranges, most_ranges }
}

fn resolve_dram(
    dram: mirror::Dram,
    surroundings: &Surroundings,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Dram {
    const KEY: &str = "levels.dram.capacity";
    let mirror::Dram { capacity, tiers } = dram;
    let limit = &surroundings.memory;
    let capacity_bytes =
        size(KEY, capacity, limit.default_dram_bytes(), DRAM_LEAST..=u64::MAX, problems);
    // The allowance of a tenth is the process's own bound: fragmentation and bookkeeping included.
    let whole = capacity_bytes.saturating_add(capacity_bytes / 10).saturating_add(PROCESS_BYTES);
    if capacity_bytes > limit.bytes {
        problems.add(
            KEY,
            format!(
                "{} is more than {} ({}): lower it to {} or less, or raise the limit",
                show_bytes(capacity_bytes),
                show_bytes(limit.bytes),
                limit.source,
                show_bytes(limit.default_dram_bytes()),
            ),
        );
    } else if whole > limit.bytes {
        warnings.push(format!(
            "{KEY} of {} leaves less than the process needs below {} ({}): expect up to {} in all",
            show_bytes(capacity_bytes),
            show_bytes(limit.bytes),
            limit.source,
            show_bytes(whole),
        ));
    }
    let mut tier_bytes = BTreeMap::new();
    for (tier, bytes) in tiers {
        let key = format!("levels.dram.tiers.{tier:?}");
        tier_bytes.insert(tier, size(&key, Some(bytes), 0, 0..=u64::MAX, problems));
    }
    let sum = tier_bytes.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    if sum > capacity_bytes {
        problems.add(
            "levels.dram.tiers",
            format!(
                "the tiers' budgets add up to {}, more than {KEY} = {}: lower the budgets or raise the capacity",
                show_bytes(sum),
                show_bytes(capacity_bytes),
            ),
        );
    }
    Dram { capacity_bytes, tier_bytes }
}

fn resolve_log(log: mirror::Log, problems: &mut Problems) -> Log {
    let mirror::Log { level, format } = log;
    let level = level.unwrap_or_else(|| "info".to_owned());
    if let Err(error) = level.parse::<tracing_subscriber::filter::Targets>() {
        problems.add(
            "log.level",
            format!(
                "{level:?} is no log filter ({error}): write error, warn, info, debug or trace, or entries such as \
                 \"info,tpad_store=debug\""
            ),
        );
    }
    let format = match format.as_deref().unwrap_or("text") {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            problems.add("log.format", format!("{other:?} is neither \"text\" nor \"json\""));
            LogFormat::Text
        }
    };
    Log { level, format }
}

fn resolve_deadlines(deadlines: mirror::Deadlines, problems: &mut Problems) -> Deadlines {
    let mirror::Deadlines { default, max } = deadlines;
    let range = || Duration::from_millis(1)..=hours(24 * 365);
    let default =
        duration("deadlines.default", default, Duration::from_secs(600), range(), problems);
    let max = duration("deadlines.max", max, Duration::from_secs(3600), range(), problems);
    if default > max {
        problems.add(
            "deadlines.default",
            format!(
                "{default:?} is longer than deadlines.max = {max:?}: lower it or raise the other"
            ),
        );
    }
    Deadlines { default, max }
}

fn resolve_limits(limits: mirror::Limits, problems: &mut Problems) -> Limits {
    let mirror::Limits {
        connections,
        http_connections,
        streams_per_connection,
        requests,
        in_flight_bytes,
        in_flight_bytes_per_connection,
        request_bytes,
        header_bytes,
        preface_deadline,
        progress_deadline,
        keepalive_interval,
        keepalive_timeout,
    } = limits;
    let time = || Duration::from_millis(10)..=hours(24);
    Limits {
        connections: count("limits.connections", connections, 1024, 1 << 20, problems),
        http_connections: count("limits.http_connections", http_connections, 64, 1 << 16, problems),
        streams_per_connection: count(
            "limits.streams_per_connection",
            streams_per_connection,
            256,
            1 << 20,
            problems,
        ),
        requests: count("limits.requests", requests, 16_384, 1 << 24, problems),
        in_flight_bytes: size(
            "limits.in_flight_bytes",
            in_flight_bytes,
            1 << 30,
            1 << 20..=1 << 46,
            problems,
        ),
        in_flight_bytes_per_connection: size(
            "limits.in_flight_bytes_per_connection",
            in_flight_bytes_per_connection,
            16 << 20,
            1 << 20..=1 << 46,
            problems,
        ),
        request_bytes: narrow(size(
            "limits.request_bytes",
            request_bytes,
            4 << 20,
            1 << 10..=1 << 30,
            problems,
        )),
        header_bytes: narrow(size(
            "limits.header_bytes",
            header_bytes,
            16 << 10,
            1 << 10..=1 << 20,
            problems,
        )),
        preface_deadline: duration(
            "limits.preface_deadline",
            preface_deadline,
            Duration::from_secs(5),
            time(),
            problems,
        ),
        progress_deadline: duration(
            "limits.progress_deadline",
            progress_deadline,
            Duration::from_secs(30),
            time(),
            problems,
        ),
        keepalive_interval: duration(
            "limits.keepalive_interval",
            keepalive_interval,
            Duration::from_secs(20),
            time(),
            problems,
        ),
        keepalive_timeout: duration(
            "limits.keepalive_timeout",
            keepalive_timeout,
            Duration::from_secs(20),
            time(),
            problems,
        ),
    }
}

pub(super) fn size(
    key: &str,
    text: Option<SizeText>,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
    problems: &mut Problems,
) -> u64 {
    let Some(text) = text else { return default };
    match text.bytes() {
        Ok(bytes) if range.contains(&bytes) => return bytes,
        Ok(bytes) => problems.add(
            key,
            format!(
                "{} is outside {} to {}",
                show_bytes(bytes),
                show_bytes(*range.start()),
                show_bytes(*range.end()),
            ),
        ),
        Err(message) => problems.add(key, message),
    }
    default
}

fn duration(
    key: &str,
    text: Option<DurationText>,
    default: Duration,
    range: std::ops::RangeInclusive<Duration>,
    problems: &mut Problems,
) -> Duration {
    let Some(text) = text else { return default };
    match text.duration() {
        Ok(duration) if range.contains(&duration) => return duration,
        Ok(duration) => problems
            .add(key, format!("{duration:?} is outside {:?} to {:?}", range.start(), range.end())),
        Err(message) => problems.add(key, message),
    }
    default
}

fn count<N: TryFrom<u64> + Default>(
    key: &str,
    number: Option<u64>,
    default: u64,
    most: u64,
    problems: &mut Problems,
) -> N {
    let number = number.unwrap_or(default);
    if !(1..=most).contains(&number) {
        problems.add(key, format!("{number} is outside 1 to {most}"));
    }
    narrow(number)
}

/// A number that a range check above has bounded, or that a problem is already recorded for.
fn narrow<N: TryFrom<u64> + Default>(number: u64) -> N {
    N::try_from(number).unwrap_or_default()
}

const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

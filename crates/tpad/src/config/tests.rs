//! The configuration's rules, and the example file against the code.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::memory::LimitSource;

const EXAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/tpad.toml"));

const MODEL: &str = "[[models]]\nname = \"m\"\nroot = \"/models/m\"\n";

fn surroundings() -> Surroundings {
    Surroundings {
        memory: MemoryLimit { bytes: 64 << 30, source: LimitSource::Host },
        socket: PathBuf::from("/run/user/1000/tpad/tpad.sock"),
        origin: Origin::default(),
        disk_bytes: |_| Ok(1 << 40),
    }
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::from_toml(text, &surroundings())
}

/// The problems' keys and messages of a document that is refused.
fn problems(text: &str) -> Vec<Problem> {
    match parse(text) {
        Err(ConfigError::Values(problems)) => problems,
        other => panic!("expected value problems, got {other:?}"),
    }
}

fn only_problem(text: &str) -> Problem {
    let mut problems = problems(text);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

/// The example with its commented keys turned on.
fn every_key() -> String {
    EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_example_stands_at_the_defaults() {
    let example = parse(EXAMPLE).expect("the example is accepted");
    let bare = parse("[[models]]\nname = \"mixtral\"\nroot = \"/models/mixtral\"\n")
        .expect("a model is enough");
    assert_eq!(example, bare);
}

#[test]
fn the_example_has_every_key_of_the_code_and_no_other() {
    let file: mirror::File = toml::from_str(&every_key()).expect("every key is known");
    let mut missing = Vec::new();
    unset("", &serde_json::to_value(&file).expect("the mirror serializes"), &mut missing);
    assert!(missing.is_empty(), "keys that the example does not show: {missing:?}");
}

/// Collects the paths of keys without a value.
fn unset(path: &str, value: &Value, missing: &mut Vec<String>) {
    match value {
        Value::Null => missing.push(path.to_owned()),
        Value::Object(fields) => {
            if fields.is_empty() {
                missing.push(path.to_owned());
            }
            for (name, value) in fields {
                unset(&format!("{path}.{name}"), value, missing);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| unset(path, value, missing)),
        _ => {}
    }
}

#[test]
fn the_examples_values_are_valid() {
    parse(&every_key()).expect("every key has a value that is accepted");
}

#[test]
fn the_disk_bounds_the_level_on_it() {
    let config =
        parse(&format!("{MODEL}[levels.nvme]\npath = \"/c\"\n")).expect("a path is enough");
    let nvme = config.nvme.expect("it is on");
    assert_eq!((nvme.capacity_bytes, nvme.free_floor_bytes), (512 << 30, 1 << 30));
    assert_eq!(nvme.io, NvmeIo::Auto);
    for (io, expected) in [("io_uring", NvmeIo::IoUring), ("threads", NvmeIo::Threads)] {
        let config = parse(&format!("{MODEL}[levels.nvme]\npath = \"/c\"\nio = {io:?}\n"));
        assert_eq!(config.expect("it is known").nvme.expect("it is on").io, expected);
    }
    let problem = only_problem(&format!("{MODEL}[levels.nvme]\npath = \"/c\"\nio = \"aio\"\n"));
    assert_eq!(problem.key, "levels.nvme.io");
    assert!(problem.message.contains("io_uring") && problem.message.contains("threads"));
    let problem = only_problem(&format!(
        "{MODEL}[levels.nvme]\npath = \"/c\"\ncapacity = \"2TiB\"\nfree_floor = \"0\"\n"
    ));
    assert_eq!(problem.key, "levels.nvme.capacity");
    assert!(problem.message.contains("2TiB") && problem.message.contains("1TiB"), "{problem:?}");
    let problem = only_problem(&format!("{MODEL}[levels.nvme]\ncapacity = \"1GiB\"\n"));
    assert_eq!(problem.key, "levels.nvme.capacity");
    let problem = only_problem(&format!("{MODEL}[levels.nvme]\npath = \"cache\"\n"));
    assert!(problem.message.contains("absolute"), "{problem:?}");
}

#[test]
fn the_handoff_socket_is_beside_the_other_and_within_its_memory() {
    let handoff = |text: &str| parse(&format!("{MODEL}{text}")).expect("valid").handoff;
    let default = handoff("").expect("on by default");
    let path = |text: &str| PathBuf::from(text);
    assert_eq!(default.socket.path, path("/run/user/1000/tpad/tpad-handoff.sock"));
    assert_eq!((default.socket.mode, default.connections), (0o600, 256));
    assert_eq!(default.lease_bytes, 4 << 30, "a quarter of a quarter of 64 GiB");
    assert_eq!(default.worker_lease_bytes, default.lease_bytes);
    let moved = handoff("[listen]\nuds = \"/a/b.sock\"\nuds_mode = \"0660\"\n").expect("on");
    assert_eq!((moved.socket.path, moved.socket.mode), (path("/a/b-handoff.sock"), 0o660));
    assert_eq!(handoff("[listen]\nuds = \"off\"\n"), None, "it is beside nothing");
    assert_eq!(handoff("[handoff]\nsocket = \"off\"\n"), None);
    let long = format!("listen.uds = \"/{}\"\n{MODEL}", "x".repeat(100));
    let long = parse(&long).expect("as it was before there was a handoff");
    assert!(long.handoff.is_none() && long.warnings[0].contains("handoff.socket"), "{long:?}");
    let alone = "[listen]\nuds = \"off\"\n[handoff]\nsocket = \"/h\"\nlease_bytes = \"1GiB\"\n";
    let alone = handoff(alone).expect("it has a path");
    assert_eq!((alone.socket.path, alone.worker_lease_bytes), (path("/h"), 1 << 30));
}

#[test]
fn who_may_read_the_memory_is_said_by_user_and_group() {
    let handoff = |text: &str| {
        parse(&format!("{MODEL}[handoff]\n{text}")).expect("valid").handoff.expect("on")
    };
    let own = rustix::process::geteuid().as_raw();
    let (other, group) = (own + 7001, 54_321);
    let none = handoff("");
    assert!(none.admits(own, group) && none.admits(0, group));
    assert!(!none.admits(other, 0), "root's group is a group like any other");
    let some = handoff(&format!("uids = [{other}]\ngids = [{group}]\n"));
    assert!(some.admits(other, 0) && some.admits(other + 1, group));
    assert!(!some.admits(other + 1, group + 1));
    assert_eq!(some.socket.mode, 0o666, "others have to reach it to be asked who they are");
}

#[test]
fn leases_fit_into_memory_and_the_socket_into_its_path() {
    for (text, key) in [
        ("lease_bytes = \"17GiB\"", "handoff.lease_bytes"),
        ("worker_lease_bytes = \"5GiB\"", "handoff.worker_lease_bytes"),
        ("connections = 0", "handoff.connections"),
        ("connections = 20000", "handoff.connections"),
        ("socket = \"here.sock\"", "handoff.socket"),
    ] {
        let problem = only_problem(&format!("{MODEL}[handoff]\n{text}\n"));
        assert_eq!(problem.key, key, "{problem}");
    }
    let same = format!("{MODEL}[listen]\nuds = \"/a\"\n[handoff]\nsocket = \"/a\"\n");
    let problem = only_problem(&same);
    assert!(problem.key == "handoff.socket" && problem.message.contains("listen.uds"), "{problem}");
}

#[test]
fn the_bounds_on_what_is_asked_of_a_store_are_in_order() {
    let fetch = |text: &str| parse(&format!("{MODEL}[fetch]\n{text}\n")).expect("valid").fetch;
    assert_eq!(fetch(""), Fetch { least_ranges: 4, most_ranges: 64 });
    assert_eq!(fetch("most_ranges = 4"), Fetch { least_ranges: 4, most_ranges: 4 });
    assert_eq!(fetch("least_ranges = 100"), Fetch { least_ranges: 100, most_ranges: 100 });
    for text in ["most_ranges = 3", "least_ranges = 9\nmost_ranges = 8"] {
        let problem = only_problem(&format!("{MODEL}[fetch]\n{text}\n"));
        assert_eq!(problem.key, "fetch.most_ranges", "{problem}");
    }
}

#[test]
fn all_problems_are_told_at_once_with_their_keys() {
    let problems = problems(
        r#"
        budget_enforcement = "maybe"
        ready_when = "hot"
        [listen]
        grpc = "0.0.0.0:7070"
        uds = "relative.sock"
        uds_mode = "0777"
        http = "nowhere"
        [[models]]
        name = "a b"
        root = ""
        [[models]]
        name = "m"
        root = "s3://b/m"
        [models.origin]
        endpoint = "http://10.0.0.1:9000"
        access_key_id = "only"
        [[models]]
        name = "m"
        root = "s3://b/m"
        [levels.dram]
        capacity = "128GiB"
        [levels.dram.tiers]
        tier_1b = "1.5GiB"
        [levels.nvme]
        path = "cache"
        [log]
        level = "=loud"
        format = "xml"
        [deadlines]
        default = "2h"
        [drain]
        deadline = "30"
        [limits]
        connections = 0
        request_bytes = "2GiB"
        progress_deadline = "0s"
        "#,
    );
    let keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "listen.grpc",
            "listen.http",
            "listen.uds_mode",
            "listen.uds",
            "models[0].name",
            "models[0].root",
            "models[1].origin",
            "models[1].origin.endpoint",
            "models[2].name",
            "levels.dram.capacity",
            "levels.dram.tiers.\"tier_1b\"",
            "levels.nvme.path",
            "budget_enforcement",
            "ready_when",
            "log.level",
            "log.format",
            "deadlines.default",
            "drain.deadline",
            "limits.connections",
            "limits.request_bytes",
            "limits.progress_deadline",
        ]
    );
    let text = ConfigError::Values(problems.clone()).to_string();
    assert_eq!(text.lines().count(), problems.len(), "one line each:\n{text}");
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let error = parse("allow_plaintxt = true\n").expect_err("unknown").to_string();
    assert!(error.contains("allow_plaintxt") && error.contains("line 1"), "{error}");
    for section in [
        "listen",
        "fetch",
        "levels",
        "levels.dram",
        "levels.nvme",
        "log",
        "deadlines",
        "drain",
        "limits",
    ] {
        let error = parse(&format!("{MODEL}[{section}]\nnonsense = 1\n")).expect_err(section);
        assert!(matches!(error, ConfigError::Document(_)), "{section}: {error}");
    }
    for section in ["models", "models.origin"] {
        let header = if section == "models" { String::new() } else { format!("[{section}]\n") };
        let error = parse(&format!("{MODEL}{header}nonsense = 1\n")).expect_err(section);
        assert!(matches!(error, ConfigError::Document(_)), "{section}: {error}");
    }
}

#[test]
fn grpc_beyond_loopback_takes_a_decision() {
    let text = format!("listen.grpc = \"192.0.2.7:7070\"\n{MODEL}");
    let problem = only_problem(&text);
    assert_eq!(problem.key, "listen.grpc");
    assert!(problem.message.contains("allow_plaintext = true"), "{problem}");
    let config = parse(&format!("allow_plaintext = true\n{text}")).expect("allowed");
    assert_eq!(config.listen.grpc, "192.0.2.7:7070".parse().ok());
    let config = parse(&format!("listen.grpc = \"[::1]:0\"\n{MODEL}")).expect("loopback");
    assert_eq!(config.listen.grpc, "[::1]:0".parse().ok());
}

#[test]
fn a_capacity_above_the_limit_is_refused_with_both_numbers_and_a_remedy() {
    let mut surroundings = surroundings();
    surroundings.memory = MemoryLimit {
        bytes: 512 << 20,
        source: LimitSource::Cgroup(PathBuf::from("/sys/fs/cgroup/a/memory.max")),
    };
    let text = format!("levels.dram.capacity = \"1GiB\"\n{MODEL}");
    let error = Config::from_toml(&text, &surroundings).expect_err("too large").to_string();
    for part in ["levels.dram.capacity", "1GiB", "512MiB", "/sys/fs/cgroup/a/memory.max", "128MiB"]
    {
        assert!(error.contains(part), "{part} is missing: {error}");
    }
    let text = format!("levels.dram.capacity = \"512MiB\"\n{MODEL}");
    let config = Config::from_toml(&text, &surroundings).expect("the limit itself is allowed");
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("512MiB"), "{:?}", config.warnings);
    let config = Config::from_toml(MODEL, &surroundings).expect("the default fits");
    assert_eq!(config.dram.capacity_bytes, 128 << 20);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn tier_budgets_fit_the_capacity() {
    let fits = format!(
        "{MODEL}[levels.dram]\ncapacity = \"1GiB\"\ntiers.a = \"512MiB\"\ntiers.1 = \"512MiB\"\n"
    );
    let config = parse(&fits).expect("fits");
    assert_eq!(
        config.dram.tier_bytes,
        BTreeMap::from([("1".into(), 512 << 20), ("a".into(), 512 << 20)])
    );
    let problem = only_problem(&fits.replace("tiers.1 = \"512MiB\"", "tiers.1 = \"513MiB\""));
    assert_eq!(problem.key, "levels.dram.tiers");
    assert!(problem.message.contains("1GiB"), "{problem}");
}

#[test]
fn a_model_is_required_and_somebody_must_be_able_to_ask() {
    assert_eq!(only_problem("").key, "models");
    let off = format!("{MODEL}[listen]\ngrpc = \"off\"\nuds = \"off\"\n");
    assert_eq!(only_problem(&off).key, "listen");
    let http_off = format!("{MODEL}[listen]\nhttp = \"off\"\n");
    assert_eq!(parse(&http_off).expect("allowed").listen.http, None);
}

#[test]
fn the_socket_is_where_clients_look_unless_the_file_says() {
    let path = |text: &str| parse(text).expect("accepted").listen.uds.expect("on by default").path;
    assert_eq!(path(MODEL), surroundings().socket);
    let own = format!("listen.uds = \"/tmp/own.sock\"\n{MODEL}");
    assert_eq!(path(&own), Path::new("/tmp/own.sock"));
    let long = format!("listen.uds = \"/{}\"\n{MODEL}", "x".repeat(103));
    assert!(only_problem(&long).message.contains("103"), "the bound is named");
}

#[test]
fn a_models_credentials_win_over_the_environments_as_a_whole() {
    let mut surroundings = surroundings();
    surroundings.origin = Origin {
        endpoint: Some("https://env.example.org".to_owned()),
        region: Some("env-1".to_owned()),
        access_key_id: Some("env".to_owned()),
        secret_access_key: Some("env secret".to_owned()),
        session_token: Some("env token".to_owned()),
        google_credentials: Some("/env/key.json".to_owned()),
        ..Origin::default()
    };
    let config = Config::from_toml(MODEL, &surroundings).expect("accepted");
    assert_eq!(config.models[0].origin, surroundings.origin);
    let own = format!(
        "{MODEL}[models.origin]\nregion = \"own-1\"\naccess_key_id = \"own\"\nsecret_access_key = \"s\"\n"
    );
    let config = Config::from_toml(&own, &surroundings).expect("accepted");
    let origin = &config.models[0].origin;
    assert_eq!(origin.endpoint.as_deref(), Some("https://env.example.org"));
    assert_eq!(origin.region.as_deref(), Some("own-1"));
    assert_eq!(origin.access_key_id.as_deref(), Some("own"));
    assert_eq!(origin.session_token, None, "the environment's token belongs to its own key");
    assert_eq!(origin.google_credentials.as_deref(), Some("/env/key.json"));
    let whole = Config::from_toml(MODEL, &surroundings).expect("accepted");
    assert!(!format!("{whole:?}").contains("env secret"), "secrets stay out of Debug");
}

#[test]
fn a_bare_root_is_named_after_its_last_component() {
    let name = |root: &str| {
        let config = Config::for_root(root, None, &surroundings());
        config.map(|config| config.models[0].name.clone()).map_err(|error| error.to_string())
    };
    assert_eq!(name("/models/mixtral/"), Ok("mixtral".to_owned()));
    assert_eq!(name("s3://bucket/a/b"), Ok("b".to_owned()));
    assert_eq!(name("s3://bucket"), Ok("bucket".to_owned()));
    assert!(name("/").expect_err("nothing to call it").contains("models[0].name"));
    let config = Config::for_root("/models/x", Some("y"), &surroundings()).expect("accepted");
    assert_eq!(config.models[0].name, "y");
}

#[test]
fn the_command_line_wins_over_the_file() {
    let text = format!(
        "{MODEL}[listen]\ngrpc = \"127.0.0.1:1\"\nhttp = \"127.0.0.1:2\"\n[log]\nlevel = \"warn\"\n"
    );
    let overrides = Overrides {
        grpc: Some("127.0.0.1:9".to_owned()),
        dram_capacity: Some("3GiB".to_owned()),
        log_format: Some("json".to_owned()),
        ..Overrides::default()
    };
    let config = Config::from_toml_with(&text, overrides, &surroundings()).expect("accepted");
    assert_eq!(config.listen.grpc, "127.0.0.1:9".parse().ok());
    assert_eq!(config.listen.http, "127.0.0.1:2".parse().ok(), "the file's");
    assert_eq!(config.dram.capacity_bytes, 3 << 30);
    assert_eq!(config.log, Log { level: "warn".to_owned(), format: LogFormat::Json });
    let overrides = Overrides { uds: Some("here".to_owned()), ..Overrides::default() };
    let error =
        Config::for_root_with("/m", None, overrides, &surroundings()).expect_err("relative");
    assert!(error.to_string().contains("listen.uds"), "{error}");
}

#[test]
fn the_environments_endpoint_concerns_only_s3() {
    let mut surroundings = surroundings();
    surroundings.origin.endpoint = Some("http://10.0.0.1:9000".to_owned());
    Config::from_toml(MODEL, &surroundings).expect("a directory needs no endpoint");
    let error = Config::for_root("s3://b/m", None, &surroundings).expect_err("not encrypted");
    assert!(error.to_string().contains("AWS_ALLOW_HTTP=true"), "{error}");
    surroundings.origin.allow_http = true;
    Config::for_root("s3://b/m", None, &surroundings).expect("allowed");
}

#[test]
fn tier_sets_hold_ids_as_manifests_do_and_are_checked() {
    let set = |text: &str| format!("{MODEL}[models.tier_sets]\n{text}\n");
    let config = parse(&set("small = [\"tier_1b\", 7]\nlarge = [\"later\"]")).expect("it is valid");
    let expected = BTreeMap::from([
        ("large".to_owned(), vec![TierId::Name("later".into())]),
        ("small".to_owned(), vec![TierId::Name("tier_1b".into()), TierId::Number(7)]),
    ]);
    assert_eq!(config.models[0].tier_sets, expected);
    for (text, words) in [
        ("\"no good\" = [1]", "choose another"),
        ("x = []", "names no tier"),
        ("x = [\"a/b\"]", "letters, digits"),
        ("x = [7, \"7\"]", "7 appears more than once"),
    ] {
        let problem = only_problem(&set(text));
        assert!(problem.key.starts_with("models[0].tier_sets."), "{problem}");
        assert!(problem.message.contains(words), "{problem}");
    }
}

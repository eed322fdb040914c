//! Which models are served, and where their objects are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tpad_manifest::{TierId, is_tier_set_name};

use super::Problems;
use super::values::{duration, hours, narrow};
use crate::config::{Model, Origin, Surroundings, mirror};

pub(super) fn models(
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

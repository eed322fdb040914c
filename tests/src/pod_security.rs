//! Kubernetes' Pod Security Standards, as far as a Pod of ours could break
//! them. Admission plugins judge the same; no API server can be had in a test.

use serde_json::Value;

/// The volumes that the restricted level admits.
const RESTRICTED_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// What of a Pod's `spec` the baseline level refuses.
#[must_use]
pub fn against_baseline(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[field] == true {
            found.push(field.to_owned());
        }
    }
    for volume in list(&spec["volumes"]) {
        if volume.get("hostPath").is_some() {
            found.push(format!("hostPath volume {}", volume["name"]));
        }
    }
    for container in containers(spec) {
        let name = &container["name"];
        let context = &container["securityContext"];
        if context["privileged"] == true {
            found.push(format!("{name} is privileged"));
        }
        // The level admits some; ours need none.
        if !list(&context["capabilities"]["add"]).is_empty() {
            found.push(format!("{name} adds capabilities"));
        }
        if list(&container["ports"]).iter().any(|port| port.get("hostPort").is_some()) {
            found.push(format!("{name} has a host port"));
        }
        if context.get("procMount").is_some() || spec["securityContext"].get("sysctls").is_some() {
            found.push(format!("{name} changes /proc or sysctls"));
        }
        if seccomp(spec, container) == "Unconfined" {
            found.push(format!("{name} has no seccomp profile"));
        }
    }
    found
}

/// What of a Pod's `spec` the restricted level refuses.
#[must_use]
pub fn against_restricted(spec: &Value) -> Vec<String> {
    let mut found = against_baseline(spec);
    for volume in list(&spec["volumes"]) {
        let kinds = volume.as_object().into_iter().flatten().map(|(kind, _)| kind.as_str());
        let others = kinds.filter(|kind| *kind != "name" && !RESTRICTED_VOLUMES.contains(kind));
        found.extend(others.map(|kind| format!("{kind} volume {}", volume["name"])));
    }
    for container in containers(spec) {
        let name = &container["name"];
        let context = &container["securityContext"];
        if context["allowPrivilegeEscalation"] != false {
            found.push(format!("{name} may gain privileges"));
        }
        if !list(&context["capabilities"]["drop"]).iter().any(|dropped| dropped == "ALL") {
            found.push(format!("{name} keeps capabilities"));
        }
        let either = |field: &str| [&context[field], &spec["securityContext"][field]];
        let chosen = |field: &str| either(field).into_iter().find(|value| !value.is_null());
        if chosen("runAsNonRoot") != Some(&Value::Bool(true)) {
            found.push(format!("{name} may run as root"));
        }
        if chosen("runAsUser").is_some_and(|user| *user == 0) {
            found.push(format!("{name} runs as root"));
        }
        if !matches!(seccomp(spec, container), "RuntimeDefault" | "Localhost") {
            found.push(format!("{name} has no seccomp profile"));
        }
    }
    found
}

/// Every container of a Pod.
#[must_use]
pub fn containers(spec: &Value) -> Vec<&Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|kind| list(&spec[kind]))
        .collect()
}

fn seccomp<'a>(spec: &'a Value, container: &'a Value) -> &'a str {
    let profile = |of: &'a Value| of["securityContext"]["seccompProfile"]["type"].as_str();
    profile(container).or_else(|| profile(spec)).unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn restricted() -> Value {
        json!({
            "securityContext": {
                "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{"name": "c", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            }}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        })
    }

    #[test]
    fn each_breach_of_the_restricted_level_is_found() {
        assert_eq!(against_restricted(&restricted()), Vec::<String>::new());
        for (place, value) in [
            ("/volumes/0", json!({"name": "v", "hostPath": {"path": "/"}})),
            ("/volumes/0", json!({"name": "v", "nfs": {}})),
            ("/securityContext", json!({"runAsNonRoot": true})),
            ("/securityContext/runAsNonRoot", json!(false)),
            ("/securityContext/seccompProfile/type", json!("Unconfined")),
            ("/containers/0/securityContext/allowPrivilegeEscalation", json!(true)),
            ("/containers/0/securityContext/capabilities/drop", json!(["NET_RAW"])),
            ("/containers/0/securityContext/capabilities", json!({"drop": ["ALL"], "add": ["X"]})),
            ("/containers/0/securityContext", json!({"privileged": true})),
            ("/containers/0", json!({"name": "c", "ports": [{"hostPort": 1}]})),
        ] {
            let mut spec = restricted();
            *spec.pointer_mut(place).expect("a place in it") = value.clone();
            assert!(!against_restricted(&spec).is_empty(), "{place} {value}");
        }
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            let mut spec = restricted();
            spec[field] = json!(true);
            assert!(!against_restricted(&spec).is_empty(), "{field}");
        }
    }
}

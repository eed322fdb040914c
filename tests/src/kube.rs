//! The deployment's manifests, as a cluster would get them.
//!
//! `kubectl kustomize` renders, `kubernetes-validate` holds the result to the
//! schemas of Kubernetes; what is read here is the rendered text, never the
//! sources that it was made from.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::checkpoint::said;
use crate::tools;

/// One kustomization, rendered.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// Its directory below `deploy/kustomize`.
    pub name: String,
    /// The YAML that would be applied.
    pub text: String,
    /// The same, object by object.
    pub objects: Vec<Value>,
}

/// Every kustomization that can be applied, by its directory below
/// `deploy/kustomize`.
///
/// # Panics
/// When the directories cannot be read.
#[must_use]
pub fn kustomizations() -> Vec<String> {
    let top = top();
    let mut found = Vec::new();
    let mut directories = vec![top.clone()];
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().expect("a directory of the checkout") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.ends_with("kustomization.yaml") {
                let text = std::fs::read_to_string(&path).expect("a kustomization");
                if text.contains("\nkind: Kustomization\n") {
                    let name = directory.strip_prefix(&top).expect("it is below");
                    found.push(name.display().to_string());
                }
            }
        }
    }
    found.sort();
    found
}

fn top() -> PathBuf {
    tools::workspace().join("deploy/kustomize")
}

impl Rendered {
    /// Renders a kustomization of the checkout.
    ///
    /// # Panics
    /// When it cannot be rendered.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::below(&top(), name)
    }

    /// Renders the kustomization in a directory below another.
    ///
    /// # Panics
    /// When it cannot be rendered.
    #[must_use]
    pub fn below(top: &Path, name: &str) -> Self {
        let mut kubectl = Command::new(tools::tool("kubectl"));
        let output = kubectl.arg("kustomize").arg(top.join(name)).output().expect("it runs");
        assert!(output.status.success(), "{name} cannot be rendered: {}", said(&output));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let objects = objects(&text);
        Self { name: name.to_owned(), text, objects }
    }

    /// The objects of a kind.
    #[must_use]
    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.objects.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// The only object of a kind.
    ///
    /// # Panics
    /// When there is none, or another one.
    #[must_use]
    pub fn one(&self, kind: &str) -> &Value {
        let found = self.all(kind);
        assert_eq!(found.len(), 1, "{} has {} objects of kind {kind}", self.name, found.len());
        found[0]
    }

    /// The Pod templates of all workloads, each with its workload, and Pods.
    #[must_use]
    pub fn pods(&self) -> Vec<&Value> {
        let pod = |object: &'_ Value| match object["kind"].as_str() {
            Some("DaemonSet" | "StatefulSet" | "Deployment" | "Job") => Some("/spec/template"),
            Some("Pod") => Some(""),
            _ => None,
        };
        let template = |object| pod(object).and_then(|path| object.pointer(path));
        self.objects.iter().filter_map(template).collect()
    }
}

/// The documents of a YAML text. The tools' Python reads it: no YAML parser of
/// our own for four files.
fn objects(text: &str) -> Vec<Value> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let mut python = Command::new(tools::tool("python"));
    let output = feed(python.args(["-c", script]), text);
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Runs the validator, which refuses unknown fields, over a YAML text, with the
/// schemas of one version of Kubernetes.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn validate(directory: &Path, text: &str, version: &str) -> Output {
    let path = directory.join("manifests.yaml");
    std::fs::write(&path, text).expect("a file for the validator");
    let mut validator = Command::new(tools::tool("kubernetes-validate"));
    validator.args(["--strict", "--kubernetes-version", version]).arg(path);
    validator.output().expect("the validator runs")
}

fn feed(command: &mut Command, text: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// A quantity of bytes as Kubernetes writes it; the deployment uses whole
/// binary units alone.
///
/// # Panics
/// For anything else.
#[must_use]
pub fn bytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().expect("a quantity");
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
    let found = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = found.expect("a binary unit");
    number.parse::<u64>().expect("a whole number") << shift
}

/// A map of labels, or of `matchLabels`.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn labels(value: &Value) -> BTreeMap<&str, &str> {
    let pairs = value.as_object().expect("labels").iter();
    pairs.map(|(name, value)| (name.as_str(), value.as_str().expect("text"))).collect()
}

/// Whether a selector's `matchLabels` admit these labels.
#[must_use]
pub fn selects(selector: &Value, of: &Value) -> bool {
    let of = labels(of);
    labels(selector).iter().all(|(name, value)| of.get(name) == Some(value))
}

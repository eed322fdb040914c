//! A published model to grow, as often as a test likes, and checkpoints that
//! bring it tiers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;
use tpad_store::{ObjectEntry, ObjectOrigin, OriginOptions};

use crate::checkpoint::{Checkpoint, Store, fixture, origin, said, tpactl};
use crate::shards::{Planned, content, write};
use crate::weed::Weed;

/// The model's width, and its MoE layers.
const HIDDEN: u64 = 64;
const LAYERS: u32 = 2;

/// Experts of a tier that is brought, in two groups.
const EXPERTS: u32 = 8;
/// Their inner width: a tier has three megabytes.
const INNER: u64 = 512;

/// The objects of a model with its first revision.
#[derive(Debug)]
pub struct Published {
    objects: BTreeMap<String, Bytes>,
}

/// A root of its own with that model.
#[derive(Debug)]
pub struct Growing {
    /// Where it is, for commands.
    pub root: String,
    origin: ObjectOrigin,
}

impl Published {
    /// A Mixtral, imported below `directory`.
    ///
    /// # Panics
    /// When it cannot be imported.
    pub async fn mixtral(directory: &Path) -> Self {
        let original = fixture("mixtral");
        let imported = Checkpoint::import(&original, Store::Directory, directory, None).await;
        let mut objects = BTreeMap::new();
        let root = PathBuf::from(&imported.root);
        collect(&root, &root, &mut objects);
        assert!(objects.contains_key("tpad/revisions/1.json"), "{:?}", objects.keys());
        Self { objects }
    }

    /// The same model at a root that nobody else has; the one in a directory is
    /// below `directory`.
    ///
    /// # Panics
    /// When the store does not take it.
    pub async fn plant(&self, store: Store, directory: &Path, name: &str) -> Growing {
        let (root, origin) = match store {
            Store::Directory => {
                let root = directory.join(name);
                std::fs::create_dir(&root).expect("a new directory");
                let root = root.display().to_string();
                let origin = ObjectOrigin::open(&root, &OriginOptions::default());
                (root, origin.expect("a directory"))
            }
            Store::S3 => {
                let root = Weed::shared().fresh_root(name);
                let origin = origin(&root);
                (root, origin)
            }
        };
        for (path, bytes) in &self.objects {
            origin.put(path, bytes.clone()).await.expect("the store takes it");
        }
        Growing { root, origin }
    }

    /// Holds every object of the first revision against what is at the root.
    ///
    /// # Panics
    /// When one is gone or differs.
    pub async fn is_untouched_at(&self, growing: &Growing) {
        for (path, bytes) in &self.objects {
            let found = growing.origin.get(path, u64::MAX).await;
            assert!(found.expect("it is there") == bytes, "{path} of {} differs", growing.root);
        }
    }
}

fn collect(root: &Path, directory: &Path, objects: &mut BTreeMap<String, Bytes>) {
    for entry in directory.read_dir().expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, objects);
            continue;
        }
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        objects.insert(name, std::fs::read(&path).expect("readable").into());
    }
}

impl Growing {
    /// What is in a directory of the root.
    ///
    /// # Panics
    /// When it cannot be listed.
    pub async fn list(&self, directory: &str) -> Vec<ObjectEntry> {
        self.origin.list(directory).await.expect("the store lists it")
    }

    /// The documents of all revisions, in order, without gaps.
    ///
    /// # Panics
    /// When one is no JSON, or what is listed are not all revisions up to one.
    pub async fn revisions(&self) -> Vec<Value> {
        let there = self.list("tpad/revisions").await;
        let named = there.iter().filter(|entry| entry.path.ends_with(".json")).count();
        let mut documents = Vec::new();
        for number in 1..=named {
            let path = format!("tpad/revisions/{number}.json");
            let document = self.origin.get(&path, u64::MAX).await;
            let document = document.unwrap_or_else(|error| unreachable!("{error}: {there:?}"));
            documents.push(serde_json::from_slice(&document).expect("a whole document"));
        }
        documents
    }

    /// `tpactl manifest check`: reads every byte of the highest revision.
    ///
    /// # Panics
    /// When anything is wrong with it.
    pub fn check(&self) {
        let output = tpactl().args(["manifest", "check", "--json", &self.root]).output();
        let output = output.expect("tpactl runs");
        assert!(output.status.success(), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["ok"], true, "{report}");
    }

    /// Holds every tensor of a tier, where the highest revision says that it is,
    /// against the one that [`bring`] wrote.
    ///
    /// # Panics
    /// When one differs, is missing or is there twice.
    pub async fn holds(&self, tier: &str) {
        let shown = tpactl()
            .args(["manifest", "show", "--index", "--tier", tier, &self.root])
            .output()
            .expect("tpactl runs");
        assert!(shown.status.success(), "{}", said(&shown));
        let mut expected: BTreeMap<String, u64> =
            tensors(tier).iter().map(|tensor| (tensor.name.clone(), tensor.len())).collect();
        let mut objects: BTreeMap<String, Bytes> = BTreeMap::new();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let size = |value: &Value| usize::try_from(value.as_u64().expect("a size")).expect("fits");
        for line in String::from_utf8_lossy(&shown.stdout).lines() {
            let block: Value = serde_json::from_str(line).expect("a block");
            for tensor in block["tensors"].as_array().expect("tensors") {
                let name = text(&tensor["name"]);
                let mut bytes = Vec::new();
                for range in tensor["ranges"].as_array().expect("ranges") {
                    let path = text(&range["object"]);
                    if !objects.contains_key(&path) {
                        let object = self.origin.get(&path, u64::MAX).await.expect("a shard");
                        objects.insert(path.clone(), object);
                    }
                    let start = size(&range["offset"]);
                    bytes.extend_from_slice(&objects[&path][start..start + size(&range["bytes"])]);
                }
                let length = expected.remove(&name);
                let length = length.unwrap_or_else(|| unreachable!("{name} is not expected"));
                assert!(bytes == content(&name, length), "{name} differs from the checkpoint's");
            }
        }
        assert!(expected.is_empty(), "missing: {:?}", expected.keys());
    }
}

/// Writes a checkpoint that brings the tier `id`, and returns its directory.
///
/// # Panics
/// When it cannot be written.
#[must_use]
pub fn bring(id: &str, directory: &Path) -> PathBuf {
    let checkpoint = directory.join(format!("brings-{id}"));
    std::fs::create_dir(&checkpoint).expect("a new directory");
    write(&checkpoint.join("model.safetensors"), &tensors(id));
    checkpoint
}

fn tensors(id: &str) -> Vec<Planned> {
    let mut tensors = Vec::new();
    for layer in 0..LAYERS {
        let prefix = format!("tpad_tiers.{id}.layers.{layer}");
        for expert in 0..EXPERTS {
            let group = expert / (EXPERTS / 2);
            let expert = format!("{prefix}.groups.{group}.experts.{expert}");
            for (part, shape) in [
                ("gate_proj", [INNER, HIDDEN]),
                ("up_proj", [INNER, HIDDEN]),
                ("down_proj", [HIDDEN, INNER]),
            ] {
                tensors.push(Planned::new(format!("{expert}.{part}.weight"), "BF16", &shape));
            }
        }
        let shape = [u64::from(EXPERTS), HIDDEN];
        tensors.push(Planned::new(format!("{prefix}.router.weight"), "BF16", &shape));
    }
    tensors
}

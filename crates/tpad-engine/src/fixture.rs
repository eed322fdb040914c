//! Tiny checkpoints for tests, with every image known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tpad_manifest::{
    BlockId, BlockKey, BlockRecord, ByteRange, Compatibility, Digest, ExpertKey, FileRecord,
    FormatVersion, GateUp, GroupRecord, Index, IndexBuilder, IndexRef, LayerKind, LayerRecord,
    Manifest, ModelVersion, Orientation, Part, Placement, Projection, Role, Routing, Scoring,
    Source, TensorRecord, TierId, TierRecord, index_path, revision_path,
};

/// What a checkpoint holds.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The revision's number.
    pub revision: u64,
    /// The tiers.
    pub tiers: Vec<Tier>,
    /// Dense tensors and their sizes in bytes.
    pub dense: Vec<(&'static str, u64)>,
    /// Small files.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// Where the shards go instead of the root.
    pub objects_base: Option<PathBuf>,
    /// The revision whose bytes these are; `None`: its own, unlike any other's.
    pub bytes_of: Option<u64>,
    /// The model's major version; `None`: the revision's number, since other
    /// bytes break whoever used the ones before.
    pub major: Option<u32>,
}

/// One tier of a checkpoint.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Its id.
    pub id: TierId,
    /// Experts of each group.
    pub groups: Vec<u32>,
    /// Layers at which it exists.
    pub layers: Vec<u32>,
    /// Bytes of each expert's weight.
    pub expert_bytes: u64,
    /// Whether it has routers.
    pub routers: bool,
    /// Whether the manifest refers to an index.
    pub index: bool,
    /// Features that a reader must know.
    pub requires: Vec<String>,
    /// Its parameter budget.
    pub budget: u64,
    /// How many different experts there are; the others are copies of them, at
    /// any layer and in any tier that has a number here. `None`: no two are equal.
    pub variety: Option<u32>,
    /// Its home.
    pub placement: Placement,
}

/// A checkpoint in a directory of its own, gone when this is dropped.
#[derive(Debug)]
pub struct Checkpoint {
    directory: TempDir,
    /// Every block of the revision published last, with its image.
    pub blocks: BTreeMap<BlockKey, Vec<u8>>,
}

impl Tier {
    /// A served tier of small experts.
    #[must_use]
    pub fn new(id: &str, groups: &[u32], layers: &[u32]) -> Self {
        Self {
            id: id.parse().expect("a tier id"),
            groups: groups.to_vec(),
            layers: layers.to_vec(),
            expert_bytes: 300,
            routers: true,
            index: true,
            requires: Vec::new(),
            placement: Placement::ObjectStore,
            budget: u64::MAX,
            variety: None,
        }
    }
}

impl Shape {
    /// These tiers at revision 1, nothing else.
    #[must_use]
    pub fn of(tiers: Vec<Tier>) -> Self {
        Self {
            revision: 1,
            tiers,
            dense: Vec::new(),
            files: Vec::new(),
            objects_base: None,
            bytes_of: None,
            major: None,
        }
    }

    /// Three unequal tiers, dense tensors and a file.
    #[must_use]
    pub fn mixed() -> Self {
        let mut shape = Self::of(vec![
            Tier::new("tier_1b", &[4, 2], &[1, 2, 5]),
            Tier::new("7", &[3], &[2, 5]),
            Tier::new("tier_10b", &[5, 1, 2], &[1, 5]),
        ]);
        shape.dense = vec![("model.norm.weight", 64), ("model.embed_tokens.weight", 5000)];
        shape.files = vec![("config.json", b"{\"hidden_size\": 4}".to_vec())];
        shape
    }
}

impl Checkpoint {
    /// An empty root.
    ///
    /// # Panics
    /// When the directory cannot be made.
    #[must_use]
    pub fn empty() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        Self { directory, blocks: BTreeMap::new() }
    }

    /// A root with one revision.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let mut checkpoint = Self::empty();
        checkpoint.publish(shape);
        checkpoint
    }

    /// The root.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The root as configurations write it.
    #[must_use]
    pub fn root(&self) -> String {
        self.path().display().to_string()
    }

    /// Writes a revision, its indexes and shards.
    ///
    /// # Panics
    /// When a file cannot be written.
    pub fn publish(&mut self, shape: &Shape) -> Manifest {
        self.blocks.clear();
        let base = shape.objects_base.clone().unwrap_or_else(|| self.path().to_owned());
        let bytes_of = shape.bytes_of.unwrap_or(shape.revision);
        let mut writer = Writer { revision: shape.revision, bytes_of, blocks: &mut self.blocks };
        let mut indexes = Vec::new();
        let mut tiers = Vec::new();
        let mut shards: Vec<Shard> = Vec::new();
        for tier in &shape.tiers {
            let (index, shard) = writer.tier(tier);
            let reference = encode(&index, &mut indexes);
            shards.push(shard);
            tiers.push(tier_record(tier, tier.index.then_some(reference)));
        }
        let mut dense = None;
        if !shape.dense.is_empty() {
            let (index, shard) = writer.dense(&shape.dense);
            dense = Some(encode(&index, &mut indexes));
            shards.push(shard);
        }
        let mut layers: Vec<u32> =
            shape.tiers.iter().flat_map(|tier| tier.layers.clone()).collect();
        layers.sort_unstable();
        layers.dedup();
        let mut files = BTreeMap::new();
        for (name, bytes) in &shape.files {
            write(&base.join(name), bytes);
            let record = FileRecord {
                object: (*name).to_owned(),
                bytes: bytes.len() as u64,
                digest: Digest::of(bytes),
            };
            files.insert((*name).to_owned(), record);
        }
        for shard in shards {
            write(&base.join(&*shard.path), &shard.bytes);
        }
        for (reference, bytes) in indexes {
            write(&self.path().join(index_path(&reference.digest)), &bytes);
        }
        let layer = |layer| LayerRecord { layer, kind: LayerKind::Moe };
        let major = shape.major.or(shape.revision.try_into().ok()).expect("a small number");
        let manifest = Manifest {
            format_version: FormatVersion { major: 1, minor: 1 },
            model_version: ModelVersion { major, minor: 0 },
            model: "fixture".to_owned(),
            revision: shape.revision,
            parent: None,
            created_at: None,
            objects_base: shape.objects_base.as_ref().map(|base| base.display().to_string()),
            layers: layers.into_iter().map(layer).collect(),
            scoring: Scoring::default(),
            default_tier_set: tiers.iter().take(1).map(|tier| tier.id.clone()).collect(),
            tier_sets: BTreeMap::new(),
            requires: Vec::new(),
            files,
            dense,
            tiers,
        };
        let path = self.path().join(revision_path(shape.revision));
        write(&path, manifest.to_json().as_bytes());
        manifest
    }

    /// Changes one byte of an object under the root.
    ///
    /// # Panics
    /// When there is no such object or byte.
    pub fn flip(&self, object: &str, byte: usize) {
        let path = self.path().join(object);
        let mut bytes = std::fs::read(&path).expect("the object");
        bytes[byte] ^= 1;
        std::fs::write(&path, bytes).expect("the object can be written");
    }
}

/// The object that holds a tier's experts.
#[must_use]
pub fn shard_of(tier: &str, revision: u64) -> String {
    format!("shard-{tier}-{revision}.safetensors")
}

#[derive(Debug)]
struct Shard {
    path: Arc<str>,
    bytes: Vec<u8>,
}

struct Writer<'a> {
    revision: u64,
    bytes_of: u64,
    blocks: &'a mut BTreeMap<BlockKey, Vec<u8>>,
}

impl Writer<'_> {
    fn tier(&mut self, tier: &Tier) -> (Index, Shard) {
        let id = &tier.id;
        let mut shard = self.shard(&id.to_string());
        let mut builder = IndexBuilder::for_tier(id);
        for layer in tier.layers.iter().copied() {
            let mut number = 0;
            let mut groups = Vec::new();
            for (experts, group) in tier.groups.iter().zip(0..) {
                let mut records = Vec::new();
                for expert in 0..*experts {
                    let key = ExpertKey { tier: id.clone(), group, expert };
                    let source = Source { expert: number, column: number + 100 };
                    let tensors = vec![
                        (format!("layers.{layer}.experts.{number}.up"), tier.expert_bytes),
                        (format!("layers.{layer}.experts.{number}.scale"), 5),
                    ];
                    let key = BlockKey::Expert { key, layer };
                    let content = match tier.variety {
                        Some(variety) => format!("copy {}", (layer + number) % variety),
                        None => key.to_string(),
                    };
                    records.push(self.block(key, &content, tensors, Some(source), &mut shard));
                    number += 1;
                }
                groups.push(records);
            }
            let key = BlockKey::Router { tier: id.clone(), layer };
            let tensors = vec![(format!("layers.{layer}.router"), u64::from(number) * 4)];
            let content = key.to_string();
            let router = tier.routers.then(|| self.block(key, &content, tensors, None, &mut shard));
            builder.push_layer(layer, &groups, router.as_ref()).expect("an honest layer");
        }
        (self.finish(builder, &shard), shard)
    }

    fn dense(&mut self, tensors: &[(&'static str, u64)]) -> (Index, Shard) {
        let mut shard = self.shard("dense");
        let mut builder = IndexBuilder::dense();
        let records: Vec<BlockRecord> = tensors
            .iter()
            .map(|(name, bytes)| {
                let key = BlockKey::Dense { name: (*name).into() };
                let content = key.to_string();
                self.block(key, &content, vec![((*name).to_owned(), *bytes)], None, &mut shard)
            })
            .collect();
        builder.push_dense(&records).expect("honest tensors");
        (self.finish(builder, &shard), shard)
    }

    fn finish(&self, mut builder: IndexBuilder, shard: &Shard) -> Index {
        let bytes = shard.bytes.len() as u64;
        builder.set_object_bytes(&shard.path, bytes).expect("one object");
        builder.finish()
    }

    fn shard(&self, of: &str) -> Shard {
        // Bytes before the first tensor: no offset is 0 by chance.
        Shard { path: shard_of(of, self.revision).into(), bytes: vec![0xee; 37] }
    }

    /// A block whose bytes depend on `content`, its tensors' places and the
    /// revision.
    fn block(
        &mut self,
        key: BlockKey,
        content: &str,
        tensors: Vec<(String, u64)>,
        source: Option<Source>,
        shard: &mut Shard,
    ) -> BlockRecord {
        let mut image = Vec::new();
        let mut records = Vec::new();
        for (place, (name, bytes)) in tensors.into_iter().enumerate() {
            let noise = noise(&format!("{content} {place} {}", self.bytes_of), bytes);
            let offset = shard.bytes.len() as u64;
            shard.bytes.extend_from_slice(&noise);
            image.extend_from_slice(&noise);
            image.resize(image.len().next_multiple_of(256), 0);
            records.push(TensorRecord {
                name: name.into(),
                dtype: "U8".into(),
                shape: vec![bytes],
                role: Role { projection: Projection::Up, part: Part::Weight },
                orientation: Orientation::Unknown,
                gate_up: GateUp::Unknown,
                values_per_element: 1,
                sliced: false,
                ranges: vec![ByteRange { object: shard.path.clone(), offset, bytes }],
            });
        }
        let id = BlockId::of(&image);
        self.blocks.insert(key, image);
        BlockRecord { id, tensors: records, source }
    }
}

/// Bytes that depend on `seed` alone.
fn noise(seed: &str, bytes: u64) -> Vec<u8> {
    let mut content = Vec::new();
    let mut digest = Digest::of(seed.as_bytes());
    while (content.len() as u64) < bytes {
        content.extend_from_slice(digest.as_bytes());
        digest = Digest::of(digest.as_bytes());
    }
    content.truncate(usize::try_from(bytes).expect("a small tensor"));
    content
}

fn encode(index: &Index, indexes: &mut Vec<(IndexRef, Vec<u8>)>) -> IndexRef {
    let encoded = tpad_index::encode(index);
    indexes.push((encoded.reference, encoded.bytes));
    encoded.reference
}

fn tier_record(tier: &Tier, index: Option<IndexRef>) -> TierRecord {
    let group = |experts: &u32| GroupRecord {
        experts: *experts,
        hidden_size: None,
        intermediate_size: None,
    };
    TierRecord {
        id: tier.id.clone(),
        created_at: None,
        parameter_budget: tier.budget,
        groups: tier.groups.iter().map(group).collect(),
        placement: tier.placement,
        routing: Routing::default(),
        compatibility: Compatibility { requires: tier.requires.clone(), ..Default::default() },
        index,
    }
}

fn write(path: &Path, bytes: &[u8]) {
    let directory = path.parent().expect("files lie in directories");
    std::fs::create_dir_all(directory).expect("the directory can be made");
    std::fs::write(path, bytes).expect("the file can be written");
}

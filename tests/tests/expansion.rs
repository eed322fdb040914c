//! Growth at random: whatever is added, what was there stays as it was, and any
//! other change is caught.

mod leaves;
mod sequence;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use tpad_client::{
    Choice, Client, FetchDense, FetchExperts, FetchRouters, GetMask, Router, TierLogits,
};
use tpad_manifest::{BlockKey, Changes, Effect, Manifest, RoutingMask, TierSet};
use tpad_publish::changes;
use tpad_tests::compare::collect;
use tpad_tests::process::Process;
use tpad_tests::scene::play;
use tpad_tests::shards;

use self::leaves::Leaf;
use self::sequence::{Resolved, Sequence};

const SEQUENCES: u64 = 1000;

/// Of them, through a daemon.
const LIVE: u64 = 20;

/// Nothing that succeeds comes near it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Random logits for each sequence.
const TOKENS: usize = 10;

/// Sequences at a time.
const THREADS: u64 = 4;

/// Everything that the contract promises of one step.
async fn kept(before: &Resolved, after: &Resolved, effect: Effect) {
    for (path, content) in &before.files {
        assert_eq!(after.files.get(path), Some(content), "{path} changed");
    }
    for (key, record) in &before.records {
        assert_eq!(after.records.get(key), Some(record), "{key} resolves to something else");
    }
    let changed = changes(&before.revision, &after.revision).await.expect("compared");
    assert_eq!(changed.effect(), Some(effect), "{:?}", changed.list());
    let (old, new) = (before.manifest(), after.manifest());
    assert_eq!(new.revision, old.revision + 1);
    let parent = blake3::hash(before.revision.document()).to_hex();
    assert_eq!(after.document()["parent"], parent.as_str());
    assert!(new.created_at.is_some());
    let step = u32::from(effect == Effect::Additive);
    let version = (new.model_version.major, new.model_version.minor);
    assert_eq!(version, (old.model_version.major, old.model_version.minor + step));
    assert_eq!((&new.dense, &new.default_tier_set), (&old.dense, &old.default_tier_set));
    for (was, is) in old.tiers.iter().zip(&new.tiers) {
        let mut amended = is.clone();
        if effect == Effect::Metadata {
            (amended.placement, amended.parameter_budget) = (was.placement, was.parameter_budget);
        }
        assert_eq!(&amended, was);
    }
}

/// Logits of every tier of a model for one token: of all sizes, and with ties.
fn logits(rng: &mut ChaCha8Rng, manifest: &Manifest) -> BTreeMap<String, (Vec<f32>, Vec<f32>)> {
    let mut any = |_| match rng.random_range(0..6) {
        0 => 0.0,
        1 => rng.random_range(-4i16..4).into(),
        2 => rng.random_range(-1e30f32..1e30),
        _ => rng.random_range(-5.0f32..5.0),
    };
    let tiers = manifest.tiers.iter().map(|tier| {
        let experts = tier.groups.iter().map(|group| group.experts).sum::<u32>();
        let mut row = || (0..experts).map(&mut any).collect::<Vec<f32>>();
        (tier.id.to_string(), (row(), row()))
    });
    tiers.collect()
}

/// What a router picks under a TierSet, as bits.
fn routed(
    of: &Resolved,
    set: &TierSet,
    logits: &BTreeMap<String, (Vec<f32>, Vec<f32>)>,
) -> Vec<(String, u32, u32, u32)> {
    let mask = RoutingMask::of(&of.catalog, set, &BTreeMap::new()).expect("a mask");
    let scoring = of.manifest().scoring;
    let router = Router::new(scoring).expect("it can be computed");
    let inputs: Vec<TierLogits<'_>> = mask
        .tiers
        .iter()
        .map(|tier| {
            let (experts, bias) = &logits[&tier.tier];
            let correction_bias = scoring.correction_bias.then_some(&bias[..]);
            TierLogits { correction_bias, ..TierLogits::of(experts) }
        })
        .collect();
    let bits = |choice: Choice| {
        let tier = mask.tiers[choice.tier].tier.clone();
        (tier, choice.group, choice.expert, choice.weight.to_bits())
    };
    router.route(&mask, &inputs).expect("something is chosen").into_iter().map(bits).collect()
}

/// What was there scores and picks as before, whatever the new tiers would say.
fn routes_alike(rng: &mut ChaCha8Rng, first: &Resolved, last: &Resolved) {
    let tiers: Vec<String> = first.manifest().tiers.iter().map(|t| t.id.to_string()).collect();
    let up_to = TierSet::UpTo(tiers.last().expect("a tier").clone());
    let count = rng.random_range(1..=tiers.len());
    let some = tiers.choose_multiple(rng, count).cloned();
    let some = TierSet::Tiers(some.collect());
    for _ in 0..TOKENS {
        let logits = logits(rng, last.manifest());
        for set in [&TierSet::Default, &up_to, &some] {
            assert_eq!(routed(first, set, &logits), routed(last, set, &logits), "{set:?}");
        }
    }
}

/// Changes one value of what exists in the newest document: refused, or a change
/// that has the effect which the table of leaves says.
fn mutation_is_caught(of: &Resolved, leaf: &Leaf, rng: &mut ChaCha8Rng) {
    let old = of.document();
    let mut next = old.clone();
    // As a publisher would hand it in.
    next["revision"] = (of.manifest().revision + 1).into();
    let Some(what) = leaves::mutate(&mut next, leaf, rng) else { return };
    let Ok(loaded) = Manifest::parse(next.to_string().as_bytes()) else { return };
    // Left out or unknown, a value may mean what it was: then nothing changed.
    if (Manifest { revision: of.manifest().revision, ..loaded.manifest.clone() }) == *of.manifest()
    {
        return;
    }
    let changed = Changes::between(of.manifest(), &loaded.manifest);
    let found = changed.effect();
    let expected = leaves::effect(leaf);
    assert_eq!(found, expected, "{leaf}: {what}: {:?}", changed.list());
    let refused = changed.unannounced(of.manifest(), &loaded.manifest);
    assert_eq!(refused.is_empty(), expected != Some(Effect::Breaking), "{leaf}: {what}");
}

async fn play_sequence(directory: &Path, seed: u64) -> u32 {
    let mut sequence = Sequence::begin(directory, seed).await;
    let first = Resolved::newest(&sequence.root).await;
    let steps = sequence.rng.random_range(1..4);
    let mut before = first;
    let mut kept_first = None;
    for n in 0..steps {
        let effect = sequence.step(n, &before).await;
        let after = Resolved::newest(&sequence.root).await;
        kept(&before, &after, effect).await;
        kept_first.get_or_insert(before);
        before = after;
    }
    let first = kept_first.expect("at least one step");
    routes_alike(&mut sequence.rng, &first, &before);
    let leaves = leaves::of(&before.document());
    if seed.is_multiple_of(10) {
        leaves.iter().for_each(|leaf| mutation_is_caught(&before, leaf, &mut sequence.rng));
    } else {
        let leaf = leaves.choose(&mut sequence.rng).expect("a leaf");
        mutation_is_caught(&before, leaf, &mut sequence.rng);
    }
    if seed.is_multiple_of(2) {
        sequence.flipped_bit_is_refused(&before).await;
    }
    std::fs::remove_dir_all(&sequence.scratch).expect("it was ours");
    steps
}

#[test]
fn a_thousand_random_expansions_change_nothing_that_exists() {
    let directory = tempfile::tempdir().expect("scratch");
    let play = &|seeds: std::ops::Range<u64>| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let mut steps = 0u64;
        for seed in seeds {
            // Said by the harness beside what failed.
            println!("sequence {seed}");
            steps += u64::from(runtime.block_on(play_sequence(directory.path(), seed)));
        }
        steps
    };
    let part = SEQUENCES / THREADS;
    let steps: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|n| scope.spawn(move || play(n * part..(n + 1) * part))).collect();
        threads.into_iter().map(|thread| thread.join().expect("every sequence holds")).sum()
    });
    assert!(steps > SEQUENCES * 3 / 2, "{steps} steps");
}

/// What a daemon gives for every key: hashes of the bytes that came.
async fn served(client: &Client, manifest: &Manifest) -> BTreeMap<BlockKey, blake3::Hash> {
    let model = || "model".to_owned();
    let tiers: Vec<String> = manifest.tiers.iter().map(|tier| tier.id.to_string()).collect();
    let experts = FetchExperts { model: model(), tiers: tiers.clone(), ..FetchExperts::default() };
    let mut blocks = collect(client.fetch_experts(experts).await).await;
    let routers = FetchRouters { model: model(), tiers, layers: Vec::new() };
    blocks.extend(collect(client.fetch_routers(routers).await).await);
    let dense = FetchDense { model: model(), names: Vec::new() };
    blocks.extend(collect(client.fetch_dense(dense).await).await);
    for tensor in blocks.values().flat_map(|block| &block.tensors) {
        if tensor.name.starts_with("tpad_tiers.") {
            let written = shards::content(&tensor.name, tensor.bytes.len() as u64);
            assert!(tensor.bytes == written, "{}", tensor.name);
        }
    }
    blocks.into_iter().map(|(key, block)| (key, blake3::hash(&block.image))).collect()
}

#[test]
fn twenty_of_them_pass_through_a_live_daemon() {
    play(async |scene| {
        for seed in 0..LIVE {
            let mut sequence = Sequence::begin(scene.directory(), seed).await;
            let root = &sequence.root;
            let config = format!(
                "follow_interval = \"5ms\"\n[[models]]\nname = \"model\"\nroot = {root:?}\n\
                 [levels.dram]\ncapacity = \"16MiB\"\n"
            );
            let daemon = Process::serve(&sequence.scratch, &config).await;
            let client = Client::connect(&daemon.address()).await.expect("it answers");
            let mask = async || {
                let mask = client.routing_mask(GetMask::of("model", TierSet::Default)).await;
                mask.expect("an answer").mask.expect("a mask").tiers
            };
            let mut before = Resolved::newest(&sequence.root).await;
            let (mut known, first) = (served(&client, before.manifest()).await, mask().await);
            assert_eq!(known.len(), before.records.len(), "sequence {seed}");
            for n in 0..3 {
                sequence.step(n, &before).await;
                before = Resolved::newest(&sequence.root).await;
                let revision = before.manifest().revision;
                let swapped = async {
                    while client.list_models().await.expect("it answers")[0].revision != revision {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                };
                tokio::time::timeout(PATIENCE, swapped).await.expect("it follows");
                let now = served(&client, before.manifest()).await;
                for (key, image) in &known {
                    assert_eq!(now.get(key), Some(image), "sequence {seed}: {key}");
                }
                assert_eq!(now.len(), before.records.len(), "sequence {seed}");
                assert_eq!(mask().await, first, "sequence {seed}: growth activates nothing");
                known = now;
            }
            daemon.terminate();
        }
    });
}

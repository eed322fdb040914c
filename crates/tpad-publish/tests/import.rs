//! Imports of whole checkpoints: every block's image holds what the safetensors
//! library reads, interruptions and races leave no half revision, and a check
//! finds what was changed.

#[path = "import/checkpoint.rs"]
mod checkpoint;
#[path = "import/small.rs"]
mod small;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;
use tpad_manifest::{BlockRecord, Part, Projection};
use tpad_publish::{
    ImportError, ImportOutcome, Phase, Plan, Progress, Revision, Silent, SynthDtype, check, import,
};
use tpad_store::{ErrorKind, ObjectOrigin, OriginOptions};

use crate::checkpoint::{Checkpoint, FIXTURES, origin};
use crate::small::small;

async fn revision(root: &std::path::Path) -> Revision {
    let url = root.to_str().expect("text");
    Revision::open(url, &OriginOptions::default()).await.expect("a revision")
}

async fn problems(root: &std::path::Path) -> Vec<String> {
    let revision = revision(root).await;
    let checked = check(&revision, &Silent, &CancellationToken::new()).await.expect("checked");
    checked.problems.iter().map(ToString::to_string).collect()
}

/// Every block of every index of the newest revision.
async fn blocks(root: &std::path::Path) -> Vec<BlockRecord> {
    let revision = revision(root).await;
    let loaded = revision.manifest().as_ref().expect("accepted").clone();
    let mut records = Vec::new();
    for index in loaded.manifest.tiers.iter().filter_map(|tier| tier.index) {
        let header = std::sync::Arc::new(revision.header(&index).await.expect("a header"));
        for entry in &header.segments {
            let segment = revision.segment(&index, &header, entry).await.expect("a segment");
            for (group, run) in (0u32..).zip(&segment.groups) {
                let expert = |n| segment.expert(&header, group, n).expect("an expert");
                records.extend((0..run.experts).map(expert));
            }
            records.extend(segment.router(&header));
        }
    }
    if let Some(index) = loaded.manifest.dense {
        let header = std::sync::Arc::new(revision.header(&index).await.expect("a header"));
        let segment =
            revision.segment(&index, &header, &header.segments[0]).await.expect("a segment");
        let dense = |n| segment.dense(&header, n).expect("a dense block");
        records.extend((0..segment.loose.len()).map(dense));
    }
    records
}

/// Holds every block of the imported checkpoint against what the safetensors
/// library reads, and every tensor of the checkpoint against the blocks.
async fn compare(checkpoint: &Checkpoint, root: &std::path::Path) {
    let reference = checkpoint.tensors();
    let mut covered: BTreeMap<String, u64> = BTreeMap::new();
    for record in blocks(root).await {
        let layout = record.layout().expect("a layout");
        let mut image = vec![0; usize::try_from(layout.bytes).expect("fits")];
        for (tensor, offset) in record.tensors.iter().zip(&layout.offsets) {
            let whole = &reference[&*tensor.name];
            assert_eq!(tensor.dtype.name(), whole.dtype, "{}", tensor.name);
            let bytes = match (tensor.sliced, record.source) {
                (true, Some(source)) => {
                    let stacked = usize::try_from(whole.shape[0]).expect("fits");
                    let size = whole.bytes.len() / stacked;
                    let expert = usize::try_from(source.expert).expect("fits");
                    assert_eq!(tensor.shape, whole.shape[1..], "{}", tensor.name);
                    &whole.bytes[expert * size..][..size]
                }
                _ => {
                    assert_eq!(tensor.shape, whole.shape, "{}", tensor.name);
                    &whole.bytes[..]
                }
            };
            let offset = usize::try_from(*offset).expect("fits");
            image[offset..][..bytes.len()].copy_from_slice(bytes);
            *covered.entry(tensor.name.to_string()).or_default() += bytes.len() as u64;
        }
        assert_eq!(tpad_manifest::BlockId::of(&image), record.id, "{:?}", record.tensors);
    }
    let whole: BTreeMap<String, u64> =
        reference.into_iter().map(|(name, tensor)| (name, tensor.bytes.len() as u64)).collect();
    assert_eq!(covered, whole, "every byte is in one block");
}

#[tokio::test]
async fn every_block_of_the_fixtures_is_what_the_safetensors_library_reads() {
    for name in FIXTURES {
        let checkpoint = Checkpoint::fixture(name);
        let imported = checkpoint.import().await.expect(name);
        assert_eq!(imported.outcome, ImportOutcome::Written, "{name}");
        compare(&checkpoint, checkpoint.path()).await;
        assert_eq!(problems(checkpoint.path()).await, Vec::<String>::new(), "{name}");
    }
}

#[tokio::test]
async fn every_block_of_synthetic_checkpoints_is_what_the_safetensors_library_reads() {
    for preset in tpad_publish::PRESETS {
        let mut spec = small(preset);
        spec.shard_bytes = 50_000;
        let checkpoint = Checkpoint::synth(&spec);
        checkpoint.import().await.expect(preset);
        compare(&checkpoint, checkpoint.path()).await;
        assert_eq!(problems(checkpoint.path()).await, Vec::<String>::new(), "{preset}");
    }
}

/// Images larger than what is read at once go through in pieces.
#[tokio::test]
async fn blocks_larger_than_a_window_are_digested_right() {
    let mut spec = small("mixtral-8x7b");
    (spec.layers, spec.experts) = (1, 2);
    (spec.hidden, spec.intermediate, spec.vocab) = (1024, 3001, 64);
    spec.dtype = SynthDtype::F32;
    spec.shard_bytes = 30 << 20;
    let checkpoint = Checkpoint::synth(&spec);
    let imported = checkpoint.import().await.expect("imported");
    assert!(imported.image_bytes > 70 << 20, "{}", imported.image_bytes);
    compare(&checkpoint, checkpoint.path()).await;
    assert_eq!(problems(checkpoint.path()).await, Vec::<String>::new());
}

#[tokio::test]
async fn importing_again_changes_nothing() {
    let checkpoint = Checkpoint::fixture("qwen3_moe");
    let first = checkpoint.import().await.expect("imported");
    let before = checkpoint.files();
    let mut options = checkpoint.options();
    options.now = jiff::Timestamp::UNIX_EPOCH;
    let again = checkpoint.import_with(&options, &Silent, &CancellationToken::new()).await;
    let again = again.expect("imported");
    assert_eq!(again.outcome, ImportOutcome::Unchanged);
    assert_eq!(again.manifest, first.manifest);
    assert_eq!(checkpoint.files(), before);
    options.model = "another".to_owned();
    let renamed = checkpoint.import_with(&options, &Silent, &CancellationToken::new()).await;
    let renamed = renamed.expect("imported");
    assert_eq!((renamed.outcome, renamed.manifest.revision), (ImportOutcome::Written, 2));
    assert_eq!(renamed.manifest.model_version, first.manifest.model_version);
    assert!(renamed.manifest.parent.is_some());
    assert_eq!(renamed.manifest.tiers, first.manifest.tiers);
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_says_the_same() {
    let checkpoint = Checkpoint::fixture("deepseek_v3_fp8");
    let before = checkpoint.files();
    let mut options = checkpoint.options();
    options.dry_run = true;
    let dry = checkpoint.import_with(&options, &Silent, &CancellationToken::new()).await;
    let dry = dry.expect("surveyed");
    assert_eq!(checkpoint.files(), before);
    options.dry_run = false;
    let real = checkpoint.import_with(&options, &Silent, &CancellationToken::new()).await;
    let mut real = real.expect("imported").manifest;
    for tier in &mut real.tiers {
        tier.index = None;
    }
    real.dense = None;
    assert_eq!(dry.manifest, real);
}

#[tokio::test]
async fn what_no_reader_would_take_is_refused_before_a_weight_is_read() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let before = checkpoint.files();
    let mut options = checkpoint.options();
    options.model = "m".repeat(17 << 20);
    for dry_run in [true, false] {
        options.dry_run = dry_run;
        let progress = CancelAfter::new(0);
        let result = checkpoint.import_with(&options, &progress, &progress.stop).await;
        assert!(matches!(result, Err(ImportError::Rejected(_))), "dry run {dry_run}");
        assert_eq!(progress.done.load(Ordering::SeqCst), 0, "weights were read");
    }
    assert_eq!(checkpoint.files(), before);
}

#[tokio::test]
async fn a_manifest_kept_elsewhere_points_back() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let before = checkpoint.files();
    let scratch = tempfile::tempdir().expect("scratch");
    let (root, out) = (origin(checkpoint.path()), origin(scratch.path()));
    let stop = CancellationToken::new();
    let imported =
        import(&root, Some(&out), &checkpoint.options(), &Silent, &stop).await.expect("imported");
    assert_eq!(checkpoint.files(), before, "the shards' root was written to");
    assert_eq!(imported.manifest.objects_base.as_deref(), Some(root.url()));
    compare(&checkpoint, scratch.path()).await;
    assert_eq!(problems(scratch.path()).await, Vec::<String>::new());
}

/// A Hugging Face snapshot: links into a directory of blobs.
#[cfg(unix)]
#[tokio::test]
async fn a_snapshot_of_links_is_imported() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let cache = tempfile::tempdir().expect("scratch");
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/abc"));
    fs::create_dir_all(&blobs).expect("made");
    fs::create_dir_all(&snapshot).expect("made");
    for (n, (name, bytes)) in checkpoint.files().into_iter().enumerate() {
        let blob = format!("{n:064x}");
        fs::write(blobs.join(&blob), bytes).expect("written");
        let link = std::path::Path::new("../../blobs").join(&blob);
        std::os::unix::fs::symlink(link, snapshot.join(name)).expect("linked");
    }
    let stop = CancellationToken::new();
    import(&origin(&snapshot), None, &checkpoint.options(), &Silent, &stop)
        .await
        .expect("imported");
    compare(&checkpoint, &snapshot).await;
    for record in blocks(&snapshot).await {
        let ranges = record.tensors.iter().flat_map(|tensor| &tensor.ranges);
        assert!(ranges.into_iter().all(|range| !range.object.contains("..")));
    }
}

#[tokio::test]
async fn what_else_lies_below_a_root_does_not_stop_its_import() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let root = checkpoint.path();
    std::os::unix::fs::symlink(".", root.join("self")).expect("linked");
    fs::create_dir(root.join("original")).expect("made");
    fs::write(root.join("original/consolidated.safetensors"), b"").expect("written");
    let imported = checkpoint.import().await.expect("imported");
    let notes = imported.notes.join(" ");
    assert!(notes.contains("original/consolidated.safetensors"), "{notes}");
    assert_eq!(problems(root).await, Vec::<String>::new());
}

#[tokio::test]
async fn expert_blocks_keep_gate_up_and_down_in_order() {
    let checkpoint = Checkpoint::fixture("deepseek_v3_fp8");
    checkpoint.import().await.expect("imported");
    let records = blocks(checkpoint.path()).await;
    let experts = records.iter().filter(|record| record.source.is_some());
    let weights = |record: &BlockRecord| -> Vec<Projection> {
        let weights = record.tensors.iter().filter(|tensor| tensor.role.part == Part::Weight);
        weights.map(|tensor| tensor.role.projection).collect()
    };
    let mut count = 0;
    for expert in experts {
        assert_eq!(weights(expert), [Projection::Gate, Projection::Up, Projection::Down]);
        assert_eq!(expert.tensors.len(), 6, "a scale travels with each weight");
        count += 1;
    }
    assert_eq!(count, 16);
}

/// Cancels once so many bytes were digested in the process's life.
struct CancelAfter {
    bytes: u64,
    done: AtomicU64,
    digesting: AtomicU64,
    stop: CancellationToken,
}

impl CancelAfter {
    fn new(bytes: u64) -> Self {
        let stop = CancellationToken::new();
        Self { bytes, done: 0.into(), digesting: 0.into(), stop }
    }
}

impl Progress for CancelAfter {
    fn begin(&self, phase: Phase, _total: u64) {
        self.digesting.store(u64::from(phase == Phase::Digests), Ordering::SeqCst);
    }

    fn advance(&self, done: u64) {
        let done = done * self.digesting.load(Ordering::SeqCst);
        if self.done.fetch_add(done, Ordering::SeqCst) + done > self.bytes {
            self.stop.cancel();
        }
    }
}

#[tokio::test]
async fn an_interrupted_import_leaves_no_revision_and_goes_on_where_it_stopped() {
    // Several batches: images of one batch are known together or not at all.
    let mut spec = small("qwen3-30b-a3b");
    (spec.layers, spec.hidden, spec.intermediate, spec.vocab) = (6, 256, 512, 2048);
    spec.shard_bytes = 5 << 20;
    let whole = Checkpoint::synth(&spec);
    let expected = whole.import().await.expect("imported");
    let mut resumed = Vec::new();
    for percent in [0, 10, 35, 60, 85, 99] {
        let checkpoint = Checkpoint::synth(&spec);
        let before = checkpoint.files();
        let progress = CancelAfter::new(expected.image_bytes * percent / 100);
        let result = checkpoint.import_with(&checkpoint.options(), &progress, &progress.stop).await;
        assert!(matches!(result, Err(ImportError::Cancelled)), "{percent} %: {result:?}");
        assert_eq!(checkpoint.files(), before, "{percent} %: something was left at the root");
        let imported = checkpoint.import().await.expect("the second time");
        assert_eq!(imported.manifest.tiers[0].index, expected.manifest.tiers[0].index);
        assert_eq!(imported.manifest.dense, expected.manifest.dense);
        assert_eq!(problems(checkpoint.path()).await, Vec::<String>::new());
        resumed.push(imported.resumed);
        assert_eq!(checkpoint.ledgers(), 0, "the ledger is gone after success");
    }
    assert!(resumed[5] > resumed[1] && resumed[1] > 0, "{resumed:?}");
}

#[tokio::test]
async fn a_ledger_does_not_outlive_a_changed_shard() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let size = checkpoint.import_size().await;
    let progress = CancelAfter::new(size - 1);
    let stopped = checkpoint.import_with(&checkpoint.options(), &progress, &progress.stop).await;
    assert!(matches!(stopped, Err(ImportError::Cancelled)), "{stopped:?}");
    assert_eq!(checkpoint.ledgers(), 1);
    // Another weight in one shard; sizes stay.
    checkpoint.flip("model-00003-of-00005.safetensors", -1);
    let imported = checkpoint.import().await.expect("imported");
    assert!(imported.resumed > 0 && imported.resumed < imported.blocks, "{}", imported.resumed);
    compare(&checkpoint, checkpoint.path()).await;
}

#[tokio::test]
async fn of_two_imports_at_once_one_wins_and_the_other_sees_it() {
    for round in 0..8 {
        let checkpoint = Checkpoint::fixture("mixtral");
        let (root, stop) = (origin(checkpoint.path()), CancellationToken::new());
        let mut options = [checkpoint.options(), checkpoint.options()];
        // In odd rounds they have different things to say.
        let differ = round % 2 == 1;
        if differ {
            options[1].model = "another".to_owned();
        }
        let (a, b) = tokio::join!(
            import(&root, None, &options[0], &Silent, &stop),
            import(&root, None, &options[1], &Silent, &stop),
        );
        let outcome = |result: &Result<tpad_publish::Imported, ImportError>| match result {
            Ok(imported) => {
                (imported.outcome == ImportOutcome::Written, imported.manifest.revision)
            }
            Err(ImportError::Overtaken { revision }) if differ => (false, *revision),
            Err(error) => panic!("{error}"),
        };
        let mut outcomes = [outcome(&a), outcome(&b)];
        outcomes.sort_unstable();
        match outcomes {
            [(false, 1), (true, 1)] => {}
            // One after the other: both have something to say.
            [(true, 1), (true, 2)] if differ => {}
            outcomes => panic!("{outcomes:?}"),
        }
        assert_eq!(problems(checkpoint.path()).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_check_names_the_tensor_of_every_flipped_byte() {
    let checkpoint = Checkpoint::fixture("mixtral");
    checkpoint.import().await.expect("imported");
    for (name, tensor) in checkpoint.tensors() {
        let (file, offset) = (&tensor.file, tensor.offset + tensor.bytes.len() as u64 / 2);
        checkpoint.flip(file, i64::try_from(offset).expect("fits"));
        let found = problems(checkpoint.path()).await;
        checkpoint.flip(file, i64::try_from(offset).expect("fits"));
        let [problem] = &*found else { panic!("{name}: {found:?}") };
        assert!(problem.contains(&name), "{name}: {problem}");
        assert!(problem.contains(&**file), "{name}: {problem}");
    }
    assert_eq!(problems(checkpoint.path()).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_check_reports_all_problems_at_once() {
    let checkpoint = Checkpoint::fixture("gpt_oss");
    checkpoint.import().await.expect("imported");
    let path = |name: &str| checkpoint.path().join(name);
    fs::write(path("config.json"), "{}").expect("written");
    fs::remove_file(path("generation_config.json")).expect("removed");
    checkpoint.flip("model-00002-of-00004.safetensors", -1);
    let last = path("model-00004-of-00004.safetensors");
    let bytes = fs::read(&last).expect("readable");
    fs::write(&last, &bytes[..bytes.len() - 1]).expect("written");
    let found = problems(checkpoint.path()).await;
    for expected in [
        "file config.json: config.json: its digest is",
        "file generation_config.json",
        "model-00002-of-00004.safetensors: the bytes have digest",
        "object model-00004-of-00004.safetensors",
        "cannot be read",
    ] {
        assert!(found.iter().any(|problem| problem.contains(expected)), "{expected}: {found:#?}");
    }
}

#[tokio::test]
async fn a_check_finds_damaged_and_missing_indexes() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let imported = checkpoint.import().await.expect("imported");
    let index = |digest| checkpoint.path().join(tpad_manifest::index_path(&digest));
    let tier = imported.manifest.tiers[0].index.expect("an index");
    let dense = imported.manifest.dense.expect("an index");
    let path = index(tier.digest);
    let bytes = fs::read(&path).expect("readable");
    let mut damaged = bytes.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    fs::write(&path, &damaged).expect("written");
    fs::remove_file(index(dense.digest)).expect("removed");
    let found = problems(checkpoint.path()).await;
    assert!(
        found.iter().any(|problem| problem.contains("layer 1") && problem.contains("digest")),
        "{found:#?}"
    );
    assert!(found.iter().any(|problem| problem.starts_with("/dense")), "{found:#?}");
    let mut damaged = bytes;
    damaged[20] ^= 1;
    fs::write(&path, &damaged).expect("written");
    let found = problems(checkpoint.path()).await;
    assert!(found.iter().any(|problem| problem.starts_with("/tiers/0/index")), "{found:#?}");
}

#[tokio::test]
async fn budgets_are_kept_to_the_parameter() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let plan = |budget: u64| {
        let text = format!(
            "[[tiers]]\nid = \"all\"\nparameter_budget = {budget}\ngroups = [{{ experts = \"0-7\" }}]\n"
        );
        Plan::parse(&text).expect("a plan")
    };
    let exact = 2 * 8 * 3 * 64 * 96;
    let mut options = checkpoint.options();
    options.plan = Some(plan(exact - 1));
    let before = checkpoint.files();
    let over = checkpoint.import_with(&options, &Silent, &CancellationToken::new()).await;
    let over = over.expect_err("over budget");
    assert_eq!(over.kind(), ErrorKind::InvalidArgument);
    let message = over.to_string();
    assert!(message.contains("294912 parameters, 1 more"), "{message}");
    assert_eq!(checkpoint.files(), before);
    options.plan = Some(plan(exact));
    let fits = checkpoint.import_with(&options, &Silent, &CancellationToken::new()).await;
    assert_eq!(fits.expect("fits").manifest.tiers[0].parameter_budget, exact);
}

#[tokio::test]
async fn broken_checkpoints_are_refused_by_name_and_leave_nothing() {
    type Break = fn(&Checkpoint);
    let index = "model.safetensors.index.json";
    let table: &[(&str, Break, &str)] = &[
        (
            "a shard is missing",
            |c| {
                fs::remove_file(c.path().join("model-00003-of-00005.safetensors")).expect("removed")
            },
            "model-00003-of-00005.safetensors is missing",
        ),
        (
            "a shard is truncated",
            |c| {
                let path = c.path().join("model-00003-of-00005.safetensors");
                let bytes = fs::read(&path).expect("readable");
                fs::write(path, &bytes[..bytes.len() - 1]).expect("written");
            },
            "it is truncated",
        ),
        (
            "a shard is empty",
            |c| fs::write(c.path().join("model-00003-of-00005.safetensors"), "").expect("written"),
            "model-00003-of-00005.safetensors: the file has 0 bytes",
        ),
        (
            "a shard is a download page",
            |c| {
                let page = "<!DOCTYPE html><html></html>";
                fs::write(c.path().join("model-00003-of-00005.safetensors"), page)
                    .expect("written");
            },
            "this is no safetensors file",
        ),
        (
            "the index names a tensor that is nowhere",
            |c| c.edit("model.safetensors.index.json", "\"lm_head.weight\"", "\"lm_head.other\""),
            "lm_head.other is not in model-00001-of-00005.safetensors",
        ),
        (
            "the index leads out of the root",
            |c| {
                c.edit(
                    "model.safetensors.index.json",
                    "\"lm_head.weight\": \"model-",
                    "\"lm_head.weight\": \"../model-",
                );
            },
            "no empty, \".\" or \"..\" component",
        ),
        (
            "the index is no JSON",
            |c| fs::write(c.path().join("model.safetensors.index.json"), "{").expect("written"),
            "model.safetensors.index.json",
        ),
        (
            "the configuration is no JSON",
            |c| fs::write(c.path().join("config.json"), "{").expect("written"),
            "config.json",
        ),
    ];
    for (what, damage, expected) in table {
        let checkpoint = Checkpoint::fixture("mixtral");
        assert!(checkpoint.path().join(index).exists());
        damage(&checkpoint);
        let before = checkpoint.files();
        let error = checkpoint.import().await.expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
        assert_eq!(checkpoint.files(), before, "{what}: something was written");
    }
}

#[tokio::test]
async fn a_tensor_in_two_shards_is_refused_without_an_index() {
    let checkpoint = Checkpoint::fixture("mixtral");
    fs::remove_file(checkpoint.path().join("model.safetensors.index.json")).expect("removed");
    checkpoint.import().await.expect("the names of the shards suffice");
    let checkpoint = Checkpoint::fixture("mixtral");
    fs::remove_file(checkpoint.path().join("model.safetensors.index.json")).expect("removed");
    let shard = |n: u32| checkpoint.path().join(format!("model-0000{n}-of-00005.safetensors"));
    fs::copy(shard(2), shard(3)).expect("copied");
    let error = checkpoint.import().await.expect_err("twice").to_string();
    assert!(error.contains("is in model-00002-of-00005.safetensors and in model-00003"), "{error}");
}

/// A copy of the weights in another format, as some repositories have.
#[tokio::test]
async fn a_second_copy_of_the_weights_is_not_counted() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let copy = checkpoint.path().join("original");
    fs::create_dir(&copy).expect("made");
    for (name, bytes) in checkpoint.files() {
        if name.ends_with(".safetensors") {
            fs::write(copy.join(&name), &bytes).expect("written");
            fs::write(checkpoint.path().join(format!("consolidated.{name}")), bytes)
                .expect("written");
        }
    }
    let imported = checkpoint.import().await.expect("imported");
    assert_eq!(imported.blocks, 33);
    assert!(
        imported.notes.iter().any(|note| note.contains("9 more are not part")),
        "{:?}",
        imported.notes
    );
}

#[tokio::test]
async fn a_tensor_of_an_unknown_type_is_refused_by_name() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let path = checkpoint.path().join("model-00001-of-00005.safetensors");
    let mut bytes = fs::read(&path).expect("readable");
    let at = bytes.windows(6).position(|window| window == b"\"BF16\"").expect("a type");
    bytes[at..at + 6].copy_from_slice(b"\"XF16\"");
    fs::write(&path, bytes).expect("written");
    let error = checkpoint.import().await.expect_err("unknown").to_string();
    assert!(error.contains("lm_head.weight") && error.contains("XF16"), "{error}");
}

/// A server that cannot list: the names that checkpoints use are looked for.
#[tokio::test]
async fn a_root_without_listing_needs_another_place_for_the_manifest() {
    let checkpoint = Checkpoint::fixture("mixtral");
    let server = checkpoint::serve(checkpoint.path()).await;
    let scratch = tempfile::tempdir().expect("scratch");
    let root = ObjectOrigin::open(&server.url, &OriginOptions::default()).expect("opened");
    let out = origin(scratch.path());
    let (options, stop) = (checkpoint.options(), CancellationToken::new());
    let refused = import(&root, None, &options, &Silent, &stop).await.expect_err("not writable");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    import(&root, Some(&out), &options, &Silent, &stop).await.expect("imported");
    compare(&checkpoint, scratch.path()).await;
    assert_eq!(problems(scratch.path()).await, Vec::<String>::new());
}

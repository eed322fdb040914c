//! Stores that are wrong: never a wrong byte, and each wrong with its code.

use std::path::Path;
use std::time::Duration;

use tonic::Code;
use tpad_client::{Client, Error, FetchExperts};
use tpad_manifest::ExpertKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare::exact;
use tpad_tests::daemon::Served;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tap::{Fault, Tap};
use tpad_tests::weed::Weed;

/// Holds `w1` and `w2` of all experts of layer 1.
const SHARD: &str = "model-00004-of-00005.safetensors";

type Spoil = fn(&Path);

/// What is done to a shard, and the code that its blocks then answer.
const SHARDS: &[(&str, Spoil, Code)] = &[
    ("one bit flipped", flip, Code::DataLoss),
    ("cut to its half", truncate, Code::DataLoss),
    ("cut to nothing", empty, Code::DataLoss),
    ("deleted", delete, Code::DataLoss),
    ("replaced by another of the same size", replace, Code::DataLoss),
    ("a directory of its name", obstruct, Code::DataLoss),
];

/// What the store does to every read, and the code that blocks then answer.
const ANSWERS: &[(Fault, Code)] = &[
    (Fault::FlippedBit, Code::DataLoss),
    (Fault::OneByteShort, Code::DataLoss),
    // Not an answer to what was asked: the object may be well.
    (Fault::OtherRange, Code::Unavailable),
    (Fault::IgnoredRange, Code::Unavailable),
    (Fault::CutOff, Code::Unavailable),
    (Fault::Refused, Code::Unavailable),
    (Fault::Status(500), Code::Unavailable),
    (Fault::Status(503), Code::Unavailable),
    (Fault::Status(403), Code::PermissionDenied),
    (Fault::Status(404), Code::DataLoss),
    (Fault::Hanging, Code::DeadlineExceeded),
];

fn flip(shard: &Path) {
    let mut bytes = std::fs::read(shard).expect("the shard");
    // The last byte is a weight's.
    *bytes.last_mut().expect("a byte") ^= 1;
    std::fs::write(shard, bytes).expect("room");
}

fn truncate(shard: &Path) {
    let file = std::fs::File::options().write(true).open(shard).expect("the shard");
    let length = file.metadata().expect("its length").len();
    file.set_len(length / 2).expect("it can be cut");
}

fn empty(shard: &Path) {
    std::fs::write(shard, []).expect("it can be cut");
}

fn delete(shard: &Path) {
    std::fs::remove_file(shard).expect("it can be deleted");
}

fn replace(shard: &Path) {
    let length = shard.metadata().expect("its length").len();
    let other = tpad_tests::shards::content("another checkpoint", length);
    std::fs::write(shard, other).expect("room");
}

fn obstruct(shard: &Path) {
    delete(shard);
    std::fs::create_dir(shard).expect("a directory");
}

#[test]
fn spoiled_shards_never_answer_a_byte_and_spare_the_others() {
    for (what, spoil, code) in SHARDS {
        play(async |scene| {
            let original = fixture("mixtral");
            let checkpoint =
                Checkpoint::import(&original, Store::Directory, scene.directory(), None).await;
            let served = Served::start(scene, &checkpoint.section()).await;
            spoil(&Path::new(&checkpoint.root).join(SHARD));
            scene.logs().expect("checkpoint cannot be read model=\"mixtral\" kind=\"data_loss\"");
            let (good, error) = fetch(served.client(), &original, 1, None).await;
            let error = error.unwrap_or_else(|| unreachable!("{what}: no error came"));
            assert_eq!(found(&error), *code, "{what}: {error}");
            assert!(good < 8, "{what}");
            // Layer 0 lies in other shards.
            let (good, error) = fetch(served.client(), &original, 0, None).await;
            assert_eq!((good, error.map(|error| error.to_string())), (8, None), "{what}");
            served.stop().await;
        });
    }
}

#[test]
fn a_lying_store_never_makes_a_wrong_byte() {
    for (fault, code) in ANSWERS {
        play(async |scene| {
            let (served, tap) = tapped(scene).await;
            let original = fixture("mixtral");
            tap.set(*fault);
            // A person must look at wrong bytes and at credentials; a store
            // that fails for a while is nobody's page.
            if [Code::DataLoss, Code::PermissionDenied].contains(code) {
                scene.logs().expect("checkpoint cannot be read");
            }
            let deadline = Duration::from_secs(if *fault == Fault::Hanging { 2 } else { 30 });
            let (good, error) = fetch(served.client(), &original, 1, Some(deadline)).await;
            let error = error.unwrap_or_else(|| unreachable!("{fault:?}: no error came"));
            assert_eq!((good, found(&error)), (0, *code), "{fault:?}: {error}");
            assert!(tap.faults() > 0, "{fault:?} never happened");
            // The store is right again: so is the daemon, at once.
            tap.set(Fault::None);
            let (good, error) = fetch(served.client(), &original, 1, None).await;
            assert_eq!((good, error.map(|error| error.to_string())), (8, None), "{fault:?}");
            served.stop().await;
        });
    }
}

async fn tapped(scene: &Scene) -> (Served, Tap) {
    let checkpoint =
        Checkpoint::import(&fixture("mixtral"), Store::S3, scene.directory(), None).await;
    let tap = Tap::start(Weed::shared().address());
    let served = Served::start(scene, &checkpoint.section_through(&tap.endpoint())).await;
    // The index of the layers is read before the faults begin.
    let mut blocks = served.client().list_blocks("mixtral", None);
    while let Some(block) = blocks.next().await {
        block.expect("the index can be read");
    }
    (served, tap)
}

/// The code of an error. A status of the daemon's names the keys that failed.
fn found(error: &Error) -> Code {
    match error {
        Error::Refused(refusal) => {
            let code = Code::from_i32(refusal.code);
            let keys = refusal.metadata.get("keys").is_some_and(|keys| keys.contains("base/0/"));
            assert!(keys || code == Code::DeadlineExceeded, "{refusal:?}");
            code
        }
        Error::Deadline { .. } => Code::DeadlineExceeded,
        other => unreachable!("the daemon answers with a status: {other}"),
    }
}

/// Fetches a layer; how many blocks came, each of them exact, and the error
/// that ended the stream.
async fn fetch(
    client: &Client,
    original: &Path,
    layer: u32,
    deadline: Option<Duration>,
) -> (usize, Option<Error>) {
    let reference = Reference::read(original);
    let client = client.with_deadline(deadline);
    let tier =
        client.describe_model("mixtral").await.expect("it is served").summary.tiers.remove(0);
    let tier: tpad_manifest::TierId = tier.parse().expect("an id");
    let key = |expert| (ExpertKey { tier: tier.clone(), group: 0, expert }, layer);
    let request = FetchExperts {
        model: "mixtral".to_owned(),
        blocks: (0..8).map(key).collect(),
        ..FetchExperts::default()
    };
    let mut good = 0;
    let mut stream = match client.fetch_experts(request).await {
        Ok(stream) => stream,
        Err(error) => return (0, Some(error)),
    };
    while let Some(block) = stream.next().await {
        match block {
            Ok(block) => {
                let source = block.source.expect("an expert has a source").expert;
                exact(&block, &reference.experts[&(layer, source)]);
                good += 1;
            }
            Err(error) => return (good, Some(error)),
        }
    }
    (good, None)
}

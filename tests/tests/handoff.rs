//! Blocks handed over in place, by a real daemon to real workers.

mod direct;
mod ends;
mod hostile;
mod kills;
mod on_device;
mod sealed;
mod slabs;
mod stage;

use std::collections::BTreeMap;
use std::time::Duration;

use tpad_client::{AcquireOptions, FetchExperts, Handoff, Kind};
use tpad_manifest::BlockKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::compare::collect;
use tpad_tests::daemon::Served;
use tpad_tests::reference::Reference;
use tpad_tests::scene::play;

use self::stage::{Stage, keys};

#[test]
fn every_expert_of_two_checkpoints_is_read_in_place_to_the_byte() {
    play(async |scene| {
        for name in ["mixtral", "deepseek_v3"] {
            let (store, directory) = (Store::Directory, scene.directory());
            let checkpoint = Checkpoint::import(&fixture(name), store, directory, None).await;
            let socket = directory.join(format!("{name}.sock"));
            let config = format!("{}[handoff]\nsocket = {socket:?}\n", checkpoint.section());
            let served = Served::start(scene, &config).await;
            let all = FetchExperts {
                model: name.to_owned(),
                tiers: vec!["base".to_owned()],
                ..FetchExperts::default()
            };
            let fetched = collect(served.client().fetch_experts(all).await).await;
            let reference = Reference::read(&fixture(name));
            let handoff = Handoff::connect_to(&socket).await.expect("this user may");
            let mut experts: BTreeMap<BlockKey, u64> = BTreeMap::new();
            let keys: Vec<BlockKey> = fetched.keys().cloned().collect();
            for keys in keys.chunks(handoff.daemon().keys) {
                let acquired = handoff.acquire(name, keys, AcquireOptions::default()).await;
                for (key, block) in keys.iter().zip(acquired.expect("within bounds").blocks) {
                    let block = block.expect("it is leased");
                    assert_eq!((block.key(), *block.id()), (key, fetched[key].id));
                    assert!(*block == fetched[key].image, "{key} differs from what gRPC brings");
                    let BlockKey::Expert { layer, .. } = key else { unreachable!("{key}") };
                    let source = block.source().expect("an expert has one").expert;
                    let originals = &reference.experts[&(*layer, source)];
                    assert_eq!(block.tensors().len(), originals.len(), "{key}");
                    for tensor in block.tensors() {
                        let original = &originals[tensor.name];
                        assert_eq!(tensor.shape, original.shape, "{} of {key}", tensor.name);
                        assert_eq!(tensor.dtype.to_string(), original.dtype);
                        assert!(tensor.bytes == original.bytes, "{} of {key}", tensor.name);
                        assert_eq!(tensor.bytes.as_ptr() as usize % 256, 0);
                    }
                    experts.insert(key.clone(), block.len() as u64);
                }
            }
            assert_eq!(experts.len(), reference.experts.len(), "every expert of {name}");
            served.stop().await;
        }
    });
}

#[test]
fn a_worker_holds_a_quarter_of_a_gibibyte_without_memory_of_its_own() {
    play(async |scene| {
        // 16 experts of 16 MiB.
        let stage = Stage::synthetic(scene, &["--hidden", "1024", "--intermediate", "2736"]).await;
        let (worker, held) = stage.hold(&[]).await;
        assert!(held.bytes >= 256 << 20, "{held:?}");
        assert!(held.right && held.mapped, "{held:?}");
        assert!(held.private < 1 << 20, "{held:?}");
        let leases = stage.leases().await;
        assert_eq!(leases["workers"][0]["pid"], worker.id());
        assert_eq!(leases["workers"][0]["leases"], 16);
        assert_eq!(leases["workers"][0]["name"], "hold_blocks");
        let mut listed = tpactl();
        listed.args(["--addr", &stage.daemon.address(), "leases"]);
        let table = said(&listed.output().expect("tpactl runs"));
        assert!(
            table.contains(&worker.id().to_string()) && table.contains("hold_blocks"),
            "{table}"
        );
        let json = listed.arg("--json").output().expect("tpactl runs");
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
        for field in ["bytes", "most_bytes"] {
            assert_eq!(json[field], leases[field]);
        }
        assert_eq!(json["workers"][0]["pid"], worker.id());
        drop(worker);
        stage.free().await;
    });
}

#[test]
fn what_leases_may_hold_and_for_how_long_is_told_by_key_and_remedy() {
    play(async |scene| {
        let bounds = "lease_bytes = \"192KiB\"\nworker_lease_bytes = \"64KiB\"\n";
        let stage = Stage::fixture(scene, bounds).await;
        let keys = keys(&stage.daemon.address()).await;
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let full = handoff.acquire("mixtral", &keys, AcquireOptions::default()).await;
        let full = full.expect_err("more than 64 KiB");
        assert_eq!(full.kind(), Kind::ResourceExhausted, "{full}");
        assert!(full.to_string().contains("handoff.worker_lease_bytes"), "{full}");
        let other = AcquireOptions { generation: Some(77), ..AcquireOptions::default() };
        let other = handoff.acquire("mixtral", &keys[..1], other).await.expect_err("no such one");
        assert_eq!(other.kind(), Kind::FailedPrecondition, "{other}");
        let unknown = handoff.acquire("other", &keys[..1], AcquireOptions::default()).await;
        assert_eq!(unknown.expect_err("no such model").kind(), Kind::NotFound);
        let one = handoff.acquire("mixtral", &keys[..1], AcquireOptions::default()).await;
        let one = one.expect("within bounds").blocks.remove(0).expect("it is leased");
        let none = AcquireOptions { timeout: Duration::ZERO, ..AcquireOptions::default() };
        let again = handoff.acquire("mixtral", &keys[..1], none).await.expect("within bounds");
        assert_eq!(again.blocks[0].as_ref().expect("it is there").as_ptr(), one.as_ptr());
        drop((one, again, handoff));
        stage.free().await;
    });
}

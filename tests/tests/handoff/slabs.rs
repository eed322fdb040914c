//! Memory goes from one use to another although workers have it mapped.

use std::time::Duration;

use tpad_client::{AcquireOptions, Client, FetchExperts, Handoff};
use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1::{self as wire, daemon_message, outcome, worker_message};
use tpad_tests::scene::play;
use tpad_tests::worker::Worker;

use super::stage::{Stage, keys};

/// Models whose blocks have other sizes than mixtral's, and are more than fit beside them.
const OTHERS: [&str; 3] = ["gpt_oss", "qwen3_moe", "deepseek_v3"];

#[test]
fn slabs_that_no_lease_names_go_back_when_others_need_their_memory() {
    play(async |scene| {
        let stage = Stage::crowded(scene, &OTHERS).await;
        let client = Client::connect(&stage.daemon.address()).await.expect("the daemon answers");
        let keys = keys(&stage.daemon.address()).await;
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        for _ in 0..5 {
            hold(&handoff, &keys).await;
            for model in OTHERS {
                fetch(&client, model).await.expect("the worker gives its slabs up");
            }
        }
        drop(handoff);
        stage.free().await;
    });
}

#[test]
fn a_worker_that_keeps_slabs_which_are_wanted_is_refused() {
    play(async |scene| {
        let stage = Stage::crowded(scene, &OTHERS).await;
        let client = Client::connect(&stage.daemon.address()).await.expect("the daemon answers");
        let keys = keys(&stage.daemon.address()).await;
        let mut worker = Worker::welcome(&stage.socket()).await;
        assert!(worker.acquire(1, "mixtral", &keys).await);
        let Some(daemon_message::Message::Acquired(acquired)) = worker.hear().await else {
            unreachable!("no answer");
        };
        let lease = |it: &wire::Outcome| match &it.outcome {
            Some(outcome::Outcome::Lease(lease)) => lease.lease,
            other => unreachable!("no lease: {other:?}"),
        };
        let leases = acquired.outcomes.iter().map(lease).collect();
        assert!(worker.say(worker_message::Message::Release(wire::Release { leases })).await);
        let soon = client.with_deadline(Some(Duration::from_secs(15)));
        let others = tokio::spawn(async move {
            for model in OTHERS {
                // Whatever has to wait for these slabs fails.
                drop(fetch(&soon, model).await);
            }
        });
        let failure = worker.refusal().await;
        assert!(failure.message.contains("Forgotten"), "{}", failure.message);
        drop(worker);
        others.await.expect("each ends at its deadline");
        for model in OTHERS {
            fetch(&client, model).await.expect("the slabs are the daemon's alone");
        }
        stage.free().await;
    });
}

/// Holds everything at once and lets go of it.
async fn hold(handoff: &Handoff, keys: &[BlockKey]) {
    let held = handoff.acquire("mixtral", keys, AcquireOptions::default()).await;
    for block in held.expect("within bounds").blocks {
        let block = block.expect("it is leased");
        assert_eq!(blake3::hash(&block).as_bytes(), block.id().as_bytes());
    }
}

/// Reads every expert of a model.
pub(super) async fn fetch(client: &Client, model: &str) -> Result<(), tpad_client::Error> {
    let tiers = vec!["base".to_owned()];
    let request = FetchExperts { model: model.to_owned(), tiers, ..FetchExperts::default() };
    let mut blocks = client.fetch_experts(request).await?;
    while let Some(block) = blocks.next().await {
        block?;
    }
    Ok(())
}

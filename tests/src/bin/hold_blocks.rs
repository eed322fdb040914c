//! A worker: acquires every expert of a model through the handoff socket, reads all
//! of it, says so, and holds it until its standard input ends.
//!
//! Prints a line of JSON: how many blocks and bytes it holds, whether each image has
//! the digest that names it, whether all of them lie in mapped slabs, and how much
//! private memory came with them.
//!
//! usage: `hold_blocks ADDRESS MODEL [unread] [direct]`; `direct` lets go of all leases and
//! holds the blocks without a message.

#![expect(clippy::print_stdout, reason = "it tells who started it that it holds")]

use std::io::Read as _;
use std::ops::Range;

use serde_json::json;
use tpad_client::{AcquireOptions, Handoff, HeldBlock};
use tpad_tests::worker::{experts, slabs};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, model, rest @ ..] = &arguments[..] else {
        unreachable!("usage: hold_blocks ADDRESS MODEL [unread] [direct]");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    // A current-thread runtime turns only while it is waited for: standard input is read
    // on another thread.
    runtime.block_on(async {
        let is = |option: &str| rest.iter().any(|given| given == option);
        let held = hold(address, model, !is("unread"), is("direct")).await;
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        drop(ended.await);
        // By a kill at the latest.
        drop(held);
    });
}

async fn hold(address: &str, model: &str, read: bool, direct: bool) -> (Handoff, Vec<HeldBlock>) {
    let keys = experts(address, model).await;
    let handoff = Handoff::connect(address).await.expect("the socket is beside the other");
    // Once before it counts: code takes memory when it first runs.
    let first = handoff.acquire(model, &keys[..1], AcquireOptions::default()).await;
    let first = first.expect("within the bounds").blocks.remove(0).expect("it is leased");
    assert!(private_bytes() > 0 && blake3::hash(&first).as_bytes() == first.id().as_bytes());
    drop(first);
    let mut held = Vec::with_capacity(keys.len());
    let before = private_bytes();
    for keys in keys.chunks(handoff.daemon().keys) {
        let acquired = handoff.acquire(model, keys, AcquireOptions::default()).await;
        for block in acquired.expect("within the bounds").blocks {
            held.push(block.expect("it is leased"));
        }
    }
    if direct {
        held.clear();
        held.extend(keys.iter().map(|key| handoff.hold(model, key).expect("it is resident")));
    }
    let right =
        !read || held.iter().all(|block| blake3::hash(block).as_bytes() == block.id().as_bytes());
    let after = private_bytes();
    let slabs = slabs();
    let mapped = |block: &HeldBlock| {
        let images = block.as_ptr() as usize..block.as_ptr() as usize + block.len();
        let inside = |slab: &Range<usize>| slab.start <= images.start && images.end <= slab.end;
        slabs.iter().any(inside)
    };
    println!(
        "{}",
        json!({
            "blocks": held.len(),
            "bytes": held.iter().map(|block| block.len()).sum::<usize>(),
            "right": right,
            "mapped": held.iter().all(mapped),
            "private": after.saturating_sub(before),
            "epoch": handoff.daemon().epoch,
        })
    );
    (handoff, held)
}

/// Memory that is this process's alone.
fn private_bytes() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("the kernel counts");
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.sum::<u64>() << 10
}

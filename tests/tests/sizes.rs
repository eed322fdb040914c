//! Sizes and places that the fixtures do not reach.

use std::path::PathBuf;

use tpad_client::{FetchDense, FetchExperts};
use tpad_tests::checkpoint::{Checkpoint, Store};
use tpad_tests::compare::{collect, exact};
use tpad_tests::daemon::Served;
use tpad_tests::reference::{Exact, Tensors};
use tpad_tests::scene::{Scene, play};
use tpad_tests::shards::{self, Planned};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a block of these tensors must hold.
fn expected(tensors: &[Planned]) -> Tensors {
    let exact = |tensor: &Planned| Exact {
        dtype: tensor.dtype.to_owned(),
        shape: tensor.shape.clone(),
        bytes: shards::content(&tensor.name, tensor.len()),
    };
    tensors.iter().map(|tensor| (tensor.name.clone(), exact(tensor))).collect()
}

/// One expert of one layer, as Qwen names it.
fn expert(n: u32, hidden: u64, inner: u64) -> [Planned; 3] {
    let name = |part: &str| format!("model.layers.0.mlp.experts.{n}.{part}_proj.weight");
    [
        Planned::new(name("gate"), "BF16", &[inner, hidden]),
        Planned::new(name("up"), "BF16", &[inner, hidden]),
        Planned::new(name("down"), "BF16", &[hidden, inner]),
    ]
}

fn router(experts: u64, hidden: u64) -> Planned {
    Planned::new("model.layers.0.mlp.gate.weight", "BF16", &[experts, hidden])
}

fn directory(scene: &Scene) -> PathBuf {
    let directory = scene.directory().join("model");
    std::fs::create_dir(&directory).expect("a new directory");
    directory
}

async fn serve(scene: &Scene, checkpoint: &Checkpoint, capacity: &str) -> Served {
    let config = format!("{}[levels.dram]\ncapacity = \"{capacity}\"\n", checkpoint.section());
    Served::start(scene, &config).await
}

/// Fetches both experts of layer 0 and compares them.
async fn check_experts(served: &Served, experts: &[[Planned; 3]; 2]) {
    let tier = served.client().describe_model("model").await.expect("it is served");
    let tiers = tier.summary.tiers;
    let request = FetchExperts { model: "model".to_owned(), tiers, ..FetchExperts::default() };
    let blocks = collect(served.client().fetch_experts(request).await).await;
    assert_eq!(blocks.len(), experts.len());
    for block in blocks.values() {
        let source = block.source.expect("an expert has a source").expert;
        exact(block, &expected(&experts[source as usize]));
    }
}

#[test]
fn blocks_of_336_mib_come_whole() {
    play(async |scene| {
        let directory = directory(scene);
        let (hidden, inner) = (7168, 8192);
        let experts = [expert(0, hidden, inner), expert(1, hidden, inner)];
        let bytes: u64 = experts[0].iter().map(Planned::len).sum();
        assert_eq!(bytes, 336 * MIB);
        shards::write_config(&directory, 2);
        shards::write(&directory.join("a.safetensors"), &experts[0]);
        let rest = [experts[1].as_slice(), &[router(2, hidden)]].concat();
        shards::write(&directory.join("b.safetensors"), &rest);
        let checkpoint = Checkpoint::import_in_place(&directory, None);
        let served = serve(scene, &checkpoint, "1GiB").await;
        check_experts(&served, &experts).await;
        served.stop().await;
    });
}

/// Around every size at which something is cut: alignment, pages, messages,
/// parts of a read.
fn edges() -> Vec<u64> {
    let mut sizes = vec![1, 2, 3];
    for edge in [256, 4 * KIB, 64 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB] {
        sizes.extend([edge - 1, edge, edge + 1]);
    }
    sizes
}

#[test]
fn sizes_around_every_edge_come_exact_at_odd_offsets() {
    play(async |scene| {
        let directory = directory(scene);
        let dense: Vec<Planned> =
            edges().iter().map(|size| Planned::new(format!("x{size}"), "U8", &[*size])).collect();
        let experts = [expert(0, 32, 16), expert(1, 32, 16)];
        shards::write_config(&directory, 2);
        // Dense tensors of odd sizes first: what follows starts anywhere.
        let all = [&dense[..], &experts.concat(), &[router(2, 32)]].concat();
        shards::write(&directory.join("model.safetensors"), &all);
        let checkpoint = Checkpoint::import(&directory, Store::S3, scene.directory(), None).await;
        let served = serve(scene, &checkpoint, "128MiB").await;
        check_experts(&served, &experts).await;
        let request = FetchDense { model: "model".to_owned(), names: Vec::new() };
        let blocks = collect(served.client().fetch_dense(request).await).await;
        assert_eq!(blocks.len(), dense.len());
        for tensor in dense {
            let key = tpad_manifest::BlockKey::Dense { name: tensor.name.as_str().into() };
            exact(&blocks[&key], &expected(&[tensor]));
        }
        served.stop().await;
    });
}

#[test]
fn a_block_over_three_shards_comes_whole() {
    play(async |scene| {
        let directory = directory(scene);
        let experts = [expert(0, 96, 50), expert(1, 96, 50)];
        shards::write_config(&directory, 2);
        for (n, shard) in ["a", "b", "c"].iter().enumerate() {
            let odd = Planned::new(format!("odd_{shard}"), "U8", &[1 + 2 * n as u64]);
            let mut tensors = vec![odd, experts[0][n].clone(), experts[1][n].clone()];
            if n == 2 {
                tensors.push(router(2, 96));
            }
            shards::write(&directory.join(format!("{shard}.safetensors")), &tensors);
        }
        for store in [Store::Directory, Store::S3] {
            let copies = scene.directory().join(format!("{store:?}"));
            std::fs::create_dir(&copies).expect("a new directory");
            let checkpoint = Checkpoint::import(&directory, store, &copies, None).await;
            let served = serve(scene, &checkpoint, "16MiB").await;
            check_experts(&served, &experts).await;
            served.stop().await;
        }
    });
}

#[test]
fn offsets_beyond_4_gib_are_read_where_they_are() {
    play(async |scene| {
        let directory = directory(scene);
        let experts = [expert(0, 64, 32), expert(1, 64, 32)];
        shards::write_config(&directory, 2);
        // 4.2 GiB of holes, the experts behind them.
        let mut tensors: Vec<Planned> =
            (0..7).map(|n| Planned::hole(format!("hole_{n}"), 600 * MIB + n)).collect();
        tensors.extend(experts.concat());
        tensors.push(router(2, 64));
        let before: u64 = tensors.iter().take(7).map(Planned::len).sum();
        assert!(before > 1 << 32, "{before}");
        shards::write(&directory.join("model.safetensors"), &tensors);
        let checkpoint = Checkpoint::import_in_place(&directory, None);
        let served = serve(scene, &checkpoint, "64MiB").await;
        check_experts(&served, &experts).await;
        served.stop().await;
    });
}

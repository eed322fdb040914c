//! The client's router on what a real daemon says: scoring, masks, k values and
//! columns as an import found them.

use serde_json::Value;
use tpad_client::{Client, GetMask, Router, TierLogits};
use tpad_manifest::{Manifest, TierSet};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::daemon::Served;
use tpad_tests::scene::play;
use tpad_tests::tools;

#[path = "../../crates/tpad-client/examples/route/token.rs"]
mod token;

const FAMILIES: [&str; 5] = ["deepseek_v3", "deepseek_v3_fp8", "gpt_oss", "mixtral", "qwen3_moe"];

/// Each `f32` is the eight hexadecimal digits of its bits.
fn floats(text: &Value) -> Vec<f32> {
    let digits = text.as_str().expect("digits").as_bytes().chunks(8);
    let bits = digits.map(|digits| std::str::from_utf8(digits).expect("ASCII"));
    bits.map(|bits| f32::from_bits(u32::from_str_radix(bits, 16).expect("digits"))).collect()
}

/// Routes the vectors of a fixture's own routers; answers how many there are.
async fn agrees(client: &Client, model: &str) -> usize {
    let description = client.describe_model(model).await.expect("it is served");
    let manifest = Manifest::parse(description.manifest_json.as_bytes()).expect("it was served");
    let router = Router::new(manifest.manifest.scoring).expect("it can be computed");
    let request = GetMask::of(model, TierSet::Default);
    let mask = client.routing_mask(request).await.expect("it has tiers").mask.expect("its content");
    assert_eq!(mask.tiers.len(), 1, "{model} has one tier unless a plan cuts it");
    let tier = &mask.tiers[0];

    let file = format!("crates/tpad-client/tests/vectors/fixture_{model}.json");
    let text = std::fs::read(tools::workspace().join(file)).expect("the file is there");
    let cases: Vec<Value> = serde_json::from_slice(&text).expect("it is JSON");
    let mut routed = 0;
    for case in &cases {
        let layer = case["layer"].as_u64().expect("a layer").try_into().expect("small");
        let gather = |whole: &Value| {
            TierLogits::gather(tier, layer, &floats(whole)).expect("the mask has sources")
        };
        let bias = case.get("correction_bias").map(|tiers| gather(&tiers[0]));
        for token in case["tokens"].as_array().expect("a list") {
            let logits = gather(&token["tiers"][0]["logits"]);
            let input = TierLogits { correction_bias: bias.as_deref(), ..TierLogits::of(&logits) };
            let chosen = router.route(&mask, &[input]).expect("everything is allowed");
            let keys: Vec<Value> =
                chosen.iter().map(|one| Value::from(vec![0, one.group, one.expert])).collect();
            assert_eq!(Value::from(keys), token["experts"], "{model} {layer} {}", case["source"]);
            let bits: Vec<u32> = chosen.iter().map(|one| one.weight.to_bits()).collect();
            let expected: Vec<u32> =
                floats(&token["weights"]).into_iter().map(f32::to_bits).collect();
            assert_eq!(bits, expected, "{model} {layer}");
            routed += 1;
        }
    }
    routed
}

#[test]
fn what_a_daemon_says_of_every_fixture_routes_as_transformers_does_bit_for_bit() {
    play(async |scene| {
        let mut config = String::new();
        for name in FAMILIES {
            let directory = scene.directory();
            let checkpoint =
                Checkpoint::import(&fixture(name), Store::Directory, directory, None).await;
            config += &checkpoint.section();
        }
        let served = Served::start(scene, &config).await;
        for name in FAMILIES {
            let routed = agrees(served.client(), name).await;
            assert!(routed >= 100, "{name}: {routed} tokens");
        }
        served.stop().await;
    });
}

#[test]
fn the_clients_example_routes_a_token_and_fetches_its_experts() {
    play(async |scene| {
        let mut config = String::new();
        for name in FAMILIES {
            let directory = scene.directory();
            let checkpoint =
                Checkpoint::import(&fixture(name), Store::Directory, directory, None).await;
            config += &checkpoint.section();
        }
        let served = Served::start(scene, &config).await;
        for name in FAMILIES {
            let description = served.client().describe_model(name).await.expect("it is served");
            for layer in description.layers {
                let hidden = |width: usize| (0..width).map(|n| (n as f32).sin()).collect();
                let routed = token::route(served.client(), name, layer, hidden).await;
                let routed = routed.expect("a token is routed");
                assert_eq!(routed.len(), 2, "{name} takes two experts a token");
                assert!(routed.iter().all(|(_, weight, bytes)| *weight > 0.0 && *bytes > 1000));
                assert!(routed[0].0 != routed[1].0, "{routed:?}");
            }
        }
        served.stop().await;
    });
}

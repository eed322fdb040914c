//! The five checkpoints: every byte that a daemon serves is the original's.

use tpad_client::{FetchExperts, Kind};
use tpad_manifest::ExpertKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare::{self, Compared, Tier};
use tpad_tests::daemon::Served;
use tpad_tests::scene::{Scene, play};

/// A checkpoint and its shape.
struct Fixture {
    name: &'static str,
    /// The router's groups, which the default mapping keeps.
    groups: u32,
    compared: Compared,
}

const EXPERTS: u32 = 8;

const FIXTURES: [Fixture; 5] = [
    Fixture::new("mixtral", 1, 2, 15),
    Fixture::new("qwen3_moe", 1, 2, 19),
    Fixture::new("deepseek_v3", 2, 2, 39),
    Fixture::new("deepseek_v3_fp8", 2, 2, 63),
    Fixture::new("gpt_oss", 1, 2, 25),
];

impl Fixture {
    const fn new(name: &'static str, groups: u32, layers: usize, dense: usize) -> Self {
        Self { name, groups, compared: Compared { experts: 8 * layers, routers: layers, dense } }
    }

    /// The one tier that an import without a plan makes.
    fn default_tier(&self, id: &'static str) -> Tier {
        let experts: Vec<u32> = (0..EXPERTS).collect();
        let groups = experts.chunks((EXPERTS / self.groups) as usize).map(<[u32]>::to_vec);
        Tier { id, groups: groups.collect() }
    }
}

#[test]
fn every_byte_is_exact_from_a_directory() {
    play(async |scene| default_mapping(scene, Store::Directory).await);
}

#[test]
fn every_byte_is_exact_from_s3() {
    play(async |scene| default_mapping(scene, Store::S3).await);
}

#[test]
fn every_key_of_a_plan_finds_its_source_expert_in_a_directory() {
    play(async |scene| planned_mapping(scene, Store::Directory).await);
}

#[test]
fn every_key_of_a_plan_finds_its_source_expert_in_s3() {
    play(async |scene| planned_mapping(scene, Store::S3).await);
}

/// Serves all five from one daemon.
async fn serve(scene: &Scene, store: Store, plan: Option<&str>) -> Served {
    let mut config = String::new();
    for Fixture { name, .. } in &FIXTURES {
        let original = fixture(name);
        let checkpoint = Checkpoint::import(&original, store, scene.directory(), plan).await;
        config += &checkpoint.section();
    }
    Served::start(scene, &format!("{config}[levels.dram]\ncapacity = \"64MiB\"\n")).await
}

async fn default_mapping(scene: &Scene, store: Store) {
    let served = serve(scene, store, None).await;
    for fixture in &FIXTURES {
        let description = served.client().describe_model(fixture.name).await.expect("it is served");
        let [tier] = &description.tier_details[..] else {
            unreachable!("one tier is the default: {:?}", description.tier_details)
        };
        let tier = fixture.default_tier(tier.id.clone().leak());
        check(&served, fixture, &[tier]).await;
    }
    served.stop().await;
}

async fn check(served: &Served, fixture: &Fixture, tiers: &[Tier]) {
    let original = tpad_tests::checkpoint::fixture(fixture.name);
    let compared = compare::whole_model(served.client(), fixture.name, &original, tiers).await;
    let routers = fixture.compared.routers * tiers.len();
    assert_eq!(compared, Compared { routers, ..fixture.compared }, "{}", fixture.name);
    let files = compare::files(served.client(), fixture.name, &original).await;
    assert!(files > 0, "{}", fixture.name);
}

/// Three tiers with integer and string ids and unequal groups, the experts out
/// of order.
const PLAN: &str = r#"
default_tier_set = [1]

[[tiers]]
id = 1
placement = "dram"
k_expert = 1
[[tiers.groups]]
experts = "6, 2"
[[tiers.groups]]
experts = "0"

[[tiers]]
id = "tier_2b"
k_expert = 1
[[tiers.groups]]
experts = "7"

[[tiers]]
id = 30
k_expert = 1
[[tiers.groups]]
experts = "1, 3, 5"
[[tiers.groups]]
experts = "4"
"#;

fn planned_tiers() -> Vec<Tier> {
    vec![
        Tier { id: "1", groups: vec![vec![6, 2], vec![0]] },
        Tier { id: "tier_2b", groups: vec![vec![7]] },
        Tier { id: "30", groups: vec![vec![1, 3, 5], vec![4]] },
    ]
}

async fn planned_mapping(scene: &Scene, store: Store) {
    let served = serve(scene, store, Some(PLAN)).await;
    for fixture in &FIXTURES {
        check(&served, fixture, &planned_tiers()).await;
        no_more_keys(&served, fixture.name).await;
    }
    served.stop().await;
}

/// One past each end of a tier, a group and an expert list is nobody's.
async fn no_more_keys(served: &Served, model: &str) {
    for (tier, group, expert) in [("1", 1, 1), ("1", 2, 0), ("tier_2b", 0, 1), ("2", 0, 0)] {
        let tier = tier.parse().expect("an id");
        let request = FetchExperts {
            model: model.to_owned(),
            keys: vec![ExpertKey { tier, group, expert }],
            ..FetchExperts::default()
        };
        let refused = served.client().fetch_experts(request).await;
        let error = refused.expect_err("there is no such key");
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }
}

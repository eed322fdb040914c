//! The router against the vectors beside: what transformers' own routers chose
//! (`fixture_*`, `shape_*`), and what the reference in `docs/routing.md` did
//! where no family has an answer (`policy`).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tpad_client::{Choice, RouteError, Router, TierLogits, Ties};
use tpad_manifest::{ExpertBits, RoutingMask, Scoring, ScoringFunction, SetOrigin, TierMask};

#[derive(Deserialize)]
struct Case {
    source: String,
    scoring: Scoring,
    mask: Mask,
    correction_bias: Option<Vec<String>>,
    /// How many `f32` may lie between weights, where the family's are not exact.
    #[serde(default)]
    ulps: u32,
    tokens: Vec<Token>,
}

#[derive(Deserialize)]
struct Mask {
    k_tier: u32,
    tiers: Vec<Tier>,
}

#[derive(Deserialize)]
struct Tier {
    tier: String,
    k_group: u32,
    k_expert: u32,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    experts: u32,
    bits: String,
}

#[derive(Deserialize)]
struct Token {
    tiers: Vec<Inputs>,
    seed: Option<String>,
    experts: Option<Vec<(usize, u32, u32)>>,
    weights: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Inputs {
    logits: String,
    groups: Option<String>,
    tier: Option<String>,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn cases(file: &Path) -> Vec<Case> {
    let text = std::fs::read(file).expect("the file is there");
    serde_json::from_slice(&text).expect("it is as its README says")
}

/// Each `f32` is the eight hexadecimal digits of its bits.
fn floats(text: &str) -> Vec<f32> {
    let digits = text.as_bytes().chunks(8);
    let bits = digits.map(|digits| std::str::from_utf8(digits).expect("ASCII"));
    bits.map(|bits| f32::from_bits(u32::from_str_radix(bits, 16).expect("digits"))).collect()
}

fn bits(group: &Group) -> ExpertBits {
    let pairs =
        group.bits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    let bytes: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).expect("digits")).collect();
    ExpertBits::from_bytes(group.experts, bytes.into()).expect("they fit")
}

fn mask(of: &Mask) -> RoutingMask {
    let tiers = of.tiers.iter().map(|tier| TierMask {
        tier: tier.tier.clone(),
        k_group: tier.k_group,
        k_expert: tier.k_expert,
        groups: tier.groups.iter().map(bits).collect(),
        indexed: true,
        sources: Vec::new(),
    });
    RoutingMask {
        revision: 1,
        origin: SetOrigin::Default,
        tiers: tiers.collect(),
        k_tier: of.k_tier,
        masked: Vec::new(),
        resident: None,
    }
}

fn route(case: &Case, token: &Token) -> Result<Vec<Choice>, RouteError> {
    let logits: Vec<Vec<f32>> = token.tiers.iter().map(|tier| floats(&tier.logits)).collect();
    let groups: Vec<Option<Vec<f32>>> =
        token.tiers.iter().map(|tier| tier.groups.as_deref().map(floats)).collect();
    let biases: Option<Vec<Vec<f32>>> =
        case.correction_bias.as_ref().map(|tiers| tiers.iter().map(|tier| floats(tier)).collect());
    let inputs = token.tiers.iter().enumerate().map(|(at, tier)| TierLogits {
        experts: &logits[at],
        correction_bias: biases.as_ref().map(|biases| &*biases[at]),
        groups: groups[at].as_deref(),
        tier: tier.tier.as_deref().map(|tier| floats(tier)[0]),
    });
    let seed = token.seed.as_deref().map(|seed| u64::from_str_radix(seed, 16).expect("digits"));
    let router = Router::new(case.scoring).expect("it can be computed");
    let router = router.with_ties(seed.map_or(Ties::First, Ties::Seeded));
    router.route(&mask(&case.mask), &inputs.collect::<Vec<_>>())
}

/// Checks every token of a file, and says how many there are.
fn check(file: &Path) -> (usize, usize) {
    let (mut chosen, mut refused) = (0, 0);
    for (n, case) in cases(file).iter().enumerate() {
        let exact = case.scoring.function != ScoringFunction::SqrtSoftplus;
        assert!(case.ulps <= if exact { 0 } else { 4 }, "{}", file.display());
        for (at, token) in case.tokens.iter().enumerate() {
            let place = format!("{} case {n} token {at} ({})", file.display(), case.source);
            let got = route(case, token);
            if let Some(error) = &token.error {
                let name = match &got {
                    Err(RouteError::NotFinite { .. }) => "not_finite",
                    Err(RouteError::NothingAllowed) => "nothing_allowed",
                    _ => "another",
                };
                assert_eq!(name, error, "{place}: {got:?}");
                refused += 1;
                continue;
            }
            let got = got.expect(&place);
            let keys: Vec<_> = got.iter().map(|one| (one.tier, one.group, one.expert)).collect();
            assert_eq!(Some(keys), token.experts, "{place}");
            let weights = floats(token.weights.as_ref().expect("there are weights"));
            assert_eq!(weights.len(), got.len(), "{place}");
            for (one, weight) in got.iter().zip(weights) {
                let apart = one.weight.to_bits().abs_diff(weight.to_bits());
                assert!(apart <= case.ulps, "{place}: {one:?}, not {weight}: {apart} ulps");
            }
            chosen += 1;
        }
    }
    (chosen, refused)
}

fn files(prefix: &str) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(directory()).expect("it is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut named: Vec<(String, PathBuf)> = paths
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_suffix(".json")?.strip_prefix(prefix)?;
            Some((name.to_owned(), path.clone()))
        })
        .collect();
    named.sort();
    named
}

#[test]
fn one_tier_is_the_flat_router_of_every_fixture_family_bit_for_bit() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let directories = std::fs::read_dir(fixtures).expect("they are there");
    let mut families: Vec<String> = directories
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned())
        .collect();
    families.sort();
    let vectors = files("fixture_");
    let names: Vec<String> = vectors.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, families, "every fixture has vectors");
    for (name, file) in vectors {
        let (chosen, refused) = check(&file);
        assert!(chosen >= 100 && refused == 0, "{name}: {chosen} tokens");
    }
}

#[test]
fn the_shapes_of_released_models_route_as_in_transformers_bit_for_bit() {
    let vectors = files("shape_");
    assert_eq!(vectors.len(), 15);
    for (name, file) in vectors {
        let (chosen, refused) = check(&file);
        assert!(chosen >= 12 && refused == 0, "{name}: {chosen} tokens");
    }
}

#[test]
fn tiers_groups_heads_ties_and_errors_are_as_the_reference_has_them() {
    let (chosen, refused) = check(&directory().join("policy.json"));
    assert!(chosen >= 300 && refused >= 10, "{chosen} chosen, {refused} refused");
}

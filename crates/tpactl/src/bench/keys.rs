//! Which experts a benchmark asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Zipf};
use tpad_client::Client;
use tpad_manifest::{BlockKey, ExpertKey};

use crate::failure::{Exit, Failure};

/// An expert at a layer.
pub(super) type Expert = (ExpertKey, u32);

/// How experts are chosen.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pattern {
    /// Each as often as any other.
    Uniform,
    /// The n-th of a shuffled list with a probability as 1 / n to this power.
    Zipf(f64),
    /// As this file says.
    Trace(PathBuf),
}

impl Pattern {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("uniform", "") => Ok(Self::Uniform),
            ("zipf", "") => Ok(Self::Zipf(0.99)),
            ("zipf", exponent) => match exponent.parse() {
                Ok(exponent) if (0.0..=10.0).contains(&exponent) => Ok(Self::Zipf(exponent)),
                _ => Err("the exponent is a number from 0 to 10, as in zipf:1.2".to_owned()),
            },
            _ => Ok(Self::Trace(text.into())),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform keys"),
            Self::Zipf(exponent) => write!(f, "zipf keys ({exponent})"),
            Self::Trace(path) => write!(f, "trace {}", path.display()),
        }
    }
}

/// What requests are made of.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) model: String,
    pub(super) experts: Vec<Expert>,
    choice: Choice,
}

#[derive(Clone, Debug)]
enum Choice {
    Uniform,
    /// Over a list that hides which experts lie beside each other.
    Zipf(Zipf<f64>, Vec<usize>),
    /// One request each, in order and again from the start.
    Events(Vec<Vec<Expert>>),
}

impl Keys {
    /// Lists the model's experts and reads the pattern's file.
    pub(super) async fn of(
        client: &Client,
        model: &str,
        tiers: &[String],
        pattern: &Pattern,
    ) -> Result<Self, Failure> {
        let mut experts = Vec::new();
        let mut sources = BTreeMap::new();
        let whole = [None];
        let tiers: Vec<Option<&str>> = match tiers {
            [] => whole.to_vec(),
            tiers => tiers.iter().map(|tier| Some(tier.as_str())).collect(),
        };
        for tier in tiers {
            let mut pages = client.list_blocks(model, tier);
            while let Some(block) = pages.next().await {
                let block = block?;
                let BlockKey::Expert { key, layer } = block.key else { continue };
                if let Some(source) = block.source {
                    sources.insert((layer, source.expert), key.clone());
                }
                experts.push((key, layer));
            }
        }
        if experts.is_empty() {
            return Err(Failure::new(Exit::NotFound, format!("model {model} serves no experts")));
        }
        let choice = match pattern {
            Pattern::Uniform => Choice::Uniform,
            Pattern::Zipf(exponent) => {
                #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 experts")]
                let zipf = Zipf::new(experts.len() as f64, *exponent);
                let zipf = zipf.map_err(|error| Failure::local(format!("zipf: {error}")))?;
                Choice::Zipf(zipf, shuffled(experts.len()))
            }
            Pattern::Trace(path) => Choice::Events(events(path, &sources)?),
        };
        Ok(Self { model: model.to_owned(), experts, choice })
    }

    /// The experts of request number `n`.
    pub(super) fn request(&self, n: u64, experts: u32, rng: &mut ChaCha8Rng) -> Vec<Expert> {
        let place = |rng: &mut ChaCha8Rng| match &self.choice {
            Choice::Zipf(zipf, order) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a whole number from 1 to the count"
                )]
                let rank = zipf.sample(rng) as usize;
                order[rank.clamp(1, order.len()) - 1]
            }
            _ => rng.random_range(0..self.experts.len()),
        };
        if let Choice::Events(events) = &self.choice {
            let n = usize::try_from(n % events.len() as u64).unwrap_or(0);
            return events[n].clone();
        }
        let mut places: Vec<usize> = (0..experts).map(|_| place(rng)).collect();
        // A request names an expert once.
        places.sort_unstable();
        places.dedup();
        places.into_iter().map(|place| self.experts[place].clone()).collect()
    }
}

/// The numbers below `count` in an order that is the same every time.
fn shuffled(count: usize) -> Vec<usize> {
    use rand::SeedableRng as _;
    use rand::seq::SliceRandom as _;
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(count as u64));
    order
}

/// The requests of a routing trace: the experts of each step and layer together.
fn events(
    path: &Path,
    sources: &BTreeMap<(u32, u32), ExpertKey>,
) -> Result<Vec<Vec<Expert>>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::local(format!("{}: {error}", path.display())))?;
    let wrong = |line: usize, what: &str| {
        Failure::new(Exit::Usage, format!("{}:{}: {what}", path.display(), line + 1))
    };
    let mut events: Vec<Vec<Expert>> = Vec::new();
    let (mut last, mut strange) = (None, 0u64);
    for (n, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.starts_with("turn,") || line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [turn, phase, step, layer, _, expert, ..] = fields[..] else {
            return Err(wrong(n, "turn,phase,step,layer,slot,expert is expected"));
        };
        let number = |text: &str| text.parse::<u32>().map_err(|_| wrong(n, "a number is expected"));
        let (layer, expert) = (number(layer)?, number(expert)?);
        let event = (turn.to_owned(), phase.to_owned(), step.to_owned(), layer);
        if last.as_ref() != Some(&event) {
            events.push(Vec::new());
            last = Some(event);
        }
        match (sources.get(&(layer, expert)), events.last_mut()) {
            (Some(key), Some(experts)) => {
                if !experts.iter().any(|(known, _)| known == key) {
                    experts.push((key.clone(), layer));
                }
            }
            _ => strange += 1,
        }
    }
    events.retain(|event| !event.is_empty());
    if events.is_empty() {
        let what = format!("no expert of the trace is served ({strange} are of another model)");
        return Err(Failure::new(Exit::NotFound, format!("{}: {what}", path.display())));
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn key(expert: u32) -> ExpertKey {
        ExpertKey { tier: "t".parse().expect("an id"), group: 0, expert }
    }

    fn keys(choice: Choice) -> Keys {
        let experts = (0..10).map(|expert| (key(expert), 0)).collect();
        Keys { model: "m".to_owned(), experts, choice }
    }

    #[test]
    fn patterns_are_read() {
        assert_eq!(Pattern::read("uniform"), Ok(Pattern::Uniform));
        assert_eq!(Pattern::read("zipf"), Ok(Pattern::Zipf(0.99)));
        assert_eq!(Pattern::read("zipf:1.5"), Ok(Pattern::Zipf(1.5)));
        assert_eq!(Pattern::read("a.csv"), Ok(Pattern::Trace("a.csv".into())));
        assert!(Pattern::read("zipf:x").is_err() && Pattern::read("zipf:-1").is_err());
    }

    #[test]
    fn zipf_prefers_few_and_uniform_none() {
        let mut counts = [[0u32; 10]; 2];
        let zipf = Choice::Zipf(Zipf::new(10.0, 1.2).expect("sound"), shuffled(10));
        for (counts, choice) in counts.iter_mut().zip([zipf, Choice::Uniform]) {
            let (keys, mut rng) = (keys(choice), ChaCha8Rng::seed_from_u64(1));
            for n in 0..10_000 {
                for (key, _) in keys.request(n, 1, &mut rng) {
                    counts[key.expert as usize] += 1;
                }
            }
            counts.sort_unstable();
        }
        let [zipf, uniform] = counts;
        assert!(zipf[9] > 8 * zipf[0], "{zipf:?}");
        assert!(uniform[9] < 2 * uniform[0], "{uniform:?}");
    }

    #[test]
    fn a_step_and_layer_of_a_trace_is_one_request() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("t.csv");
        let trace = "# route_trace v1\nturn,phase,step,layer,slot,expert,weight\n\
                     0,prefill,0,0,0,3,0.5\n0,prefill,0,0,1,1,0.2\n0,prefill,0,1,0,3,0.5\n\
                     0,decode,1,0,0,9,0.1\n0,decode,1,0,1,1,0.1\n";
        std::fs::write(&path, trace).expect("written");
        let sources = [((0, 1), key(1)), ((0, 3), key(3)), ((1, 3), key(3))].into();
        let found = events(&path, &sources).expect("a trace");
        assert_eq!(found, [vec![(key(3), 0), (key(1), 0)], vec![(key(3), 1)], vec![(key(1), 0)]]);
        let keys = keys(Choice::Events(found.clone()));
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let again: Vec<Vec<Expert>> = (0..4).map(|n| keys.request(n, 9, &mut rng)).collect();
        assert_eq!((&again[..3], &again[3]), (&found[..], &found[0]));

        std::fs::write(&path, "0,decode,1,0,0,9,0.1\n").expect("written");
        assert!(events(&path, &sources).is_err(), "of another model");
        std::fs::write(&path, "0,decode,1,x,0,9,0.1\n").expect("written");
        let error = events(&path, &sources).expect_err("no number");
        assert!(error.message.contains(":1: a number"), "{}", error.message);
    }
}

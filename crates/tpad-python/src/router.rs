//! The reference router, beneath `tpad.router`: over arrays of many tokens.

use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tpad_client::{RouteError, Router as Reference, TierLogits, Ties};
use tpad_manifest::{RoutingMask, Scoring};

use crate::errors::Failure;
use crate::mask::Mask;

/// A router for one model's scoring.
#[pyclass(frozen, module = "tpad._tpad")]
pub(crate) struct Router(Reference);

/// One tier's inputs for all tokens: a row each, but for the correction bias, which all share.
struct Inputs {
    experts: Vec<f32>,
    correction_bias: Option<Vec<f32>>,
    groups: Option<Vec<f32>>,
    tier: Option<Vec<f32>>,
}

/// As Python hands them over: C-contiguous `f32`.
type Given = (PyBuffer<f32>, Option<PyBuffer<f32>>, Option<PyBuffer<f32>>, Option<PyBuffer<f32>>);

#[pymethods]
impl Router {
    /// A router for the scoring of a manifest, as JSON.
    #[new]
    fn new(py: Python<'_>, scoring: &str) -> PyResult<Self> {
        let scoring: Scoring = serde_json::from_str(scoring)
            .map_err(|error| PyValueError::new_err(format!("the scoring: {error}")))?;
        let router = Reference::new(scoring).map_err(|error| refused(&error).raise(py))?;
        Ok(Self(router))
    }

    /// The scoring with its defaults, as JSON.
    #[staticmethod]
    fn complete(scoring: &str) -> PyResult<String> {
        let wrong = |error: serde_json::Error| PyValueError::new_err(error.to_string());
        let scoring: Scoring = serde_json::from_str(scoring).map_err(wrong)?;
        let Scoring { function, correction_bias, normalize, scale, groups } = scoring;
        // Documents leave out what is the default.
        let complete = serde_json::json!({
            "function": function,
            "correction_bias": correction_bias,
            "normalize": normalize,
            "scale": scale,
            "groups": groups,
        });
        Ok(complete.to_string())
    }

    /// Routes so many tokens. Returns the width of the rows, then tiers, groups and experts as
    /// `i32` with -1 where a row is longer than its choices, weights as `f32` with 0 there, and
    /// how many choices each row has as `i32`.
    fn route<'py>(
        &self,
        py: Python<'py>,
        mask: &Mask,
        resident_at: Option<u32>,
        tokens: usize,
        tiers: Vec<Given>,
        seeds: Option<Vec<u64>>,
    ) -> PyResult<(usize, [Bound<'py, PyBytes>; 5])> {
        let inputs =
            tiers.iter().map(|given| Inputs::of(py, given)).collect::<PyResult<Vec<_>>>()?;
        let (mask, router) = (Arc::clone(&mask.mask), self.0);
        let routed = py.detach(|| Rows::of(router, &mask, resident_at, tokens, &inputs, seeds));
        let rows = routed.map_err(|error| refused(&error).raise(py))?;
        let bytes = |column: &[u8]| PyBytes::new(py, column);
        let [tier, group, expert, weight, count] = &rows.columns;
        Ok((rows.width, [bytes(tier), bytes(group), bytes(expert), bytes(weight), bytes(count)]))
    }
}

impl Inputs {
    fn of(py: Python<'_>, (experts, bias, groups, tier): &Given) -> PyResult<Self> {
        let read = |buffer: &Option<PyBuffer<f32>>| {
            buffer.as_ref().map(|buffer| buffer.to_vec(py)).transpose()
        };
        let experts = experts.to_vec(py)?;
        Ok(Self { experts, correction_bias: read(bias)?, groups: read(groups)?, tier: read(tier)? })
    }

    /// One token's.
    fn row(&self, token: usize, tokens: usize) -> TierLogits<'_> {
        TierLogits {
            experts: row(&self.experts, token, tokens),
            correction_bias: self.correction_bias.as_deref(),
            groups: self.groups.as_deref().map(|groups| row(groups, token, tokens)),
            tier: self.tier.as_deref().and_then(|tier| tier.get(token)).copied(),
        }
    }
}

fn row(values: &[f32], token: usize, tokens: usize) -> &[f32] {
    let width = values.len() / tokens.max(1);
    values.get(token * width..(token + 1) * width).unwrap_or_default()
}

/// What the tokens use, in columns of bytes.
struct Rows {
    width: usize,
    columns: [Vec<u8>; 5],
}

impl Rows {
    fn of(
        router: Reference,
        mask: &RoutingMask,
        resident_at: Option<u32>,
        tokens: usize,
        inputs: &[Inputs],
        seeds: Option<Vec<u64>>,
    ) -> Result<Self, RouteError> {
        let mut chosen = Vec::with_capacity(tokens);
        for token in 0..tokens {
            let rows: Vec<TierLogits<'_>> =
                inputs.iter().map(|input| input.row(token, tokens)).collect();
            let seed = seeds.as_ref().and_then(|seeds| seeds.get(token));
            let router = seed.map_or(router, |seed| router.with_ties(Ties::Seeded(*seed)));
            chosen.push(match resident_at {
                Some(layer) => router.route_resident(mask, layer, &rows)?,
                None => router.route(mask, &rows)?,
            });
        }
        let width = chosen.iter().map(Vec::len).max().unwrap_or(0);
        let mut columns: [Vec<u8>; 5] = Default::default();
        for choices in &chosen {
            let [tiers, groups, experts, weights, counts] = &mut columns;
            for at in 0..width {
                let choice = choices.get(at);
                let number = |n: Option<u32>| n.map_or(u32::MAX, |n| n).to_ne_bytes();
                let tier = choice.and_then(|choice| u32::try_from(choice.tier).ok());
                tiers.extend(number(tier));
                groups.extend(number(choice.map(|choice| choice.group)));
                experts.extend(number(choice.map(|choice| choice.expert)));
                weights.extend(choice.map_or(0.0, |choice| choice.weight).to_ne_bytes());
            }
            counts.extend(u32::try_from(choices.len()).unwrap_or(u32::MAX).to_ne_bytes());
        }
        Ok(Self { width, columns })
    }
}

fn refused(error: &RouteError) -> Failure {
    let (kind, reason) = match error {
        RouteError::Scoring { .. } => ("failed_precondition", "SCORING"),
        RouteError::NothingAllowed => ("failed_precondition", "NOTHING_ALLOWED"),
        RouteError::ZeroK { .. } => ("invalid_argument", "ZERO_K"),
        RouteError::NotFinite { .. } => ("invalid_argument", "NOT_FINITE"),
        RouteError::NotResident { .. } => ("failed_precondition", "NOT_RESIDENT"),
        _ => ("invalid_argument", "INPUTS"),
    };
    Failure::Said { kind, message: error.to_string(), reason, remedy: None }
}

//! The families' functions, operation by operation as PyTorch's portable CPU
//! kernels (`ATEN_CPU_CAPABILITY=default`) do them.
//!
//! `f32::exp` is the C library's `expf`, which those kernels call too. Sums are
//! not associative: which partial sums are taken, and in which order they are
//! added up, decides the last bits. `docs/routing.md` says both in words.

/// Partial sums that PyTorch keeps: the `f32` of its portable vector.
const LANES: usize = 8;

/// Accumulators that its reductions keep, of values or of vectors.
const STRIDE: usize = 4;

/// `exp(x - max)` times the reciprocal of their sum.
pub(super) fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = largest(logits.iter().copied());
    let mut values: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let mut lanes = [0.0f32; LANES];
    for vector in values.chunks(LANES) {
        lanes.iter_mut().zip(vector).for_each(|(lane, value)| *lane += value);
    }
    let reciprocal = 1.0 / in_order(lanes);
    values.iter_mut().for_each(|value| *value *= reciprocal);
    values
}

pub(super) fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// The square root of `ln(1 + exp(x))`, which PyTorch takes to be `x` above 20.
pub(super) fn sqrt_softplus(logit: f32) -> f32 {
    let softplus = if logit > 20.0 { logit } else { logit.exp().ln_1p() };
    softplus.sqrt()
}

/// The sum that weights are divided by. It differs from the softmax's own: a
/// reduction over a tensor's last dimension.
pub(super) fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        let mut sums = [0.0f32; STRIDE];
        let whole = values.len() - values.len() % STRIDE;
        for (at, value) in values.iter().enumerate() {
            sums[if at < whole { at % STRIDE } else { 0 }] += value;
        }
        return in_order(sums);
    }
    let vectors = values.chunks_exact(LANES);
    let tail = in_order(vectors.remainder().iter().copied());
    let whole = vectors.len() - vectors.len() % STRIDE;
    let mut sums = [[0.0f32; LANES]; STRIDE];
    for (at, vector) in vectors.enumerate() {
        let lanes = &mut sums[if at < whole { at % STRIDE } else { 0 }];
        lanes.iter_mut().zip(vector).for_each(|(lane, value)| *lane += value);
    }
    let lanes = (0..LANES).map(|lane| in_order(sums.iter().map(|lanes| lanes[lane])));
    lanes.fold(tail, |sum, lane| sum + lane)
}

pub(super) fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(f32::NEG_INFINITY, f32::max)
}

/// The two largest together; the only one where there is one.
pub(super) fn top_two_sum(values: impl Iterator<Item = f32>) -> f32 {
    let mut first = f32::NEG_INFINITY;
    let mut second = f32::NEG_INFINITY;
    for value in values {
        if value > first {
            (first, second) = (value, first);
        } else if value > second {
            second = value;
        }
    }
    if second == f32::NEG_INFINITY { first } else { first + second }
}

/// `ln(sum(exp(x)))`. No family computes it, so it has the precision that costs
/// nothing here and makes near ties rare.
pub(super) fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
    let sum = values.fold(0.0, |sum, value| sum + (value - most).exp());
    most + sum.ln()
}

fn in_order(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(0.0, |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_taken_in_the_documented_order() {
        // One is lost beside 2^24, two are not: each order has another sum.
        let big = 16_777_216.0f32;
        assert_eq!(sum(&[big, 1.0, 1.0]), big, "three in a row");
        assert_eq!(sum(&[big, 0.0, 0.0, 0.0, -big, 1.0, 1.0]), 2.0, "the rest goes first");
        assert_eq!(sum(&[1.0, 0.0, big, 0.0, 1.0]), big + 2.0, "the rest goes to the first");
        let mut nine = [0.0; 9];
        (nine[0], nine[1], nine[8]) = (big, 1.0, 1.0);
        assert_eq!(sum(&nine), big, "the tail, then the lanes");
        (nine[0], nine[1]) = (1.0, big);
        assert_eq!(sum(&nine), big + 2.0, "the tail, then the lanes");
        let mut sixteen = [0.0; 16];
        (sixteen[0], sixteen[8], sixteen[1]) = (1.0, 1.0, big);
        assert_eq!(sum(&sixteen), big + 2.0, "equal lanes meet first");
        let mut forty = [0.0; 40];
        (forty[0], forty[32], forty[8]) = (1.0, 1.0, big);
        assert_eq!(sum(&forty), big + 2.0, "the fifth vector meets the first");
    }

    #[test]
    fn extremes_stay_finite() {
        assert_eq!(softmax(&[f32::MAX, f32::MIN, f32::MAX]), [0.5, 0.0, 0.5]);
        assert_eq!([sigmoid(f32::MIN), sigmoid(0.0), sigmoid(f32::MAX)], [0.0, 0.5, 1.0]);
        assert_eq!(sqrt_softplus(f32::MIN), 0.0);
        assert!(sqrt_softplus(f32::MAX).is_finite());
        assert_eq!(top_two_sum([-3.0f32].into_iter()), -3.0);
        assert_eq!(top_two_sum([-3.0f32, 1.0, -2.0].into_iter()), -1.0);
        let lse = log_sum_exp([f64::from(f32::MAX); 2].into_iter());
        assert_eq!(lse, f64::from(f32::MAX), "ln 2 is lost beside it");
    }
}

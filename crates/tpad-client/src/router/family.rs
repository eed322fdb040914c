//! What differs from family to family: values, group scores and weights.

use tpad_manifest::{GroupScoring, Scoring, ScoringFunction};

use super::candidates::{Candidate, Group};
use super::{RouteError, numeric};

/// A manifest's scoring that can be computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Family {
    function: Function,
    groups: Groups,
    normalize: bool,
    scale: f32,
    /// Whether a correction bias is added to scores.
    pub(super) corrected: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Softmax,
    SoftmaxAfterTopK,
    Sigmoid,
    SqrtSoftplus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Groups {
    LogSumExp,
    Max,
    TopTwoSum,
}

impl Family {
    pub(super) fn of(scoring: Scoring) -> Result<Self, RouteError> {
        let Scoring { function, correction_bias: corrected, normalize, scale, groups } = scoring;
        let refused = |what| Err(RouteError::Scoring { what });
        let function = match function {
            ScoringFunction::Softmax => Function::Softmax,
            ScoringFunction::SoftmaxAfterTopK => Function::SoftmaxAfterTopK,
            ScoringFunction::Sigmoid => Function::Sigmoid,
            ScoringFunction::SqrtSoftplus => Function::SqrtSoftplus,
            ScoringFunction::Unknown => return refused("the function is not known here"),
        };
        let groups = match groups {
            GroupScoring::LogSumExp => Groups::LogSumExp,
            GroupScoring::Max => Groups::Max,
            GroupScoring::TopTwoSum => Groups::TopTwoSum,
            GroupScoring::Unknown => return refused("how it scores groups is not known here"),
        };
        let after = function == Function::SoftmaxAfterTopK;
        if after && (corrected || groups == Groups::TopTwoSum) {
            return refused("a softmax of the chosen logits has no scores to correct or to add up");
        }
        // PyTorch multiplies by the factor as f32.
        #[expect(clippy::cast_possible_truncation, reason = "rounds, and infinity is refused")]
        let scale = scale as f32;
        if !scale.is_finite() {
            return refused("the scale is no finite f32");
        }
        Ok(Self { function, groups, normalize, scale, corrected })
    }

    /// What the family's function makes of the logits of all candidates.
    pub(super) fn values(&self, logits: Vec<f32>) -> Vec<f32> {
        match self.function {
            Function::Softmax => numeric::softmax(&logits),
            Function::SoftmaxAfterTopK => logits,
            Function::Sigmoid => logits.into_iter().map(numeric::sigmoid).collect(),
            Function::SqrtSoftplus => logits.into_iter().map(numeric::sqrt_softplus).collect(),
        }
    }

    /// What a group is chosen by, among those of its tier.
    pub(super) fn group_score(&self, group: &Group) -> f64 {
        let scores = group.experts.iter().map(|expert| expert.score);
        match (group.head, self.groups) {
            (Some(head), _) => head.into(),
            (None, Groups::LogSumExp) => group.log_sum_exp(),
            (None, Groups::Max) => numeric::largest(scores).into(),
            (None, Groups::TopTwoSum) => numeric::top_two_sum(scores).into(),
        }
    }

    /// The weights of the chosen, in their order.
    pub(super) fn weights(&self, chosen: &[Candidate]) -> Vec<f32> {
        let softmax = || {
            let logits: Vec<f32> = chosen.iter().map(|expert| expert.logit).collect();
            numeric::softmax(&logits)
        };
        let mut weights = match self.function {
            Function::SoftmaxAfterTopK => softmax(),
            _ => chosen.iter().map(|expert| expert.value).collect(),
        };
        if self.normalize {
            let mut sum = numeric::sum(&weights);
            if matches!(self.function, Function::Sigmoid | Function::SqrtSoftplus) {
                // What DeepSeek-V3 and its kin add against a division by zero.
                sum += 1e-20;
            }
            if self.function == Function::Softmax && sum == 0.0 {
                // All of them underflowed beside a larger one that was not chosen.
                weights = softmax();
            } else {
                weights.iter_mut().for_each(|weight| *weight /= sum);
            }
        }
        weights.iter_mut().for_each(|weight| *weight *= self.scale);
        weights
    }
}

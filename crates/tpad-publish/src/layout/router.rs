//! Routers: the tensors that score a layer's experts.

use std::ops::Bound;

use tpad_manifest::{
    ByteRange, GateUp, Orientation, Part, Projection, Role, ScoringFunction, TensorRecord,
};

use super::config::Config;
use super::linear::{Linear, Piece, Scheme};
use super::member::Member;
use super::name::Form;
use super::site::{Site, Survey};
use super::{LayoutError, RouterTensor, ShardTensor};

/// The modules that hold a router's weight, below the experts' module.
const MODULES: &[&str] = &[
    "gate",
    "router",
    "router.layer",
    "router.classifier",
    "router.gate",
    "router.proj",
    "gate.wg",
    "gate.classifier",
];

/// The names of a correction bias, below the experts' module.
const CORRECTIONS: &[&str] = &[
    "gate.e_score_correction_bias",
    "gate.expert_bias",
    "router.e_score_correction_bias",
    "router.expert_bias",
    "e_score_correction_bias",
    "expert_bias",
    "router_bias",
    "moe_statics.e_score_correction_bias",
    "gate.moe_statics.e_score_correction_bias",
    "experts.e_score_correction_bias",
];

/// Takes a site's router from the survey's other tensors.
pub(super) fn take(
    survey: &mut Survey<'_>,
    site: &Site<'_>,
    experts: usize,
    function: Option<ScoringFunction>,
    config: Config<'_>,
) -> Result<Vec<RouterTensor>, LayoutError> {
    let mut linears = Vec::new();
    for module in MODULES {
        let stem = format!("{}.{module}", site.module);
        let pieces = pieces(survey, &stem);
        if pieces.iter().any(|piece| piece.member.is_weight()) {
            linears.push((stem, pieces));
        }
    }
    let corrections: Vec<&ShardTensor> = CORRECTIONS
        .iter()
        .filter_map(|name| survey.others.get(&*format!("{}.{name}", site.module)).copied())
        .collect();
    let mut linears = linears.into_iter();
    let Some((stem, pieces)) = linears.next() else {
        return Err(LayoutError::MissingRouter { layer: site.layer, module: site.module.into() });
    };
    if let Some((other, _)) = linears.next() {
        return Err(LayoutError::TwoTensors { first: stem, second: other });
    }
    if let [first, second, ..] = &*corrections {
        return Err(LayoutError::TwoTensors {
            first: first.name.to_string(),
            second: second.name.to_string(),
        });
    }
    // DeepSeek's own names call the correction bias `gate.bias`; only routers
    // that do not score by softmax have one.
    let corrects =
        matches!(function, Some(ScoringFunction::Sigmoid | ScoringFunction::SqrtSoftplus))
            && corrections.is_empty();
    let linear = Linear { stem: &stem, projection: Projection::Router, form: Form::Each, pieces };
    let matrix = linear.matrix(site.layer, config, None)?;
    let (rows, _) = matrix.out_in(matrix.orientation);
    let weight = linear.weight().map(|weight| weight.tensor.name.clone()).unwrap_or_default();
    let wanted = wanted_rows(experts, config)?;
    if rows != wanted {
        return Err(LayoutError::RouterRows {
            layer: site.layer,
            name: weight,
            rows,
            experts: wanted,
        });
    }
    let mut taken = Vec::new();
    let plain = matrix.scheme == Scheme::Plain;
    for piece in &linear.pieces {
        let corrects = corrects && piece.member == Member::Bias;
        let part = if corrects { Part::CorrectionBias } else { piece.member.part() };
        taken.push((piece.tensor, part, plain || part == Part::Bias || corrects));
    }
    taken.extend(corrections.iter().map(|tensor| (*tensor, Part::CorrectionBias, true)));
    let mut tensors = Vec::new();
    for (tensor, part, rowwise) in taken {
        let is_weight = part == Part::Weight;
        let router = Tensor { tensor, part, rows: wanted };
        let mut record = router.record();
        if is_weight {
            record.orientation = matrix.orientation;
            record.values_per_element = matrix.values_per_element;
        }
        tensors.push(router.finish(record, rowwise, site.layer)?);
        survey.others.remove(&*tensor.name);
        survey.unknown.remove(&*tensor.name);
    }
    Ok(tensors)
}

/// What a router scores: the experts, and LongCat's identity experts, which
/// have no weights.
fn wanted_rows(experts: usize, config: Config<'_>) -> Result<u64, LayoutError> {
    let identity = config.count(&["zero_expert_num"])?.unwrap_or(0);
    Ok(u64::try_from(experts).unwrap_or(u64::MAX).saturating_add(identity.into()))
}

fn pieces<'a>(survey: &Survey<'a>, stem: &str) -> Vec<Piece<'a>> {
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    for (name, tensor) in survey.others.range::<str, _>((Bound::Included(stem), Bound::Unbounded)) {
        let Some(suffix) = name.strip_prefix(stem) else { break };
        if let Some(member) = suffix.strip_prefix('.').and_then(Member::named) {
            let tensor = *tensor;
            pieces.push(Piece { member, tensor, shape: tensor.shape.clone(), sliced: false });
        }
    }
    pieces.sort_by_key(|piece| (piece.member.part(), piece.member));
    pieces
}

struct Tensor<'a> {
    tensor: &'a ShardTensor,
    part: Part,
    rows: u64,
}

impl Tensor<'_> {
    fn record(&self) -> TensorRecord {
        let tensor = self.tensor;
        TensorRecord {
            name: tensor.name.clone(),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            role: Role { projection: Projection::Router, part: self.part },
            orientation: Orientation::Unknown,
            gate_up: GateUp::Unknown,
            values_per_element: 1,
            sliced: false,
            ranges: vec![ByteRange {
                object: tensor.object.clone(),
                offset: tensor.offset,
                bytes: tensor.bytes,
            }],
        }
    }

    /// Settles whether the tensor has a row for each expert and whether rows
    /// can be cut out as bytes.
    fn finish(
        self,
        record: TensorRecord,
        rowwise: bool,
        layer: u32,
    ) -> Result<RouterTensor, LayoutError> {
        let shape = &*record.shape;
        let rows = match shape {
            [rows, ..] if *rows == self.rows => Some(self.rows),
            // ERNIE keeps its correction bias as one row.
            [1, columns] if *columns == self.rows => Some(self.rows),
            _ => None,
        };
        if rowwise && rows.is_none() {
            return Err(LayoutError::RouterRows {
                layer,
                name: record.name,
                rows: shape.first().copied().unwrap_or(1),
                experts: self.rows,
            });
        }
        let single = shape.iter().all(|dim| *dim == 1);
        let row_bytes = self
            .tensor
            .bytes
            .checked_div(self.rows)
            .filter(|bytes| bytes.checked_mul(self.rows) == Some(self.tensor.bytes));
        let bits = self.tensor.dtype.bits().unwrap_or(0);
        let whole = bits.is_multiple_of(8)
            || shape.get(1..).is_some_and(|row| self.tensor.dtype.tensor_bytes(row).is_ok());
        let cut_by_row = rows.is_some() && row_bytes.is_some() && whole && rowwise;
        let rows = if cut_by_row { rows.and_then(|rows| u32::try_from(rows).ok()) } else { None };
        Ok(RouterTensor { record, rows, cuttable: cut_by_row || single })
    }
}

//! Dense tensors: whatever is no expert's and no router's.

use std::collections::BTreeMap;

use tpad_manifest::{ByteRange, GateUp, Orientation, Part, Projection, Role, TensorRecord};

use super::DraftBlock;
use super::config::Config;
use super::linear::{Linear, Piece};
use super::member::Member;
use super::name::Form;
use super::site::Survey;

/// One block for each dense tensor, sorted by name.
pub(super) fn blocks(survey: &Survey<'_>, config: Config<'_>) -> Vec<DraftBlock> {
    let packed = packed(survey, config);
    let block = |(name, tensor): (&&str, &&crate::ShardTensor)| {
        let member = name.rsplit('.').next().and_then(Member::named);
        let part = member.map_or(Part::Weight, Member::part);
        let record = TensorRecord {
            name: tensor.name.clone(),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            role: Role { projection: Projection::Other, part },
            orientation: Orientation::Unknown,
            gate_up: GateUp::Unknown,
            values_per_element: packed.get(*name).copied().unwrap_or(1),
            sliced: false,
            ranges: vec![ByteRange {
                object: tensor.object.clone(),
                offset: tensor.offset,
                bytes: tensor.bytes,
            }],
        };
        DraftBlock { tensors: vec![record], source: None }
    };
    survey.others.iter().map(block).collect()
}

/// The logical values in each element of packed dense weights. A dense tensor
/// is served as it is, so one whose packing is not understood counts as plain.
fn packed<'a>(survey: &Survey<'a>, config: Config<'_>) -> BTreeMap<&'a str, u32> {
    let mut linears: BTreeMap<&str, Vec<Piece<'_>>> = BTreeMap::new();
    for (name, tensor) in &survey.others {
        let Some((stem, member)) = name.rsplit_once('.') else { continue };
        let Some(member) = Member::named(member) else { continue };
        let piece = Piece { member, tensor, shape: tensor.shape.clone(), sliced: false };
        linears.entry(stem).or_default().push(piece);
    }
    let mut packed = BTreeMap::new();
    for (stem, pieces) in linears {
        let linear = Linear { stem, projection: Projection::Other, form: Form::Each, pieces };
        let Some(weight) = linear.weight() else { continue };
        if let Ok(matrix) = linear.matrix(0, config, None) {
            let name = survey.others.get_key_value(&*weight.tensor.name).map(|(name, _)| *name);
            packed.extend(name.map(|name| (name, matrix.values_per_element)));
        }
    }
    packed
}

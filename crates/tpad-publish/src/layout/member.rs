//! Members: the tensors that one linear map is made of.

use tpad_manifest::Part;

/// One tensor of a linear map, by the last component of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Member {
    Weight,
    WeightPacked,
    QWeight,
    Blocks,
    Bias,
    WeightScaleInv,
    WeightScale,
    Scale,
    Scales,
    WeightScale2,
    WeightGlobalScale,
    InputScale,
    InputGlobalScale,
    PreQuantScale,
    QZeros,
    WeightZeroPoint,
    GIdx,
    WeightGIdx,
    WeightShape,
    CorrectionBias,
}

/// Every member with its name as a module's parameter and its part.
const MEMBERS: &[(Member, &str, Part)] = &[
    (Member::Weight, "weight", Part::Weight),
    (Member::WeightPacked, "weight_packed", Part::Weight),
    (Member::QWeight, "qweight", Part::Weight),
    (Member::Blocks, "blocks", Part::Weight),
    (Member::Bias, "bias", Part::Bias),
    (Member::WeightScaleInv, "weight_scale_inv", Part::Scale),
    (Member::WeightScale, "weight_scale", Part::Scale),
    (Member::Scale, "scale", Part::Scale),
    (Member::Scales, "scales", Part::Scale),
    (Member::WeightScale2, "weight_scale_2", Part::GlobalScale),
    (Member::WeightGlobalScale, "weight_global_scale", Part::GlobalScale),
    (Member::InputScale, "input_scale", Part::InputScale),
    (Member::InputGlobalScale, "input_global_scale", Part::InputScale),
    (Member::PreQuantScale, "pre_quant_scale", Part::InputScale),
    (Member::QZeros, "qzeros", Part::ZeroPoint),
    (Member::WeightZeroPoint, "weight_zero_point", Part::ZeroPoint),
    (Member::GIdx, "g_idx", Part::GroupIndex),
    (Member::WeightGIdx, "weight_g_idx", Part::GroupIndex),
    (Member::WeightShape, "weight_shape", Part::Shape),
    (Member::CorrectionBias, "e_score_correction_bias", Part::CorrectionBias),
];

/// What stacked parameters are called after the map's name, where that is not
/// an underscore and the member's own name.
const SUFFIXES: &[(&str, Member)] = &[
    ("", Member::Weight),
    ("_packed", Member::WeightPacked),
    ("_scale_inv", Member::WeightScaleInv),
    ("_scale", Member::WeightScale),
    ("_scale_2", Member::WeightScale2),
    ("_global_scale", Member::WeightGlobalScale),
    ("_zero_point", Member::WeightZeroPoint),
    ("_shape", Member::WeightShape),
];

impl Member {
    /// The member of a module that has this name; routers' own have none.
    pub(super) fn named(name: &str) -> Option<Self> {
        let found = MEMBERS.iter().find(|(_, known, _)| *known == name)?.0;
        (found != Self::CorrectionBias).then_some(found)
    }

    /// The member that a stacked parameter's name ends in: `""`, `_member` or
    /// `.member`.
    pub(super) fn suffixed(suffix: &str) -> Option<Self> {
        if let Some((_, member)) = SUFFIXES.iter().find(|(known, _)| *known == suffix) {
            return Some(*member);
        }
        Self::named(suffix.strip_prefix(['_', '.'])?)
    }

    /// How a missing member would be called beside `sibling`, the full name of
    /// a member that is there.
    pub(super) fn beside(self, stem: &str, sibling: &str) -> String {
        if sibling.get(stem.len()..).is_some_and(|suffix| suffix.starts_with('.')) {
            return format!("{stem}.{}", self.name());
        }
        match SUFFIXES.iter().find(|(_, member)| *member == self) {
            Some((suffix, _)) => format!("{stem}{suffix}"),
            None => format!("{stem}_{}", self.name()),
        }
    }

    pub(super) fn name(self) -> &'static str {
        MEMBERS.iter().find(|(member, ..)| *member == self).map_or("", |(_, name, _)| name)
    }

    pub(super) fn part(self) -> Part {
        MEMBERS.iter().find(|(member, ..)| *member == self).map_or(Part::Weight, |(.., part)| *part)
    }

    pub(super) fn is_weight(self) -> bool {
        self.part() == Part::Weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_listed_once() {
        for (n, (member, name, part)) in MEMBERS.iter().enumerate() {
            assert_eq!((member.name(), member.part()), (*name, *part));
            assert!(MEMBERS[..n].iter().all(|(other, known, _)| other != member && known != name));
        }
        assert_eq!(MEMBERS.len(), Member::CorrectionBias as usize + 1);
    }

    #[test]
    fn missing_members_are_named_in_their_siblings_manner() {
        let beside = |member: Member, stem, sibling| member.beside(stem, sibling);
        assert_eq!(beside(Member::WeightScale, "a.w1", "a.w1.weight_packed"), "a.w1.weight_scale");
        assert_eq!(
            beside(Member::Scales, "e.down_proj", "e.down_proj_blocks"),
            "e.down_proj_scales"
        );
        assert_eq!(
            beside(Member::WeightScaleInv, "e.down_proj", "e.down_proj"),
            "e.down_proj_scale_inv"
        );
    }
}

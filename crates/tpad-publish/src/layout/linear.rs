//! Linear maps: a weight with its companions, and how it is packed.

use tpad_manifest::{Orientation, Projection};

use super::config::Config;
use super::member::Member;
use super::name::Form;
use super::{LayoutError, ShardTensor};

/// One tensor of a linear map.
#[derive(Clone, Debug)]
pub(super) struct Piece<'a> {
    pub(super) member: Member,
    pub(super) tensor: &'a ShardTensor,
    /// The shape without an expert axis.
    pub(super) shape: Vec<u64>,
    /// Whether the tensor holds other experts' parts too.
    pub(super) sliced: bool,
}

/// The tensors of one linear map, sorted by member.
#[derive(Clone, Debug)]
pub(super) struct Linear<'a> {
    pub(super) stem: &'a str,
    pub(super) projection: Projection,
    pub(super) form: Form,
    pub(super) pieces: Vec<Piece<'a>>,
}

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scheme {
    Plain,
    Fp8,
    Fp8Block,
    Fp4,
    Int8,
    Packed(u32),
    Nvfp4,
    Mxfp4,
    Gptq,
    Awq,
}

/// A weight's axes, unpacked, as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matrix {
    pub(super) scheme: Scheme,
    pub(super) values_per_element: u32,
    /// How the axes are to be read unless the layout says otherwise.
    pub(super) orientation: Orientation,
    /// The first axis.
    pub(super) rows: u64,
    /// The second axis.
    pub(super) columns: u64,
}

impl Scheme {
    /// The name that the manifest records; `None` for plain weights.
    pub(super) fn label(self) -> Option<String> {
        Some(match self {
            Self::Plain => return None,
            Self::Fp8 => "fp8".into(),
            Self::Fp8Block => "fp8_block".into(),
            Self::Fp4 => "fp4".into(),
            Self::Int8 => "int8".into(),
            Self::Packed(bits) => format!("int{bits}_packed"),
            Self::Nvfp4 => "nvfp4".into(),
            Self::Mxfp4 => "mxfp4".into(),
            Self::Gptq => "gptq".into(),
            Self::Awq => "awq".into(),
        })
    }
}

impl<'a> Linear<'a> {
    pub(super) fn get(&self, member: Member) -> Option<&Piece<'a>> {
        self.pieces.iter().find(|piece| piece.member == member)
    }

    /// The weight itself.
    pub(super) fn weight(&self) -> Option<&Piece<'a>> {
        self.pieces.iter().find(|piece| piece.member.is_weight())
    }

    /// The companions that must be there for this weight to mean anything; of
    /// each row, one.
    fn required(&self, weight: &Piece<'_>) -> &'static [&'static [Member]] {
        let scaled_in_fp8 =
            |member| self.get(member).is_some_and(|scale| scale.tensor.dtype.name() == "F8_E4M3");
        match (weight.member, weight.tensor.dtype.name()) {
            (Member::Weight, name) if name.starts_with("F8_") || name.starts_with("F4") => {
                &[&[Member::WeightScaleInv, Member::WeightScale, Member::Scale]]
            }
            (Member::Weight, "U8") if scaled_in_fp8(Member::WeightScale) => {
                &[&[Member::WeightScale2]]
            }
            (Member::Weight, "U8") => &[&[Member::WeightScale]],
            (Member::Weight, "I8") => &[&[Member::Scale, Member::WeightScale]],
            (Member::WeightPacked, "I32") => &[&[Member::WeightScale], &[Member::WeightShape]],
            (Member::WeightPacked, "U8") if scaled_in_fp8(Member::WeightScale) => {
                &[&[Member::WeightGlobalScale]]
            }
            (Member::WeightPacked, _) => &[&[Member::WeightScale]],
            (Member::QWeight, _) => &[&[Member::QZeros], &[Member::Scales]],
            (Member::Blocks, _) => &[&[Member::Scales]],
            _ => &[],
        }
    }

    /// The weight's axes, once all its companions are there. `near` is the
    /// matrix of another map of the same expert.
    pub(super) fn matrix(
        &self,
        layer: u32,
        config: Config<'_>,
        near: Option<Matrix>,
    ) -> Result<Matrix, LayoutError> {
        let Some(weight) = self.weight() else {
            let sibling = self.pieces.first().map_or(self.stem, |piece| &piece.tensor.name);
            return Err(LayoutError::Missing {
                layer,
                name: Member::Weight.beside(self.stem, sibling),
                why: format!("{sibling} is there"),
            });
        };
        for choices in self.required(weight) {
            if !choices.iter().any(|member| self.get(*member).is_some()) {
                let first = choices.first().copied().unwrap_or(Member::WeightScale);
                let (name, dtype) = (&weight.tensor.name, &weight.tensor.dtype);
                return Err(LayoutError::Missing {
                    layer,
                    name: first.beside(self.stem, name),
                    why: format!("{name} is {dtype} and means nothing without it"),
                });
            }
        }
        let shape = |expected: &str| LayoutError::Shape {
            layer,
            name: weight.tensor.name.clone(),
            shape: weight.tensor.shape.clone(),
            expected: expected.into(),
        };
        let overflow = || shape("its unpacked size does not fit 64 bits");
        if weight.member == Member::Blocks {
            let [rows, blocks, bytes] = *weight.shape else {
                return Err(shape("[experts, out, in / 32, 16] is expected of MXFP4 blocks"));
            };
            let columns = blocks.checked_mul(bytes).and_then(|n| n.checked_mul(2));
            let columns = columns.ok_or_else(overflow)?;
            return Ok(Matrix::new(Scheme::Mxfp4, 2, rows, columns));
        }
        let [rows, columns] = *weight.shape else {
            return Err(shape("a matrix per expert is expected"));
        };
        let packed = |scheme, values: u32| {
            let columns = columns.checked_mul(values.into()).ok_or_else(overflow)?;
            Ok(Matrix::new(scheme, values, rows, columns))
        };
        let scale = self.get(Member::WeightScale).map(|piece| piece.tensor.dtype.name());
        match (weight.member, weight.tensor.dtype.name()) {
            (Member::QWeight, "I32") => self.gptq_or_awq(rows, columns).ok_or_else(|| {
                shape("qweight, qzeros and scales do not fit together as GPTQ or AWQ store them")
            }),
            (Member::WeightPacked, "I32") => {
                let bits = self.packed_bits(columns, config, near)?;
                let bits = bits.ok_or_else(|| LayoutError::Ambiguous {
                    layer,
                    name: weight.tensor.name.clone(),
                    shape: weight.tensor.shape.clone(),
                    key: "quantization_config's num_bits".into(),
                })?;
                packed(Scheme::Packed(bits), 32 / bits)
            }
            (Member::WeightPacked | Member::Weight, "U8") if scale == Some("F8_E4M3") => {
                packed(Scheme::Nvfp4, 2)
            }
            (Member::WeightPacked | Member::Weight, "U8") => packed(Scheme::Mxfp4, 2),
            (Member::Weight, "I8") if self.get(Member::Scale).is_some() => packed(Scheme::Mxfp4, 2),
            (Member::Weight, "I8") => packed(Scheme::Int8, 1),
            (Member::Weight, "F64" | "F32" | "F16" | "BF16") => packed(Scheme::Plain, 1),
            (Member::Weight, name) if name.starts_with("F8_") => {
                let per_tensor = scale.is_some();
                packed(if per_tensor { Scheme::Fp8 } else { Scheme::Fp8Block }, 1)
            }
            (Member::Weight, name) if name.starts_with("F4") || name.starts_with("F6") => {
                packed(Scheme::Fp4, 1)
            }
            (_, dtype) => Err(shape(&format!("no known scheme stores weights as {dtype}"))),
        }
    }

    /// GPTQ packs `[in / n, out]`, AWQ `[in, out / n]`; both have scales
    /// `[groups, out]` and zero points `[groups, out / n]`, which tell them
    /// apart and give n.
    fn gptq_or_awq(&self, rows: u64, columns: u64) -> Option<Matrix> {
        let [_, out] = *self.get(Member::Scales)?.shape else { return None };
        let [_, zeros] = *self.get(Member::QZeros)?.shape else { return None };
        let values = out.checked_div(zeros).filter(|n| zeros.checked_mul(*n) == Some(out))?;
        let values_per_element = u32::try_from(values).ok().filter(|n| [4, 8, 16].contains(n))?;
        let (scheme, rows, columns) = if columns == out {
            (Scheme::Gptq, rows.checked_mul(values)?, out)
        } else if columns == zeros {
            (Scheme::Awq, rows, out)
        } else {
            return None;
        };
        Some(Matrix { scheme, values_per_element, orientation: Orientation::InOut, rows, columns })
    }

    /// Bits of an integer packed into 32: as the settings say, or as its
    /// neighbour has them, or as makes the rows as long as the model is wide.
    fn packed_bits(
        &self,
        columns: u64,
        config: Config<'_>,
        near: Option<Matrix>,
    ) -> Result<Option<u32>, LayoutError> {
        let whole = |bits: &u32| [2, 4, 8, 16].contains(bits);
        if let Some(bits) = config.packed_bits() {
            return Ok(Some(bits).filter(whole));
        }
        if let Some(Matrix { scheme: Scheme::Packed(bits), .. }) = near {
            return Ok(Some(bits));
        }
        let Some(hidden) = config.hidden_size()? else { return Ok(None) };
        if self.projection == Projection::Down {
            return Ok(None);
        }
        let values =
            hidden.checked_div(columns).filter(|n| columns.checked_mul(*n) == Some(hidden));
        let bits = values.and_then(|n| u32::try_from(n).ok()).and_then(|n| 32u32.checked_div(n));
        Ok(bits.filter(whole))
    }
}

impl Matrix {
    fn new(scheme: Scheme, values_per_element: u32, rows: u64, columns: u64) -> Self {
        Self { scheme, values_per_element, orientation: Orientation::OutIn, rows, columns }
    }

    /// Outputs and inputs, when the axes are read this way.
    pub(super) fn out_in(self, orientation: Orientation) -> (u64, u64) {
        match orientation {
            Orientation::InOut => (self.columns, self.rows),
            Orientation::OutIn | Orientation::Unknown => (self.rows, self.columns),
        }
    }
}

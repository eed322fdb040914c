//! Experts: the blocks that a site's tensors form.

use std::collections::BTreeSet;

use tpad_manifest::{
    ByteRange, GateUp, Orientation, Part, Projection, Role, SizeError, Source, TensorRecord,
};

use super::config::Config;
use super::linear::{Linear, Matrix, Piece, Scheme};
use super::member::Member;
use super::name::Form;
use super::site::Site;
use super::{DraftBlock, ExpertSize, LayoutError, ShardTensor};

/// More experts than any layer has; it bounds what a hostile shape can ask for.
const MAX_EXPERTS: u64 = 1 << 16;

/// A site's experts as blocks.
pub(super) struct Experts {
    pub(super) blocks: Vec<DraftBlock>,
    pub(super) size: ExpertSize,
    pub(super) schemes: BTreeSet<Scheme>,
}

/// Where a map's tensors come in an expert's block.
pub(super) fn place(projection: Projection) -> u8 {
    match projection {
        Projection::Gate => 0,
        Projection::Up => 1,
        Projection::GateUp => 2,
        Projection::Down => 3,
        Projection::Router | Projection::TierHead | Projection::GroupHeads | Projection::Other => 4,
    }
}

/// Forms the blocks of a site whose maps and companions are complete.
pub(super) fn build(site: &Site<'_>, config: Config<'_>) -> Result<Experts, LayoutError> {
    let mut schemes = BTreeSet::new();
    let mut size: Option<ExpertSize> = None;
    let mut blocks = Vec::new();
    for (expert, linears) in &site.experts {
        let Some(expert) = *expert else {
            let stacked = Stacked::new(site, linears, config)?;
            let maps = Maps::read(site, &stacked.linears, config)?;
            for expert in 0..stacked.experts {
                blocks.push(maps.block(expert)?);
            }
            return Ok(Experts { blocks, size: maps.size, schemes: maps.schemes() });
        };
        let maps = Maps::read(site, linears, config)?;
        if let Some(first) = size
            && first != maps.size
        {
            let weight = linears.iter().find_map(Linear::weight).map(|weight| weight.tensor);
            return Err(misfit(site.layer, weight, "the layer's first expert has another size"));
        }
        size = Some(maps.size);
        schemes.extend(maps.schemes());
        blocks.push(maps.block(expert)?);
    }
    Ok(Experts { blocks, size: size.unwrap_or_default(), schemes })
}

fn misfit(layer: u32, tensor: Option<&ShardTensor>, expected: &str) -> LayoutError {
    let (name, shape) = tensor.map_or_else(
        || ("".into(), Vec::new()),
        |tensor| (tensor.name.clone(), tensor.shape.clone()),
    );
    LayoutError::Shape { layer, name, shape, expected: expected.into() }
}

/// Linear maps whose tensors hold all experts, cut to the shape of one.
struct Stacked<'a> {
    experts: u32,
    linears: Vec<Linear<'a>>,
}

impl<'a> Stacked<'a> {
    fn new(
        site: &Site<'_>,
        linears: &[Linear<'a>],
        config: Config<'_>,
    ) -> Result<Self, LayoutError> {
        let mut linears = linears.to_vec();
        let weights =
            linears.iter().filter_map(|linear| linear.weight().map(|weight| weight.tensor));
        let Some(first) = weights.clone().next() else {
            return Err(misfit(site.layer, None, "a site has weights"));
        };
        let flat = site.form == Form::Dbrx && first.shape.len() == 2;
        let experts = match (flat, first.shape.first()) {
            (true, _) => config.experts()?.ok_or_else(|| LayoutError::Ambiguous {
                layer: site.layer,
                name: first.name.clone(),
                shape: first.shape.clone(),
                key: "ffn_config.moe_num_experts".into(),
            })?,
            (false, experts) => experts.copied().unwrap_or(0),
        };
        let count = u32::try_from(experts).ok().filter(|_| (1..=MAX_EXPERTS).contains(&experts));
        let Some(count) = count else {
            let expected = format!("between 1 and {MAX_EXPERTS} experts are expected");
            return Err(misfit(site.layer, Some(first), &expected));
        };
        // Experts of no bytes would cost the file nothing, and memory each.
        if first.bytes == 0 {
            return Err(misfit(site.layer, Some(first), "an expert has values"));
        }
        for piece in linears.iter_mut().flat_map(|linear| &mut linear.pieces) {
            piece
                .cut(experts, flat)
                .map_err(|expected| misfit(site.layer, Some(piece.tensor), &expected))?;
        }
        Ok(Self { experts: count, linears })
    }
}

impl Piece<'_> {
    /// Takes the expert axis off; a single value is every expert's own.
    fn cut(&mut self, experts: u64, flat: bool) -> Result<(), String> {
        let shape = &self.tensor.shape;
        let (first, rest) = match shape.split_first() {
            Some((first, rest)) => (*first, rest),
            None => return Ok(()),
        };
        if flat {
            if first.checked_rem(experts) != Some(0) {
                return Err(format!("its rows are not those of {experts} experts"));
            }
            self.shape = [&[first / experts], rest].concat();
        } else if first == experts {
            self.shape = rest.to_vec();
        } else if shape.iter().all(|dim| *dim == 1) {
            return Ok(());
        } else {
            return Err(format!("a first axis of {experts} experts is expected"));
        }
        match self.tensor.dtype.tensor_bytes(&self.shape) {
            Ok(0) => Err("an expert's part is empty".into()),
            Ok(_) => {
                self.sliced = true;
                Ok(())
            }
            Err(error) => Err(format!("one expert's part cannot be cut out: {error}")),
        }
    }

    /// The tensor's bytes that belong to the expert.
    fn range(&self, expert: u32) -> Result<ByteRange, SizeError> {
        let tensor = self.tensor;
        let (offset, bytes) = if self.sliced {
            let bytes = tensor.dtype.tensor_bytes(&self.shape)?;
            let skipped = bytes.checked_mul(expert.into());
            let offset = skipped.and_then(|skipped| tensor.offset.checked_add(skipped));
            let overflow = || SizeError::Overflow(tensor.shape.clone(), tensor.dtype.clone());
            (offset.ok_or_else(overflow)?, bytes)
        } else {
            (tensor.offset, tensor.bytes)
        };
        Ok(ByteRange { object: tensor.object.clone(), offset, bytes })
    }
}

/// One expert's linear maps, read.
struct Maps<'l, 'a> {
    maps: Vec<(&'l Linear<'a>, Matrix, Orientation)>,
    gate_up: GateUp,
    size: ExpertSize,
}

impl<'l, 'a> Maps<'l, 'a> {
    fn read(
        site: &Site<'_>,
        linears: &'l [Linear<'a>],
        config: Config<'_>,
    ) -> Result<Self, LayoutError> {
        let mut read: Vec<(&Linear<'a>, Matrix)> = Vec::with_capacity(linears.len());
        for linear in linears {
            let near = read.first().map(|(_, matrix)| *matrix);
            read.push((linear, linear.matrix(site.layer, config, near)?));
        }
        let mut readings = Vec::new();
        for reading in [Orientation::OutIn, Orientation::InOut] {
            let oriented = |(linear, matrix): &(&'l Linear<'a>, Matrix)| {
                (*linear, *matrix, orientation(linear, *matrix, reading))
            };
            let maps: Vec<_> = read.iter().map(oriented).collect();
            if let Some(size) = size(&maps)
                && !readings.iter().any(|(_, known): &Reading<'l, 'a>| same(known, &maps))
            {
                readings.push((size, maps));
            }
        }
        if readings.len() > 1 {
            readings = decide(site.layer, readings, config)?;
        }
        let Some((size, maps)) = readings.pop() else {
            let first = linears.first().and_then(Linear::weight).map(|weight| weight.tensor);
            let shapes = |(linear, matrix): &(&Linear<'_>, Matrix)| {
                format!("{} [{}, {}]", linear.stem, matrix.rows, matrix.columns)
            };
            let shapes: Vec<String> = read.iter().map(shapes).collect();
            let expected =
                format!("an expert's maps do not fit together, unpacked: {}", shapes.join(", "));
            return Err(misfit(site.layer, first, &expected));
        };
        Ok(Self { maps, gate_up: gate_up(linears, config), size })
    }

    fn schemes(&self) -> BTreeSet<Scheme> {
        self.maps.iter().map(|(_, matrix, _)| matrix.scheme).collect()
    }

    fn block(&self, expert: u32) -> Result<DraftBlock, LayoutError> {
        let mut tensors = Vec::new();
        for (linear, matrix, orientation) in &self.maps {
            let fused = linear.projection == Projection::GateUp;
            for piece in &linear.pieces {
                let tensor = piece.tensor;
                let part = piece.member.part();
                let packed = match part {
                    Part::Weight => true,
                    Part::ZeroPoint => tensor.dtype.name() == "I32",
                    _ => false,
                };
                let range = piece.range(expert);
                let range = range
                    .map_err(|source| LayoutError::Size { name: tensor.name.clone(), source })?;
                tensors.push(TensorRecord {
                    name: tensor.name.clone(),
                    dtype: tensor.dtype.clone(),
                    shape: piece.shape.clone(),
                    role: Role { projection: linear.projection, part },
                    orientation: match part {
                        Part::Weight => *orientation,
                        _ => Orientation::Unknown,
                    },
                    gate_up: if fused { self.gate_up } else { GateUp::Unknown },
                    values_per_element: if packed { matrix.values_per_element } else { 1 },
                    sliced: piece.sliced,
                    ranges: vec![range],
                });
            }
        }
        Ok(DraftBlock { tensors, source: Some(Source { expert, column: expert }) })
    }
}

type Oriented<'l, 'a> = [(&'l Linear<'a>, Matrix, Orientation)];
type Reading<'l, 'a> = (ExpertSize, Vec<(&'l Linear<'a>, Matrix, Orientation)>);

/// Whether two readings of the same maps agree.
fn same(one: &Oriented<'_, '_>, other: &Oriented<'_, '_>) -> bool {
    one.iter().map(|(.., axes)| axes).eq(other.iter().map(|(.., axes)| axes))
}

/// Leaves the one reading in which the experts are as wide as the model.
fn decide<'l, 'a>(
    layer: u32,
    readings: Vec<Reading<'l, 'a>>,
    config: Config<'_>,
) -> Result<Vec<Reading<'l, 'a>>, LayoutError> {
    let hidden = config.hidden_size()?;
    let wide = |size: &ExpertSize| hidden.is_none_or(|hidden| size.hidden == Some(hidden));
    let first = readings.first().and_then(|(_, maps)| maps.first()?.0.weight()).map(|w| w.tensor);
    let kept: Vec<_> = readings.iter().filter(|(size, _)| wide(size)).cloned().collect();
    match (kept.len(), first) {
        (1, _) | (_, None) => Ok(kept),
        (0, Some(_)) => Err(misfit(layer, first, "neither axis is config.json's hidden_size")),
        (_, Some(tensor)) => Err(LayoutError::Ambiguous {
            layer,
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            key: "config.json's hidden_size".into(),
        }),
    }
}

/// How a weight's axes are read, where its layout leaves them open to
/// `reading`.
fn orientation(linear: &Linear<'_>, matrix: Matrix, reading: Orientation) -> Orientation {
    let blocks = linear.get(Member::Blocks).is_some();
    match linear.form {
        Form::Dbrx if linear.projection == Projection::Down => Orientation::InOut,
        Form::Stacked if !blocks && matrix.orientation == Orientation::OutIn => reading,
        _ => matrix.orientation,
    }
}

/// The size of an expert with these maps, when they fit together.
fn size(maps: &[(&Linear<'_>, Matrix, Orientation)]) -> Option<ExpertSize> {
    let mut sizes = maps.iter().map(|(linear, matrix, orientation)| {
        let (out, input) = matrix.out_in(*orientation);
        match linear.projection {
            Projection::Down => Some((out, input)),
            Projection::GateUp => (out % 2 == 0).then_some((input, out / 2)),
            _ => Some((input, out)),
        }
    });
    let (hidden, intermediate) = sizes.next()??;
    let agree = sizes.all(|size| size == Some((hidden, intermediate)));
    agree.then_some(ExpertSize { hidden: Some(hidden), intermediate: Some(intermediate) })
}

/// How gate and up share a fused tensor: in two halves, but alternating where
/// experts have biases or MXFP4 blocks, as gpt-oss alone has in fused tensors.
fn gate_up(linears: &[Linear<'_>], config: Config<'_>) -> GateUp {
    let gpt_oss = linears.iter().any(|linear| {
        let told = linear.get(Member::Bias).is_some() || linear.get(Member::Blocks).is_some();
        linear.form == Form::Stacked && told
    });
    match config.model_type() {
        _ if !gpt_oss => GateUp::Concatenated,
        "" | "gpt_oss" => GateUp::Interleaved,
        _ => GateUp::Unknown,
    }
}

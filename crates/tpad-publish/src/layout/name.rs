//! Names: what a tensor's name says of its place and part.

use tpad_manifest::Projection;

use super::member::Member;

/// Components that a layer's number follows.
const LISTS: &[&str] = &["layers", "layer", "blocks", "block", "h"];

/// An expert's linear maps by the names of their modules.
const PROJECTIONS: &[(&str, Projection)] = &[
    ("gate_proj", Projection::Gate),
    ("up_proj", Projection::Up),
    ("down_proj", Projection::Down),
    ("gate_up_proj", Projection::GateUp),
    // Mixtral and all who trained after it.
    ("w1", Projection::Gate),
    ("w3", Projection::Up),
    ("w2", Projection::Down),
    // Grok-1.
    ("linear", Projection::Gate),
    ("linear_v", Projection::Up),
    ("linear_1", Projection::Down),
    // T5 and its kin; without a gate there is one `wi`.
    ("wi_0", Projection::Gate),
    ("wi_1", Projection::Up),
    ("wi", Projection::Up),
    ("wo", Projection::Down),
    ("fc1", Projection::Up),
    ("fc2", Projection::Down),
];

/// Maps that may hold all experts in one tensor below `experts`.
const STACKED: &[&str] = &["gate_up_proj", "gate_proj", "up_proj", "down_proj"];

/// DBRX's, below `experts.mlp`.
const DBRX: &[(&str, Projection)] =
    &[("w1", Projection::Gate), ("v1", Projection::Up), ("w2", Projection::Down)];

/// Maps that hold all experts in one tensor without an `experts` above them,
/// when they have three axes.
const PARALLEL: &[(&str, Projection)] = &[
    ("input_linear", Projection::GateUp),
    ("output_linear", Projection::Down),
    ("gate_proj", Projection::Gate),
    ("up_proj", Projection::Up),
    ("down_proj", Projection::Down),
];

/// A sequence of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Stack {
    /// The model's own.
    Own,
    /// An encoder's.
    Encoder,
    /// A decoder's, beside an encoder or not.
    Decoder,
    /// Multi-token prediction.
    Mtp,
}

/// How a module holds its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Form {
    /// One tensor per expert.
    Each,
    /// `[experts, ...]`; the order of the other two axes is open.
    Stacked,
    /// `[experts, out, in]`.
    Parallel,
    /// DBRX's `[experts * inner, hidden]` for all three maps.
    Dbrx,
}

/// Where a tensor of an expert belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpertTensor<'a> {
    /// The layers.
    pub(super) stack: Stack,
    /// The layer's number in the name.
    pub(super) number: u32,
    /// The path of the module that holds experts and router.
    pub(super) module: &'a str,
    /// How it holds them.
    pub(super) form: Form,
    /// The expert; `None` when the tensor holds all.
    pub(super) expert: Option<u32>,
    /// The linear map.
    pub(super) projection: Projection,
    /// The name up to the map.
    pub(super) stem: &'a str,
    /// The tensor's part in the map.
    pub(super) member: Member,
}

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading<'a> {
    /// An expert's tensor.
    Expert(ExpertTensor<'a>),
    /// Something among experts that has no known part.
    Unknown,
    /// Nothing of experts.
    Other,
}

/// Reads a tensor's name. `rank` is its number of axes.
pub(super) fn read(name: &str, rank: usize) -> Reading<'_> {
    let Some((stack, number, rest)) = layer(name) else {
        let among = name.split('.').any(|component| component == "experts");
        return if among { Reading::Unknown } else { Reading::Other };
    };
    let scope = Scope { name, stack, number };
    if let Some(at) = find_component(name, rest, "experts") {
        let Some(tail) = name.get(at + "experts.".len()..) else { return Reading::Unknown };
        let module = name[..at].trim_end_matches('.');
        let found = scope.each(module, tail).or_else(|| scope.stacked(module, tail));
        if let Some(found) = found.or_else(|| scope.parallel(rank)) {
            return Reading::Expert(found);
        }
        return Reading::Unknown;
    }
    scope.parallel(rank).map_or(Reading::Other, Reading::Expert)
}

/// The layers, the layer's number, and where the name goes on after it.
fn layer(name: &str) -> Option<(Stack, u32, usize)> {
    let mut stack = Stack::Own;
    let mut start = 0;
    let mut listed = false;
    for component in name.split('.') {
        let end = start + component.len();
        if listed && let Some(number) = digits(component) {
            return Some((stack, number, end + 1));
        }
        listed = LISTS.contains(&component) || component == "mtp";
        match component {
            "encoder" => stack = Stack::Encoder,
            "decoder" => stack = Stack::Decoder,
            "mtp" => stack = Stack::Mtp,
            _ => {}
        }
        start = end + 1;
    }
    None
}

/// A number without leading zeros.
fn digits(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// Where `wanted` starts as a component of `name`, from byte `from` on.
fn find_component(name: &str, from: usize, wanted: &str) -> Option<usize> {
    let mut start = from;
    for component in name.get(from..)?.split('.') {
        if component == wanted {
            return Some(start);
        }
        start += component.len() + 1;
    }
    None
}

fn projection(table: &[(&str, Projection)], name: &str) -> Option<Projection> {
    table.iter().find(|(known, _)| *known == name).map(|(_, projection)| *projection)
}

#[derive(Clone, Copy)]
struct Scope<'a> {
    name: &'a str,
    stack: Stack,
    number: u32,
}

impl<'a> Scope<'a> {
    /// `E.map.member`, `expert_E.map.member` or `map.E.member`.
    fn each(self, module: &'a str, tail: &'a str) -> Option<ExpertTensor<'a>> {
        let (first, rest) = tail.split_once('.')?;
        let (second, member) = rest.split_once('.')?;
        let (expert, map) = match digits(first.strip_prefix("expert_").unwrap_or(first)) {
            Some(expert) => (expert, second),
            None => (digits(second)?, first),
        };
        let stem = &self.name[..self.name.len() - member.len() - 1];
        let projection = projection(PROJECTIONS, map)?;
        self.found(module, Form::Each, Some(expert), projection, stem, Member::named(member)?)
    }

    /// `map`, `map_member` or `map.member`; DBRX's `mlp.map`.
    fn stacked(self, module: &'a str, tail: &'a str) -> Option<ExpertTensor<'a>> {
        let before = self.name.len() - tail.len();
        if let Some(map) = tail.strip_prefix("mlp.") {
            let map = map.strip_suffix(".weight").unwrap_or(map);
            let stem = &self.name[..before + "mlp.".len() + map.len()];
            let projection = projection(DBRX, map)?;
            return self.found(module, Form::Dbrx, None, projection, stem, Member::Weight);
        }
        let map = STACKED.iter().find(|map| tail.starts_with(**map))?;
        let (map, suffix) = tail.split_at(map.len());
        let stem = &self.name[..before + map.len()];
        let projection = projection(PROJECTIONS, map)?;
        self.found(module, Form::Stacked, None, projection, stem, Member::suffixed(suffix)?)
    }

    /// `map.weight` with three axes, and `map.member` of any shape.
    fn parallel(self, rank: usize) -> Option<ExpertTensor<'a>> {
        let (stem, member) = self.name.rsplit_once('.')?;
        let (module, map) = stem.rsplit_once('.')?;
        let projection = projection(PARALLEL, map)?;
        if rank != 3 || member != "weight" {
            return None;
        }
        let linear = map == "input_linear" || map == "output_linear";
        let form = if linear { Form::Parallel } else { Form::Stacked };
        self.found(module, form, None, projection, stem, Member::Weight)
    }

    fn found(
        self,
        module: &'a str,
        form: Form,
        expert: Option<u32>,
        projection: Projection,
        stem: &'a str,
        member: Member,
    ) -> Option<ExpertTensor<'a>> {
        let Self { stack, number, .. } = self;
        Some(ExpertTensor { stack, number, module, form, expert, projection, stem, member })
    }
}

/// Maps that belong together, by the names of their modules.
const FAMILIES: &[&[(&str, Projection)]] = &[
    &[
        ("gate_proj", Projection::Gate),
        ("up_proj", Projection::Up),
        ("down_proj", Projection::Down),
    ],
    &[("gate_up_proj", Projection::GateUp), ("down_proj", Projection::Down)],
    &[("w1", Projection::Gate), ("w3", Projection::Up), ("w2", Projection::Down)],
    DBRX,
    &[("linear", Projection::Gate), ("linear_v", Projection::Up), ("linear_1", Projection::Down)],
    &[("wi_0", Projection::Gate), ("wi_1", Projection::Up), ("wo", Projection::Down)],
    &[("wi", Projection::Up), ("wo", Projection::Down)],
    &[("fc1", Projection::Up), ("fc2", Projection::Down)],
    &[("input_linear", Projection::GateUp), ("output_linear", Projection::Down)],
];

/// Whether a map of this name always has a gate beside it.
pub(super) fn is_gated(stem: &str) -> bool {
    let map = stem.rsplit('.').next().unwrap_or_default();
    ["w3", "v1", "linear_v", "wi_1"].contains(&map)
}

/// What the map `wanted` would be called where `tensor`, of the map at `stem`,
/// is there. Modules that hold experts in one tensor fuse gate and up.
pub(super) fn partner(stem: &str, tensor: &str, wanted: Projection, form: Form) -> String {
    let suffix = tensor.get(stem.len()..).unwrap_or_default();
    let mut components: Vec<&str> = stem.split('.').collect();
    let name = |family: &&&[(&'static str, Projection)]| {
        let has = |projection| {
            let found = family.iter().find(|(_, known)| *known == projection);
            found.map(|(map, _)| *map)
        };
        let fused = has(Projection::GateUp).filter(|_| wanted == Projection::Up);
        let at = components.iter().rposition(|c| family.iter().any(|(map, _)| map == c))?;
        let usual = has(Projection::GateUp).is_some() == (form != Form::Each && form != Form::Dbrx);
        let dbrx = has(Projection::Up) == Some("v1");
        let fits = dbrx == (form == Form::Dbrx);
        Some((usual, at, has(wanted).or(fused)?)).filter(|_| fits)
    };
    let found: Vec<_> = FAMILIES.iter().filter_map(|family| name(&family)).collect();
    let best = found.iter().find(|(usual, ..)| *usual).or(found.first());
    let Some((_, at, map)) = best.copied() else { return tensor.to_string() };
    if let Some(component) = components.get_mut(at) {
        *component = map;
    }
    format!("{}{suffix}", components.join("."))
}

/// The name of `tensor` if it were expert `to`'s and not expert `from`'s.
pub(super) fn renumber(tensor: &str, from: u32, to: u32) -> String {
    let mut components: Vec<String> = tensor.split('.').map(str::to_string).collect();
    let experts = components.iter().position(|component| component == "experts").unwrap_or(0);
    let (plain, prefixed) = (from.to_string(), format!("expert_{from}"));
    for component in components.iter_mut().skip(experts) {
        if *component == plain {
            *component = to.to_string();
            break;
        }
        if *component == prefixed {
            *component = format!("expert_{to}");
            break;
        }
    }
    components.join(".")
}

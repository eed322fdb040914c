//! What must hold within a header and its segments.

use std::collections::BTreeMap;

use super::{BlockTemplate, GroupRun, IndexHeader, LOOSE, LooseBlock, Segment, SegmentEntry};
use crate::{ImageLayout, Problem, SizeError, check_object_path};

/// Problems reported for one segment; what follows the first few is more of
/// the same.
const MAX_PROBLEMS: usize = 32;

/// Tensors of one block; real blocks have a few dozen at most.
const MAX_TENSORS: usize = 1024;

impl IndexHeader {
    /// Everything that is wrong with the header alone.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (n, object) in self.objects.iter().enumerate() {
            if let Err(error) = check_object_path(&object.path) {
                let message = format!("{:?}: {error}", object.path);
                problems.push(Problem::new(format!("object {n}"), message));
            }
        }
        for (n, template) in self.templates.iter().enumerate() {
            if template.tensors.is_empty() || template.tensors.len() > MAX_TENSORS {
                let message =
                    format!("{} tensors, 1 to {MAX_TENSORS} are expected", template.tensors.len());
                problems.push(Problem::new(format!("template {n}"), message));
            }
            if let Err(error) = sizes(template) {
                problems.push(Problem::new(format!("template {n}"), error.to_string()));
            }
        }
        for (n, pair) in self.segments.windows(2).enumerate() {
            if pair[0].layer >= pair[1].layer {
                let message = format!("layer {} follows layer {}", pair[1].layer, pair[0].layer);
                problems.push(Problem::new(format!("segment {}", n + 1), message));
            }
        }
        for (n, entry) in self.segments.iter().enumerate() {
            if entry.offset.checked_add(entry.bytes).is_none() {
                problems.push(Problem::new(format!("segment {n}"), "its range overflows"));
            }
        }
        problems
    }
}

/// Image bytes, parameters and tensor sizes of a template's blocks.
fn sizes(template: &BlockTemplate) -> Result<(u64, u64, Vec<u64>), SizeError> {
    let mut bytes = Vec::with_capacity(template.tensors.len());
    let mut parameters = 0u64;
    for tensor in &template.tensors {
        bytes.push(tensor.bytes()?);
        parameters = parameters
            .checked_add(tensor.parameters()?)
            .ok_or_else(|| SizeError::Overflow(tensor.shape.clone(), tensor.dtype.clone()))?;
    }
    let image = ImageLayout::of(bytes.iter().copied())?.bytes;
    Ok((image, parameters, bytes))
}

/// Sums over a segment, to be compared with its entry.
#[derive(Default)]
struct Totals {
    image_bytes: u64,
    parameters: u64,
    overflow: bool,
}

impl Totals {
    fn add(&mut self, image_bytes: u64, parameters: u64, times: u64) {
        let sum = |total: u64, each: u64| each.checked_mul(times)?.checked_add(total);
        match (sum(self.image_bytes, image_bytes), sum(self.parameters, parameters)) {
            (Some(image_bytes), Some(parameters)) => {
                (self.image_bytes, self.parameters) = (image_bytes, parameters);
            }
            _ => self.overflow = true,
        }
    }
}

impl Segment {
    /// Everything that is wrong with the segment, against its header and the
    /// header's entry for it.
    #[must_use]
    pub fn check(&self, header: &IndexHeader, entry: &SegmentEntry) -> Vec<Problem> {
        let mut problems = Vec::new();
        let place = format!("layer {}", entry.layer);
        if self.layer != entry.layer {
            let message = format!("the segment says it is layer {}", self.layer);
            problems.push(Problem::new(place.clone(), message));
        }
        let mut totals = Totals::default();
        if let Err(problem) = self.check_columns(header, &place) {
            problems.push(problem);
            return problems;
        }
        self.check_templated(header, &place, &mut totals, &mut problems);
        let loose_experts = self.experts() - count_templated(&self.groups);
        for (n, block) in self.loose.iter().enumerate() {
            let place = format!("{place}, loose block {n}");
            let expert = (n as u64) < loose_experts;
            check_loose(header, block, expert, &place, &mut totals, &mut problems);
        }
        for (what, found, declared) in [
            ("blocks", self.block_count(), entry.blocks),
            ("image bytes", totals.image_bytes, entry.image_bytes),
            ("parameters", totals.parameters, entry.parameters),
        ] {
            if found != declared || totals.overflow {
                let message = format!("{found} {what}, the header declares {declared}");
                problems.push(Problem::new(place.clone(), message));
            }
        }
        problems.truncate(MAX_PROBLEMS);
        problems
    }

    /// Whether every column is as long as the groups need.
    fn check_columns(&self, header: &IndexHeader, place: &str) -> Result<(), Problem> {
        let wrong = |message: String| Err(Problem::new(place, message));
        let experts = self.experts();
        let mut cells = 0u64;
        for (n, run) in self.groups.iter().enumerate() {
            if run.template == LOOSE {
                continue;
            }
            let Some(template) = super::template(header, run) else {
                return wrong(format!(
                    "group {n} names template {}, there are {}",
                    run.template,
                    header.templates.len()
                ));
            };
            let tensors = template.tensors.len() as u64;
            match u64::from(run.experts).checked_mul(tensors).and_then(|n| n.checked_add(cells)) {
                Some(sum) => cells = sum,
                None => return wrong(format!("group {n} overflows")),
            }
        }
        for (what, column, width, expected) in [
            ("block ids", &self.block_ids, 32, experts),
            ("source experts", &self.source_experts, 4, experts),
            ("router columns", &self.router_columns, 4, experts),
            ("objects", &self.objects, 4, cells),
            ("offsets", &self.offsets, 8, cells),
        ] {
            if expected.checked_mul(width) != Some(column.len() as u64) {
                let message = format!(
                    "the column of {what} has {} bytes, {expected} cells of {width} are expected",
                    column.len()
                );
                return wrong(message);
            }
        }
        let loose_experts = experts - count_templated(&self.groups);
        let loose = self.loose.len() as u64;
        let dense = header.tier.is_none();
        if loose < loose_experts || (!dense && loose > loose_experts + 1) {
            return wrong(format!(
                "{loose} blocks are spelled out, {loose_experts} and perhaps a router are expected"
            ));
        }
        Ok(())
    }

    fn check_templated(
        &self,
        header: &IndexHeader,
        place: &str,
        totals: &mut Totals,
        problems: &mut Vec<Problem>,
    ) {
        let mut cell = 0;
        // Groups are many and cheap to write down: each template is read once.
        let mut known = BTreeMap::new();
        for (group, run) in self.groups.iter().enumerate() {
            if run.template == LOOSE {
                continue;
            }
            let sized = known
                .entry(run.template)
                .or_insert_with(|| super::template(header, run).map(sizes));
            let Some(Ok((image, parameters, bytes))) = sized else {
                problems.push(Problem::new(place, format!("group {group}'s template has no size")));
                return;
            };
            totals.add(*image, *parameters, u64::from(run.experts));
            for expert in 0..run.experts {
                let mut ranges: Vec<(u32, u64, u64)> = Vec::with_capacity(bytes.len());
                for bytes in &*bytes {
                    let range = self.object(cell).zip(self.offset(cell));
                    if let Some((object, offset)) = range {
                        ranges.push((object, offset, *bytes));
                    }
                    cell += 1;
                }
                if let Err(message) = check_ranges(header, &mut ranges)
                    && problems.len() < MAX_PROBLEMS
                {
                    let place = format!("{place}, group {group}, expert {expert}");
                    problems.push(Problem::new(place, message));
                }
            }
        }
    }
}

fn count_templated(groups: &[GroupRun]) -> u64 {
    groups.iter().filter(|run| run.template != LOOSE).map(|run| u64::from(run.experts)).sum()
}

fn check_loose(
    header: &IndexHeader,
    block: &LooseBlock,
    expert: bool,
    place: &str,
    totals: &mut Totals,
    problems: &mut Vec<Problem>,
) {
    if problems.len() >= MAX_PROBLEMS {
        return;
    }
    if block.tensors.is_empty() || block.tensors.len() > MAX_TENSORS {
        problems.push(Problem::new(place, format!("{} tensors", block.tensors.len())));
        return;
    }
    let tensors = block.tensors.iter().map(|loose| loose.tensor.clone()).collect();
    match sizes(&BlockTemplate { tensors }) {
        Ok((image, parameters, bytes)) => {
            totals.add(image, if expert { parameters } else { 0 }, 1);
            for (tensor, bytes) in block.tensors.iter().zip(bytes) {
                let sum = tensor.ranges.iter().try_fold(0u64, |sum, r| sum.checked_add(r.bytes));
                if sum != Some(bytes) {
                    let message = format!(
                        "the ranges of {} do not add up to its {bytes} bytes",
                        tensor.tensor.name
                    );
                    problems.push(Problem::new(place, message));
                }
            }
        }
        Err(error) => problems.push(Problem::new(place, error.to_string())),
    }
    let ranges = block.tensors.iter().flat_map(|tensor| &tensor.ranges);
    let mut ranges: Vec<_> =
        ranges.map(|range| (range.object, range.offset, range.bytes)).collect();
    if let Err(message) = check_ranges(header, &mut ranges) {
        problems.push(Problem::new(place, message));
    }
}

/// Whether ranges lie inside their objects and apart from each other.
fn check_ranges(header: &IndexHeader, ranges: &mut [(u32, u64, u64)]) -> Result<(), String> {
    for (object, offset, bytes) in &*ranges {
        let known = usize::try_from(*object).ok().and_then(|n| header.objects.get(n));
        let Some(known) = known else {
            return Err(format!("object {object} of {}", header.objects.len()));
        };
        match offset.checked_add(*bytes) {
            Some(end) if end <= known.bytes => {}
            _ => {
                return Err(format!(
                    "bytes {offset} and {bytes} more are beyond the end of {} at {}",
                    known.path, known.bytes
                ));
            }
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((object, start, bytes), (next_object, next, next_bytes)) = (pair[0], pair[1]);
        if object == next_object && start + bytes > next && bytes > 0 && next_bytes > 0 {
            return Err(format!("two of its ranges overlap at byte {next} of object {object}"));
        }
    }
    Ok(())
}

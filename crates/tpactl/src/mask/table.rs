//! A mask for people.

use tpad_manifest::{CostClass, LayerTier, ResidentMask, RoutingMask, SetOrigin};

use crate::output::{Output, printable};

const COSTS: [CostClass; 5] = [
    CostClass::Hbm,
    CostClass::Dram,
    CostClass::Nvme,
    CostClass::ObjectStore,
    CostClass::Unavailable,
];

pub(super) fn text(mask: &RoutingMask, output: &Output) -> String {
    let mut parts = vec![format!(
        "revision {}, {}: {} of {} active tiers for a token",
        mask.revision,
        origin(&mask.origin),
        mask.k_tier,
        mask.tiers.len()
    )];
    let rows: Vec<Vec<String>> = mask
        .tiers
        .iter()
        .map(|tier| {
            let experts: Vec<String> =
                tier.groups.iter().map(|bits| bits.ones().to_string()).collect();
            vec![
                tier.tier.clone(),
                tier.k_group.to_string(),
                tier.k_expert.to_string(),
                experts.join("+"),
            ]
        })
        .collect();
    parts.push(output.table(&["TIER", "K_GROUP", "K_EXPERT", "EXPERTS"], &rows));
    if !mask.masked.is_empty() {
        let row = |masked: &tpad_manifest::MaskedTier| {
            vec![masked.tier.clone(), masked.reason.as_str().to_owned(), masked.detail.clone()]
        };
        let rows: Vec<Vec<String>> = mask.masked.iter().map(row).collect();
        parts.push(output.table(&["MASKED", "REASON", "DETAIL"], &rows));
    }
    if let Some(resident) = &mask.resident {
        parts.push(layers(mask, resident, output));
    }
    parts.join("\n\n")
}

fn origin(origin: &SetOrigin) -> String {
    match origin {
        SetOrigin::Default => "the manifest's default tier set".to_owned(),
        SetOrigin::Tiers => "the tiers asked for".to_owned(),
        SetOrigin::UpTo(last) => format!("all tiers up to {}", printable(last)),
        SetOrigin::Configuration(name) => {
            format!("tier set {} of the daemon's configuration", printable(name))
        }
        SetOrigin::Manifest(name) => format!("tier set {} of the manifest", printable(name)),
    }
}

/// By layer and tier: how many experts may be picked, and how many are where.
fn layers(mask: &RoutingMask, resident: &ResidentMask, output: &Output) -> String {
    let mut rows = Vec::new();
    for layer in &resident.layers {
        for (found, tier) in layer.tiers.iter().zip(&mask.tiers) {
            let open: u64 = found.groups.iter().map(|group| u64::from(group.experts.ones())).sum();
            let mut row = vec![layer.layer.to_string(), tier.tier.clone(), open.to_string()];
            row.extend(COSTS.map(|cost| count(found, cost).to_string()));
            rows.push(row);
        }
    }
    let open = format!("{} OR FASTER", resident.level.as_str().to_uppercase());
    let mut headings = vec!["LAYER".to_owned(), "TIER".to_owned(), open];
    headings.extend(COSTS.map(|cost| cost.as_str().to_uppercase()));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    output.table(&headings, &rows)
}

fn count(tier: &LayerTier, cost: CostClass) -> usize {
    let costs = tier.groups.iter().flat_map(|group| &group.costs);
    costs.filter(|found| **found == cost).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_counts_experts_and_says_what_was_masked() {
        let output = Output::for_terminal(false, Some(std::ffi::OsStr::new("1")));
        let shown = text(&crate::mask::example(), &output);
        let expected = "\
revision 4, the tiers asked for: 2 of 2 active tiers for a token

TIER  K_GROUP  K_EXPERT  EXPERTS
a     1        2         2
7     1        2         1+3

MASKED  REASON           DETAIL
b       not_in_tier_set  why
c       unknown_tier     why

LAYER  TIER  DRAM OR FASTER  HBM  DRAM  NVME  OBJECT_STORE  UNAVAILABLE
5      a     1               0    1     0     1             0
5      7     2               1    1     1     0             1";
        assert_eq!(shown, expected);
    }
}

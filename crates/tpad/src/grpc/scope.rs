//! Scopes and amounts as the wire has them.

use tonic::Status;
use tpad_engine::{Scope, Totals};
use tpad_manifest::{ExpertKey, TierId};
use tpad_proto::v1;

use super::call::Call;
use super::status;

/// Names in one scope: enough for every expert of a layer, few enough to be
/// looked up at once.
const SCOPE_ENTRIES: usize = 10_000;

pub(super) fn amount(totals: Totals) -> v1::Amount {
    v1::Amount { blocks: totals.blocks, bytes: totals.bytes }
}

/// A scope, or what is wrong with it.
pub(super) fn read_scope(scope: v1::Scope, call: &Call) -> Result<Scope, Status> {
    let v1::Scope { tiers, groups, experts, layers } = scope;
    let entries = [tiers.len(), groups.len(), experts.len(), layers.len()];
    let entries = entries.into_iter().fold(0, usize::saturating_add);
    if entries > SCOPE_ENTRIES {
        let problem = format!("{entries} names, at most {SCOPE_ENTRIES} are looked up: name tiers");
        return Err(status::invalid("scope", &problem, call));
    }
    let tier = |text: String| {
        let id: Result<TierId, _> = text.parse();
        id.map_err(|error| status::invalid("scope", &error.to_string(), call))
    };
    let tiers = tiers.into_iter().map(tier).collect::<Result<Vec<_>, _>>()?;
    let groups = groups.into_iter().map(|key| Ok((tier(key.tier)?, key.group)));
    let groups = groups.collect::<Result<Vec<_>, Status>>()?;
    let expert = |key| {
        ExpertKey::try_from(key).map_err(|error: tpad_proto::WireError| {
            status::invalid("scope", &error.to_string(), call)
        })
    };
    let experts = experts.into_iter().map(expert).collect::<Result<Vec<_>, _>>()?;
    Ok(Scope::new(tiers, groups, experts, layers))
}

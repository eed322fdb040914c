//! Commands that decide which revision the daemons of a root serve.

pub(crate) mod activate;
pub(crate) mod revisions;
pub(crate) mod rollback;

use serde::Serialize;
use tpad_manifest::Activation;
use tpad_publish::ActivationError;

use crate::failure::{Exit, Failure};
use crate::output::{Output, printable};

/// What `--json` prints of a record.
#[derive(Serialize)]
struct Recorded {
    activation: u64,
    revision: u64,
    /// `null` for the manifest's own.
    default_tier_set: Option<Vec<String>>,
    created_at: Option<String>,
    reason: Option<String>,
}

impl From<&Activation> for Recorded {
    fn from(record: &Activation) -> Self {
        let tiers = record.default_tier_set.as_ref();
        Self {
            activation: record.activation,
            revision: record.revision,
            default_tier_set: tiers.map(|tiers| tiers.iter().map(ToString::to_string).collect()),
            created_at: record.created_at.map(|time| time.to_string()),
            reason: record.reason.clone(),
        }
    }
}

/// Says what was recorded.
fn report(record: &Activation, output: &Output) -> Result<(), Failure> {
    let record = Recorded::from(record);
    if output.is_json() {
        return output.json(&record);
    }
    let Recorded { activation, revision, .. } = record;
    let tiers = record.default_tier_set.map_or_else(
        || "the manifest's default tiers".to_owned(),
        |tiers| format!("default tiers {}", printable(&tiers.join(" "))),
    );
    output.text(format_args!("activation {activation}: revision {revision}, {tiers}"))
}

impl From<ActivationError> for Failure {
    fn from(error: ActivationError) -> Self {
        Self::new(Exit::from(error.kind()), error)
    }
}

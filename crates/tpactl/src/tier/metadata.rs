//! `tpactl tier set-placement` and `tpactl tier set-budget`.

use tokio_util::sync::CancellationToken;
use tpad_manifest::{Placement, TierId};
use tpad_publish::Amendment;

use crate::failure::Failure;
use crate::output::Output;
use crate::publish::{Target, amend_and_report};
use crate::surroundings::Surroundings;

/// Give a tier another home
///
/// Metadata: the same keys resolve to the same bytes and route alike.
#[derive(Debug, clap::Args)]
pub(super) struct SetPlacement {
    #[command(flatten)]
    target: Target,

    /// The tier
    #[arg(value_name = "ID", value_parser = super::tier_id)]
    id: TierId,

    /// Its home: hbm, dram, nvme or object_store
    #[arg(value_name = "P", value_parser = super::placement)]
    placement: Placement,
}

/// Raise a tier's parameter budget, or lower it to no less than its experts have
///
/// Metadata: the same keys resolve to the same bytes and route alike.
#[derive(Debug, clap::Args)]
pub(super) struct SetBudget {
    #[command(flatten)]
    target: Target,

    /// The tier
    #[arg(value_name = "ID", value_parser = super::tier_id)]
    id: TierId,

    /// The most logical parameters that its experts may have: 10B, 700M
    #[arg(value_name = "N", value_parser = super::parameters)]
    budget: u64,
}

impl SetPlacement {
    pub(super) async fn run(
        self,
        surroundings: &Surroundings,
        output: &Output,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let amendment = Amendment::Placement { tier: self.id, placement: self.placement };
        amend_and_report(self.target, &amendment, false, surroundings, output, stop).await
    }
}

impl SetBudget {
    pub(super) async fn run(
        self,
        surroundings: &Surroundings,
        output: &Output,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let amendment = Amendment::Budget { tier: self.id, budget: self.budget };
        amend_and_report(self.target, &amendment, false, surroundings, output, stop).await
    }
}

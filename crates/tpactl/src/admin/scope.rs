//! What of a model a command is about.

use tpad_client::Scope;
use tpad_manifest::{ExpertKey, TierId};

/// Tiers, groups and experts, which add up.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Scope")]
pub(super) struct ScopeArgs {
    /// A whole tier, its routers too; may be repeated
    #[arg(long, value_name = "T")]
    tier: Vec<String>,

    /// All experts of a group; may be repeated
    #[arg(long, value_name = "T/G", value_parser = group)]
    group: Vec<(String, u32)>,

    /// One expert; may be repeated
    #[arg(long, value_name = "T/G/E", value_parser = expert)]
    expert: Vec<ExpertKey>,

    /// At this layer alone; may be repeated
    #[arg(long, value_name = "L")]
    layer: Vec<u32>,
}

impl ScopeArgs {
    /// The scope; `None` when nothing was named.
    pub(super) fn scope(self) -> Option<Scope> {
        let Self { tier, group, expert, layer } = self;
        let scope = Scope { tiers: tier, groups: group, experts: expert, layers: layer };
        (scope != Scope::default()).then_some(scope)
    }
}

fn group(text: &str) -> Result<(String, u32), String> {
    let parts = text.rsplit_once('/').filter(|(tier, _)| !tier.is_empty());
    parts
        .and_then(|(tier, group)| Some((tier.to_owned(), group.parse().ok()?)))
        .ok_or_else(|| "TIER/GROUP is expected, such as tier_1b/0".to_owned())
}

fn expert(text: &str) -> Result<ExpertKey, String> {
    let wrong = || "TIER/GROUP/EXPERT is expected, such as tier_1b/0/3".to_owned();
    let (rest, expert) = text.rsplit_once('/').ok_or_else(wrong)?;
    let (tier, group) = group(rest).map_err(|_| wrong())?;
    let tier: TierId =
        tier.parse().map_err(|error: tpad_manifest::TierIdError| error.to_string())?;
    Ok(ExpertKey { tier, group, expert: expert.parse().map_err(|_| wrong())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_experts_are_read_from_their_end() {
        assert_eq!(group("a/0"), Ok(("a".to_owned(), 0)));
        let key = expert("a/1/2").expect("an expert");
        assert_eq!((key.tier.to_string().as_str(), key.group, key.expert), ("a", 1, 2));
        for text in ["", "a", "/0", "a/", "a/x", "a/-1"] {
            assert!(group(text).is_err() && expert(text).is_err(), "{text}");
        }
    }
}

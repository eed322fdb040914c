//! Etags: equal masks have equal ones, on every daemon.

use super::{ExpertBits, LayerSources, ResidentMask, RoutingMask, SetOrigin, TierMask};
use crate::Digest;

/// Bytes of the digest that an etag shows: enough to tell masks apart, short
/// enough to be compared by eye.
const SHOWN_BYTES: usize = 16;

impl RoutingMask {
    /// A text that changes when anything in the mask does.
    #[must_use]
    pub fn etag(&self) -> String {
        let Self { revision, origin, tiers, k_tier, masked, resident } = self;
        let mut all = Content::default();
        all.number(*revision);
        all.origin(origin);
        all.list(tiers, Content::tier);
        all.number((*k_tier).into());
        all.list(masked, |all, masked| {
            all.text(&masked.tier);
            all.text(masked.reason.as_str());
            all.text(&masked.detail);
        });
        all.list(resident.as_slice(), Content::resident);
        let digest = Digest::of(&all.0);
        digest.as_bytes().iter().take(SHOWN_BYTES).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A mask's content as bytes that no other mask has: every text and list comes
/// with its length.
#[derive(Default)]
struct Content(Vec<u8>);

impl Content {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for item in items {
            each(self, item);
        }
    }

    fn origin(&mut self, origin: &SetOrigin) {
        let (kind, name) = match origin {
            SetOrigin::Default => ("default", ""),
            SetOrigin::Tiers => ("tiers", ""),
            SetOrigin::UpTo(last) => ("up_to", &**last),
            SetOrigin::Configuration(name) => ("configuration", &**name),
            SetOrigin::Manifest(name) => ("manifest", &**name),
        };
        self.text(kind);
        self.text(name);
    }

    fn tier(&mut self, tier: &TierMask) {
        let TierMask { tier, k_group, k_expert, groups, indexed, sources } = tier;
        self.text(tier);
        self.number((*k_group).into());
        self.number((*k_expert).into());
        self.list(groups, Self::bits);
        self.number((*indexed).into());
        self.list(sources, |all, LayerSources { layers, groups }| {
            all.list(layers, |all, layer| all.number((*layer).into()));
            all.list(groups, |all, group| {
                all.list(group, |all, source| {
                    all.number(source.expert.into());
                    all.number(source.column.into());
                });
            });
        });
    }

    fn bits(&mut self, bits: &ExpertBits) {
        self.number(bits.experts().into());
        self.bytes(bits.as_bytes());
    }

    fn resident(&mut self, resident: &ResidentMask) {
        self.text(resident.level.as_str());
        self.list(&resident.layers, |all, layer| {
            all.number(layer.layer.into());
            all.list(&layer.tiers, |all, tier| {
                all.list(&tier.groups, |all, group| {
                    all.bits(&group.experts);
                    all.list(&group.costs, |all, cost| all.0.push(*cost as u8));
                });
            });
        });
    }
}

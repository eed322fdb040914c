//! A revision is refused, or it is one: written out and read again it is equal.

use crate::bounded;
use tpad_manifest::{Manifest, TierRecord};

/// Reads an input: whether it is accepted.
///
/// # Panics
/// When it is neither refused nor right.
pub fn revision(document: &[u8]) -> bool {
    let tier = bounded(document, || TierRecord::parse(document));
    if let Ok(tier) = tier {
        let text = serde_json::to_vec(&tier).expect("a tier can be written");
        assert_eq!(TierRecord::parse(&text), Ok(tier), "a tier that was read is another");
    }
    let loaded = match bounded(document, || Manifest::parse(document)) {
        Ok(loaded) => loaded,
        Err(rejected) => {
            assert!(!rejected.0.is_empty(), "refused for nothing");
            assert!(rejected.to_string().len() < 64 << 10 | document.len(), "a long refusal");
            return false;
        }
    };
    assert_eq!(loaded.manifest.check(), [], "accepted, though it has problems");
    let text = loaded.manifest.to_json();
    let again = Manifest::parse(text.as_bytes()).expect("what was accepted is accepted again");
    assert_eq!(again.manifest, loaded.manifest, "another manifest");
    assert_eq!(again.skipped, loaded.skipped, "other tiers are skipped");
    for tier in &loaded.manifest.tiers {
        assert_eq!(loaded.manifest.tier(&tier.id.to_string()), Some(tier), "ids are names");
    }
    true
}

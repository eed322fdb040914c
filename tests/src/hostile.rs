//! Malformed revisions, index headers, index segments and shard headers, each
//! with the place that its refusal must name.
//!
//! The cases are made here, one after the other and always the same, and kept
//! in `tests/hostile/corpus`: a reader is judged by the kept files, so a change
//! of this generator cannot quietly make the corpus easier. Cases of more than
//! [`KEPT_BYTES`] are kept as their name alone and made when they are needed.
//!
//! Nothing here uses tpad's own encoders: a mistake that writer and reader
//! share would hide itself.

mod header;
mod large;
mod proto;
mod revision;
mod seeds;
mod segment;
mod shard;

use std::fmt;
use std::path::PathBuf;

use crate::tools;

pub use header::{around as index_around, sound as sound_header};
pub use revision::sound as sound_revision;
pub use segment::sound as sound_segment;
pub use shard::sound as sound_shard;

/// Larger cases are made when they are needed and not kept.
pub const KEPT_BYTES: usize = 4 << 10;

/// What a case pretends to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `tpad/revisions/N.json`.
    Revision,
    /// An index object up to the end of its header.
    Header,
    /// One segment of the index whose header is [`sound_header`].
    Segment,
    /// A safetensors file up to the end of its header.
    Shard,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Revision, Self::Header, Self::Segment, Self::Shard];

    /// The directory of its cases.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Revision => "revision",
            Self::Header => "header",
            Self::Segment => "segment",
            Self::Shard => "shard",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is claimed of a case's bytes elsewhere: by the manifest of a header, by
/// the header of a segment, by the file system of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Claim {
    /// The truth.
    #[default]
    Truth,
    /// Another digest.
    OtherDigest,
    /// One byte more than there is.
    OneMore,
    /// One byte less than there is.
    OneLess,
    /// As many bytes as 64 bits can say.
    Endless,
    /// The whole object or file has this many bytes.
    Whole(u64),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truth => f.write_str("truth"),
            Self::OtherDigest => f.write_str("other-digest"),
            Self::OneMore => f.write_str("one-more"),
            Self::OneLess => f.write_str("one-less"),
            Self::Endless => f.write_str("endless"),
            Self::Whole(bytes) => write!(f, "whole-{bytes}"),
        }
    }
}

/// One malformed file.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it pretends to be.
    pub kind: Kind,
    /// Its name in its kind's directory.
    pub name: String,
    /// What is claimed of it.
    pub claim: Claim,
    /// The place that the refusal must name.
    pub place: String,
    /// What the refusal must say.
    pub says: String,
    /// The file.
    pub bytes: Vec<u8>,
}

impl Case {
    /// Its line in `expected.tsv`: kind, name, size, BLAKE3 (so that cases
    /// which are not kept cannot change unseen), claim, place, words.
    #[must_use]
    pub fn line(&self) -> String {
        let digest = blake3::hash(&self.bytes).to_hex();
        let Self { kind, name, claim, place, says, bytes } = self;
        format!("{kind}\t{name}\t{}\t{}\t{claim}\t{place}\t{says}", bytes.len(), &digest[..16])
    }

    /// Where its file is kept; `None` when it is too large to be.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let path = directory().join(self.kind.name()).join(&self.name);
        (self.bytes.len() <= KEPT_BYTES).then_some(path)
    }
}

/// The corpus.
#[must_use]
pub fn directory() -> PathBuf {
    tools::workspace().join("tests/hostile/corpus")
}

/// The table that says what is expected of every case.
#[must_use]
pub fn table() -> PathBuf {
    tools::workspace().join("tests/hostile/expected.tsv")
}

/// Makes every case in the order of the table, one at a time: all of them
/// together would fill hundreds of megabytes.
pub fn each(mut see: impl FnMut(Case)) {
    let mut cases = Cases(&mut see);
    revision::cases(&mut cases);
    header::cases(&mut cases);
    segment::cases(&mut cases);
    shard::cases(&mut cases);
    large::cases(&mut cases);
}

/// Where cases go.
struct Cases<'a>(&'a mut dyn FnMut(Case));

impl Cases<'_> {
    fn add(&mut self, kind: Kind, name: &str, bytes: impl Into<Vec<u8>>, place: &str, says: &str) {
        self.claimed(kind, name, Claim::Truth, bytes, place, says);
    }

    fn claimed(
        &mut self,
        kind: Kind,
        name: &str,
        claim: Claim,
        bytes: impl Into<Vec<u8>>,
        place: &str,
        says: &str,
    ) {
        let (name, place, says) = (name.to_owned(), place.to_owned(), says.to_owned());
        (self.0)(Case { kind, name, claim, place, says, bytes: bytes.into() });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Write as _;

    use super::*;

    /// Set it to write what the generator makes over what is kept.
    const WRITE: &str = "TPAD_WRITE_HOSTILE";

    #[test]
    fn the_fuzzers_seeds_are_kept_as_they_are_made() {
        for (path, bytes) in seeds::seeds() {
            let path = tools::workspace().join("fuzz").join(path);
            if std::env::var_os(WRITE).is_some() {
                let directory = path.parent().expect("a file's directory");
                std::fs::create_dir_all(directory).expect("a directory");
                std::fs::write(&path, &bytes).expect("the seeds can be written");
            }
            let found = std::fs::read(&path).unwrap_or_default();
            assert!(found == bytes, "{} differs: set {WRITE}=1 if it should", path.display());
        }
    }

    #[test]
    fn the_corpus_is_kept_as_it_is_made() {
        let write = std::env::var_os(WRITE).is_some();
        let (mut lines, mut kept) = (String::new(), BTreeSet::new());
        let mut counts = BTreeMap::<Kind, usize>::new();
        let mut seen = BTreeSet::new();
        each(|case| {
            writeln!(lines, "{}", case.line()).expect("writing to a string");
            let content = (case.kind, case.claim.to_string(), blake3::hash(&case.bytes).to_hex());
            assert!(seen.insert(content), "{} {} is another case's file", case.kind, case.name);
            *counts.entry(case.kind).or_default() += 1;
            let Some(path) = case.path() else { return };
            if write {
                let directory = path.parent().expect("a file's directory");
                std::fs::create_dir_all(directory).expect("a directory");
                std::fs::write(&path, &case.bytes).expect("the corpus can be written");
            }
            let found = std::fs::read(&path).unwrap_or_default();
            assert!(found == case.bytes, "{} differs: set {WRITE}=1 if it should", path.display());
            assert!(kept.insert(path), "two cases have one name: {}", case.name);
        });
        if write {
            std::fs::write(table(), &lines).expect("the table can be written");
        }
        let found = std::fs::read_to_string(table()).unwrap_or_default();
        assert!(found == lines, "expected.tsv differs: set {WRITE}=1 if it should");
        for kind in Kind::ALL {
            assert!(counts[&kind] >= 75, "{} cases of {kind}", counts[&kind]);
            let files = directory().join(kind.name()).read_dir().expect("the kind's directory");
            for file in files {
                let path = file.expect("a file").path();
                assert!(kept.contains(&path), "no case makes {}", path.display());
            }
        }
        let count: usize = counts.values().sum();
        assert!(count >= 400, "{count} cases");
    }
}

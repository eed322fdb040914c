//! From an object's bytes to an index, each part verified first.

use bytes::{Buf, Bytes};
use prost::Message;
use tpad_manifest::{Digest, IndexHeader, IndexRef, Problem, Segment, SegmentEntry};

use crate::convert::{self, Misread};
use crate::{MAGIC, PREAMBLE_BYTES, bound, wire};

/// The largest header that is read. It lists shards, templates and layers,
/// never blocks, so an honest one has a few hundred kilobytes at most.
pub const MAX_HEADER_BYTES: u64 = 4 << 20;

/// The largest segment that is read: one layer's blocks.
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;

/// Problems that are told of one header; what follows them is more of the same.
const MAX_PROBLEMS: usize = 32;

/// Why an index cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The bytes are not those that the manifest or header named.
    #[error(
        "the {what} has digest {found}, {expected} is expected: the index object was changed or damaged"
    )]
    Digest {
        /// Header or segment.
        what: String,
        /// What the bytes hash to.
        found: Digest,
        /// What was promised.
        expected: Digest,
    },
    /// The object is shorter or longer than the manifest says.
    #[error("the {what} has {found} bytes, {expected} are expected")]
    Length {
        /// Header or segment.
        what: String,
        /// The bytes at hand.
        found: u64,
        /// What was promised.
        expected: u64,
    },
    /// The part is larger than this version reads.
    #[error("the {what} has {bytes} bytes, at most {most} are read")]
    TooLarge {
        /// Header or segment.
        what: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// The bytes are what was written, but not an index.
    #[error("the {what} is malformed: {detail}")]
    Malformed {
        /// Header or segment.
        what: String,
        /// What does not parse.
        detail: String,
    },
    /// The index is of a newer version, which says more than this one knows.
    #[error("the {what} has what this version does not know: {detail}; upgrade tpad to read it")]
    Unknown {
        /// Header or segment.
        what: String,
        /// What is not known.
        detail: String,
    },
    /// The index contradicts itself or its manifest.
    #[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
    Problems(Vec<Problem>),
}

/// Decodes a header from the object's first [`IndexRef::header_bytes`] bytes.
///
/// # Errors
/// When the bytes are not what the manifest named, or break the index's rules.
pub fn decode_header(prefix: &[u8], expected: &IndexRef) -> Result<IndexHeader, IndexError> {
    let what = || "index header".to_owned();
    let most = MAX_HEADER_BYTES;
    if expected.header_bytes > most {
        return Err(IndexError::TooLarge { what: what(), bytes: expected.header_bytes, most });
    }
    let found = prefix.len() as u64;
    if found != expected.header_bytes {
        return Err(IndexError::Length { what: what(), found, expected: expected.header_bytes });
    }
    verify(prefix, expected.digest, what)?;
    let malformed = |detail: String| IndexError::Malformed { what: what(), detail };
    let (Some(magic), Some(message)) = (prefix.get(..8), prefix.get(PREAMBLE_BYTES..)) else {
        return Err(malformed("it ends within its preamble".into()));
    };
    if magic != MAGIC {
        return Err(malformed("it does not start with TPADIDX1".into()));
    }
    if u64::from((&prefix[8..PREAMBLE_BYTES]).get_u32_le()) != message.len() as u64 {
        return Err(malformed("its length contradicts the manifest".into()));
    }
    bound::header(message).map_err(malformed)?;
    let header =
        wire::IndexHeader::decode(message).map_err(|error| malformed(error.to_string()))?;
    let header = convert::read_header(header).map_err(|misread| misread.of(what()))?;
    let mut problems = header.check();
    let mut end = expected.header_bytes;
    for entry in &header.segments {
        if entry.offset != end || entry.bytes > MAX_SEGMENT_BYTES {
            let message = format!(
                "{} bytes from {}: segments follow each other from {end} and have at most {MAX_SEGMENT_BYTES} bytes",
                entry.bytes, entry.offset
            );
            problems.push(Problem::new(format!("segment of layer {}", entry.layer), message));
        }
        end = entry.offset.saturating_add(entry.bytes);
    }
    if problems.is_empty() && end != expected.bytes {
        let message = format!("the segments end at {end}, the manifest says {}", expected.bytes);
        problems.push(Problem::new("index header", message));
    }
    problems.truncate(MAX_PROBLEMS);
    if problems.is_empty() { Ok(header) } else { Err(IndexError::Problems(problems)) }
}

/// Decodes a segment; its columns are slices of `bytes`.
///
/// # Errors
/// When the bytes are not what the header named, or break the index's rules.
pub fn decode_segment(
    bytes: Bytes,
    entry: &SegmentEntry,
    header: &IndexHeader,
) -> Result<Segment, IndexError> {
    let what = || format!("index segment of layer {}", entry.layer);
    let found = bytes.len() as u64;
    if found != entry.bytes {
        return Err(IndexError::Length { what: what(), found, expected: entry.bytes });
    }
    verify(&bytes, entry.digest, what)?;
    let malformed = |detail: String| IndexError::Malformed { what: what(), detail };
    bound::segment(&bytes).map_err(malformed)?;
    let segment =
        wire::IndexSegment::decode(bytes).map_err(|error| malformed(error.to_string()))?;
    let segment = convert::read_segment(segment).map_err(|misread| misread.of(what()))?;
    let problems = segment.check(header, entry);
    if problems.is_empty() { Ok(segment) } else { Err(IndexError::Problems(problems)) }
}

impl Misread {
    fn of(self, what: String) -> IndexError {
        let Self { place, detail, newer } = self;
        let what = match place {
            Some(place) => format!("{what}, {place}"),
            None => what,
        };
        match newer {
            true => IndexError::Unknown { what, detail },
            false => IndexError::Malformed { what, detail },
        }
    }
}

impl IndexError {
    /// Whether a newer version may read it.
    #[must_use]
    pub const fn is_newer(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

fn verify(bytes: &[u8], expected: Digest, what: impl Fn() -> String) -> Result<(), IndexError> {
    let found = Digest::of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(IndexError::Digest { what: what(), found, expected })
}

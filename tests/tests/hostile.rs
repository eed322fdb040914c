//! Every file of the hostile corpus is refused within a second and 64 MiB, by
//! the readers that the daemon and the importer use, with words that name the
//! place. Alone in its program, so that what is counted is the reader's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peak_alloc::PeakAlloc;
use tpad_index::{decode_header, decode_segment};
use tpad_manifest::{Digest, IndexHeader, IndexRef, Manifest, SegmentEntry};
use tpad_publish::{parse_header, shard_header_end};
use tpad_tests::hostile::{
    Case, Claim, Kind, each, sound_header, sound_revision, sound_segment, sound_shard, table,
};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a refusal may take beyond the file itself.
const MOST_BYTES: usize = 64 << 20;
const MOST_TIME: Duration = Duration::from_secs(1);

#[test]
fn every_file_is_refused_within_a_second_and_64_mib_with_its_place() {
    // The readers accept what is right: a refusal below is for its own reason.
    for kind in Kind::ALL {
        read(&sound(kind)).unwrap_or_else(|error| panic!("a sound {kind} is refused: {error}"));
    }
    let text = std::fs::read_to_string(table()).expect("the table");
    let mut lines: BTreeMap<&str, &str> = text.lines().map(|line| (key(line), line)).collect();
    let mut wrong = Vec::new();
    let (mut slowest, mut largest) = ((Duration::ZERO, String::new()), (0, String::new()));
    let mut count = 0;
    each(|mut case| {
        let line = case.line();
        let name = key(&line).to_owned();
        match lines.remove(&*name) {
            Some(expected) if expected == line => {}
            other => wrong.push(format!("{name}: the table has {other:?}")),
        }
        if let Some(path) = case.path() {
            case.bytes = std::fs::read(path).expect("the kept file");
        }
        let (mut refusal, mut took, mut bytes) = measured(&case);
        // Neighbours slow a processor down even for what they do not share:
        // a reader that is slow is slow every time.
        for _ in 0..2 {
            if took < MOST_TIME {
                break;
            }
            let again = measured(&case);
            (refusal, took, bytes) = (again.0, took.min(again.1), bytes.max(again.2));
        }
        count += 1;
        match refusal {
            Ok(()) => wrong.push(format!("{name}: accepted")),
            Err(words) if !words.contains(&case.place) || !words.contains(&case.says) => {
                let words: String = words.chars().take(300).collect();
                let (place, says) = (&case.place, &case.says);
                wrong.push(format!("{name}: {place:?} and {says:?} are expected: {words}"));
            }
            Err(words) if words.len() > 64 << 10 => {
                wrong.push(format!("{name}: a refusal of {} bytes", words.len()));
            }
            Err(_) => {}
        }
        if took >= MOST_TIME || bytes >= MOST_BYTES {
            wrong.push(format!("{name}: took {took:?} and {} KiB", bytes >> 10));
        }
        slowest = slowest.clone().max((took, name.clone()));
        largest = largest.clone().max((bytes, name));
    });
    wrong.extend(lines.keys().map(|name| format!("{name}: nothing makes it")));
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 400, "{count} cases");
    // The limits are the promise; these figures say how far it is kept.
    assert!(slowest.0 > Duration::ZERO && largest.0 > 0, "nothing was measured");
    std::io::Write::write_all(
        &mut std::io::stderr(),
        format!(
            "{count} cases; slowest {slowest:?}; largest {} KiB, {}\n",
            largest.0 >> 10,
            largest.1
        )
        .as_bytes(),
    )
    .expect("standard error is open");
}

/// A line's kind and name.
fn key(line: &str) -> &str {
    let end = line.match_indices('\t').nth(1).map_or(line.len(), |(at, _)| at);
    &line[..end]
}

/// What this thread has used of a processor: a loaded machine does not make a
/// reader slow.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = stat.split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.expect("time on the processor"))
}

/// Reads a case: its refusal, the processor's time and the most memory it took.
fn measured(case: &Case) -> (Result<(), String>, Duration, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let began = processor_time();
    let refusal = read(case);
    let took = processor_time() - began;
    (refusal, took, MEMORY.peak_usage().saturating_sub(before))
}

fn sound(kind: Kind) -> Case {
    let ((header, object), (shard, file)) = (sound_header(), sound_shard());
    let (bytes, claim) = match kind {
        Kind::Revision => (sound_revision().into_bytes(), Claim::Truth),
        Kind::Header => (header, Claim::Whole(object)),
        Kind::Segment => (sound_segment().bytes, Claim::Truth),
        Kind::Shard => (shard, Claim::Whole(file)),
    };
    let (name, place, says) = (String::new(), String::new(), String::new());
    Case { kind, name, claim, place, says, bytes }
}

/// Reads a case as its real reader does: the words of its refusal, if it is
/// refused.
fn read(case: &Case) -> Result<(), String> {
    let length = case.bytes.len() as u64;
    let claimed = match case.claim {
        Claim::OneMore => length + 1,
        Claim::OneLess => length - 1,
        Claim::Endless => u64::MAX,
        Claim::Truth | Claim::OtherDigest | Claim::Whole(_) => length,
    };
    let digest = match case.claim {
        Claim::OtherDigest => Digest::of(b"another"),
        _ => Digest::of(&case.bytes),
    };
    let whole = match case.claim {
        Claim::Whole(bytes) => bytes,
        _ => claimed,
    };
    let words = |error: &dyn std::error::Error| error.to_string();
    match case.kind {
        Kind::Revision => Manifest::parse(&case.bytes).map(drop).map_err(|e| words(&e)),
        Kind::Header => {
            let reference = IndexRef { digest, header_bytes: claimed, bytes: whole };
            decode_header(&case.bytes, &reference).map(drop).map_err(|e| words(&e))
        }
        Kind::Segment => {
            let header = header();
            let sound = sound_segment();
            let entry = SegmentEntry {
                layer: sound.layer,
                offset: 0,
                bytes: claimed,
                digest,
                blocks: sound.blocks,
                image_bytes: sound.image_bytes,
                parameters: sound.parameters,
            };
            let bytes = Bytes::from(case.bytes.clone());
            decode_segment(bytes, &entry, &header).map(drop).map_err(|e| words(&e))
        }
        Kind::Shard => {
            let end = shard_header_end(&case.bytes, whole).map_err(|e| words(&e))?;
            let end = usize::try_from(end).expect("bounded");
            let header = case.bytes.get(8..end).expect("cases hold their whole header");
            parse_header(&Arc::from("x.safetensors"), header, whole)
                .map(drop)
                .map_err(|e| words(&e))
        }
    }
}

fn header() -> IndexHeader {
    let (bytes, object) = sound_header();
    let length = bytes.len() as u64;
    let reference = IndexRef { digest: Digest::of(&bytes), header_bytes: length, bytes: object };
    decode_header(&bytes, &reference).expect("sound")
}

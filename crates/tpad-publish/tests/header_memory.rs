//! A header of the largest accepted size is read in a bounded amount of
//! memory. Alone in its binary, so that the process's peak is its own.

use std::fmt::Write as _;
use std::sync::Arc;

use tpad_publish::{MAX_HEADER_BYTES, parse_header};

#[test]
fn a_legal_header_at_the_cap_stays_small_in_memory() {
    let cap = usize::try_from(MAX_HEADER_BYTES).expect("fits");
    let mut header = String::with_capacity(cap);
    header.push('{');
    let mut tensors = 0u64;
    while header.len() + 80 < cap {
        let comma = if tensors == 0 { "" } else { "," };
        write!(
            header,
            r#"{comma}"{tensors:x}":{{"dtype":"U8","shape":[1],"data_offsets":[{tensors},{}]}}"#,
            tensors + 1
        )
        .expect("writing to a string");
        tensors += 1;
    }
    header.push('}');
    let before = peak_bytes();
    let file_bytes = 8 + header.len() as u64 + tensors;
    let object = Arc::from("model.safetensors");
    let read = parse_header(&object, header.as_bytes(), file_bytes).expect("legal");
    let taken = peak_bytes() - before;
    assert_eq!(read.len() as u64, tensors);
    assert!(tensors > 240_000, "{tensors}");
    assert!(taken < 64 << 20, "reading {tensors} tensors took {} MiB", taken >> 20);
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("KiB");
    kib << 10
}

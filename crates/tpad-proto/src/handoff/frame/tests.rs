use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::net::UnixStream;

use super::*;
use crate::handoff::v1::{Release, Slab};

fn pair() -> (UnixStream, UnixStream) {
    let (one, two) = UnixStream::pair().expect("a pair of sockets");
    for socket in [&one, &two] {
        socket.set_nonblocking(true).expect("it can be");
    }
    (one, two)
}

fn file(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file.rewind().expect("rewound");
    file.into()
}

fn read(descriptor: OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(descriptor).read_to_string(&mut text).expect("read");
    text
}

#[test]
fn frames_come_whole_however_they_are_cut() {
    let (mut one, two) = pair();
    let mut writer = FrameWriter::to_worker();
    let messages: Vec<Release> =
        (1..5).map(|n| Release { leases: (0..n * 40).collect() }).collect();
    for message in &messages {
        writer.push(message, Vec::new()).expect("short");
    }
    let bytes: Vec<u8> = writer.frames.iter().flat_map(|frame| frame.bytes.to_vec()).collect();
    let mut reader = FrameReader::of_worker();
    let mut came = Vec::new();
    for byte in bytes {
        one.write_all(&[byte]).expect("sent");
        assert!(reader.fill(&two).expect("it is there"));
        while let Some(message) = reader.next_message::<Release>().expect("frames") {
            came.push(message);
        }
    }
    assert_eq!(came, messages);
    drop(one);
    assert!(!reader.fill(&two).expect("the end"));
}

#[test]
fn descriptors_come_with_the_message_that_names_them() {
    let (one, two) = pair();
    let mut writer = FrameWriter::to_worker();
    // More than one frame brings.
    let many: Vec<OwnedFd> = (0..DESCRIPTORS + 7).map(|n| file(&n.to_string())).collect();
    writer
        .push(&Slab { slab: 1, bytes: 1, ..Slab::default() }, vec![file("first")])
        .expect("short");
    writer.push(&Slab { slab: 2, bytes: 2, ..Slab::default() }, many).expect("short");
    writer.flush(&one).expect("sent");
    assert!(writer.is_empty());
    let mut reader = FrameReader::of_daemon();
    let mut slabs = Vec::new();
    while let Ok(true) = reader.fill(&two) {
        while let Some(slab) = reader.next_message::<Slab>().expect("frames") {
            slabs.push(slab.slab);
        }
    }
    assert_eq!(slabs, [1, 2]);
    assert_eq!(
        reader.descriptors(1).expect("it came").into_iter().map(read).next(),
        Some("first".into())
    );
    let many = reader.descriptors(DESCRIPTORS + 7).expect("they came");
    let texts: Vec<String> = many.into_iter().map(read).collect();
    assert_eq!(texts, (0..DESCRIPTORS + 7).map(|n| n.to_string()).collect::<Vec<_>>());
    let missing = reader.descriptors(1).expect_err("none is left");
    assert!(missing.to_string().contains("names 1"), "{missing}");
}

#[test]
fn who_wants_no_descriptors_gets_none() {
    let (one, two) = pair();
    let mut writer = FrameWriter::to_worker();
    writer.push(&Slab { slab: 1, bytes: 1, ..Slab::default() }, vec![file("x")]).expect("short");
    writer.flush(&one).expect("sent");
    let mut reader = FrameReader::of_worker();
    assert!(reader.fill(&two).expect("it is there"));
    assert!(reader.next_message::<Slab>().expect("a frame").is_some());
    assert!(reader.descriptors.is_empty());
}

#[test]
fn lengths_and_messages_that_are_none_are_refused() {
    let mut reader = FrameReader::of_worker();
    reader.buffer.put_u32_le(u32::MAX);
    assert!(matches!(reader.next_message::<Slab>(), Err(FrameError::TooLong { .. })));
    let mut reader = FrameReader::of_worker();
    reader.buffer.put_u32_le(2);
    reader.buffer.put_slice(&[0xff, 0xff]);
    assert!(matches!(reader.next_message::<Slab>(), Err(FrameError::Message(_))));
    let long = Release { leases: vec![u64::MAX; WORKER_FRAME_BYTES / 10 + 1] };
    assert!(matches!(
        FrameWriter::to_daemon().push(&long, Vec::new()),
        Err(FrameError::TooLong { .. })
    ));
}

#[test]
fn whatever_bytes_come_no_more_than_a_frame_of_them_is_kept() {
    let mut state = 7u64;
    let mut random = || {
        // Xorshift: reproducible, and no other crate.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let (mut one, two) = pair();
        let mut reader = FrameReader::of_worker();
        // Lengths that are short often enough for frames to come whole.
        let bytes: Vec<u8> = (0..4000)
            .map(|_| if random() % 3 == 0 { 0 } else { random().to_le_bytes()[0] % 32 })
            .collect();
        one.write_all(&bytes).expect("there is room");
        while let Ok(true) = reader.fill(&two) {
            while let Ok(Some(_)) = reader.next_message::<Release>() {}
            assert!(reader.buffer.len() <= WORKER_FRAME_BYTES + READ_BYTES);
        }
    }
}

#[test]
fn a_peer_that_does_not_read_makes_nobody_wait() {
    let (one, _two) = pair();
    let mut writer = FrameWriter::to_worker();
    for _ in 0..20 {
        writer.push(&Release { leases: vec![u64::MAX; 50_000] }, Vec::new()).expect("short");
    }
    let full = writer.flush(&one).expect_err("the socket is full");
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    assert!(!writer.is_empty() && writer.bytes() > 0);
}

#[test]
fn nothing_is_read_into_what_follows_a_frame_that_is_none() {
    let (mut one, two) = pair();
    let mut writer = FrameWriter::to_worker();
    writer.push(&Release { leases: vec![7] }, Vec::new()).expect("short");
    one.write_all(&u32::MAX.to_le_bytes()).expect("sent");
    writer.flush(&one).expect("sent");
    let mut reader = FrameReader::of_worker();
    assert!(reader.fill(&two).expect("it is there"));
    assert!(matches!(reader.next_message::<Release>(), Err(FrameError::TooLong { .. })));
    assert!(matches!(reader.next_message::<Release>(), Ok(None)));
    writer.push(&Release { leases: vec![8] }, Vec::new()).expect("short");
    writer.flush(&one).expect("sent");
    assert!(reader.fill(&two).expect("it is there"));
    assert!(matches!(reader.next_message::<Release>(), Ok(None)));
    assert!(reader.buffer.is_empty());
}

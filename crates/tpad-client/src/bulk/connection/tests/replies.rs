//! What a reply may be made of, and what breaks the protocol.

use super::*;

#[tokio::test]
async fn a_reply_is_read_whatever_stands_between_its_frames() {
    let mut padded = vec![3];
    padded.extend_from_slice(b"cde\0\0\0");
    let with_priority = {
        let mut payload = vec![2, 0, 0, 0, 0, 16];
        payload.extend(block(&HEAD));
        payload.extend([0, 0]);
        let flags = frame::END_HEADERS | frame::PADDED | frame::WITH_PRIORITY;
        frame(frame::HEADERS, flags, 1, &payload)
    };
    let end = block(&[("grpc-status", "0")]);
    let frames = [
        settings(&[(frame::MAX_CONCURRENT_STREAMS, 1), (99, 7)]),
        frame(frame::SETTINGS, frame::ACK, 0, &[]),
        // More is to come: nothing that we asked for.
        frame(frame::HEADERS, frame::END_HEADERS, 1, &block(&[(":status", "103")])),
        frame(0xbe, 0xff, 77, &[1; 300]),
        with_priority,
        frame(frame::DATA, 0, 1, b"ab"),
        frame(frame::PING, 0, 0, b"01234567"),
        frame(frame::DATA, 0, 1, b""),
        frame(frame::PRIORITY, 0, 1, &[0; 5]),
        frame(frame::DATA, frame::PADDED, 1, &padded),
        frame(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0]),
        frame(frame::DATA, 0, 1, &[b'f'; 1000]),
        frame(frame::HEADERS, frame::END_STREAM, 1, &end[..3]),
        frame(frame::CONTINUATION, frame::END_HEADERS, 1, &end[3..]),
    ];
    let (bytes, code) = outcome(&frames).await.expect("a reply");
    assert_eq!((&bytes[..5], bytes.len(), code), (&b"abcde"[..], 1005, Code::Ok));
}

#[tokio::test]
async fn a_reply_may_end_in_every_way_that_it_can() {
    let begin = [settings(&[]), head(1)].concat();
    let ends = [
        (trailers(1, &[("grpc-status", "7"), ("grpc-message", "no")]), Code::PermissionDenied),
        (trailers(1, &[("x", "y")]), Code::Unknown),
        (frame(frame::DATA, frame::END_STREAM, 1, b"ab"), Code::Unknown),
        (frame(frame::DATA, frame::END_STREAM | frame::PADDED, 1, b"\x01ab\0"), Code::Unknown),
        (frame(frame::RST_STREAM, 0, 1, &8u32.to_be_bytes()), Code::Unknown),
    ];
    for (end, expected) in ends {
        let (_, code) = outcome(&[begin.clone(), end]).await.expect("an end");
        assert_eq!(code, expected);
    }
    let head_is_end = [(":status", "200"), ("grpc-status", "5")];
    let (bytes, code) = outcome(&[settings(&[]), trailers(1, &head_is_end)]).await.expect("one");
    assert_eq!((bytes.len(), code), (0, Code::NotFound));
}

async fn fault(frames: &[Vec<u8>]) -> u32 {
    match outcome(frames).await {
        Err(ConnectionError::Broken(fault)) => fault.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_is_named_by_its_code() {
    let begin = || [settings(&[]), head(1)].concat();
    let number = |number: u32| number.to_be_bytes();
    let cases: Vec<(u32, Vec<Vec<u8>>)> = vec![
        (frame::PROTOCOL_ERROR, vec![head(1)]),
        (frame::PROTOCOL_ERROR, vec![b"HTTP/1.1 400 Bad Request\r\n".to_vec()]),
        (frame::PROTOCOL_ERROR, vec![settings(&[(frame::ENABLE_PUSH, 1)])]),
        (frame::FLOW_CONTROL_ERROR, vec![settings(&[(frame::INITIAL_WINDOW_SIZE, 1 << 31)])]),
        (frame::PROTOCOL_ERROR, vec![settings(&[(frame::MAX_FRAME_SIZE, 16_383)])]),
        (frame::PROTOCOL_ERROR, vec![settings(&[(frame::MAX_FRAME_SIZE, 1 << 24)])]),
        (frame::FRAME_SIZE_ERROR, vec![frame(frame::SETTINGS, 0, 0, &[0; 5])]),
        (frame::PROTOCOL_ERROR, vec![frame(frame::SETTINGS, 0, 3, &[])]),
        (frame::FRAME_SIZE_ERROR, vec![settings(&[]), frame(frame::SETTINGS, 1, 0, &[0; 6])]),
        (frame::FRAME_SIZE_ERROR, vec![begin(), frame(frame::PING, 0, 0, &[0; 7])]),
        (frame::FRAME_SIZE_ERROR, vec![begin(), frame(frame::GOAWAY, 0, 0, &[0; 7])]),
        (frame::FRAME_SIZE_ERROR, vec![begin(), frame(frame::RST_STREAM, 0, 1, &[0; 5])]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::RST_STREAM, 0, 3, &number(8))]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::RST_STREAM, 0, 2, &number(8))]),
        (frame::FRAME_SIZE_ERROR, vec![begin(), frame(frame::PRIORITY, 0, 1, &[0; 4])]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::PUSH_PROMISE, 4, 1, &[0; 4])]),
        (frame::FLOW_CONTROL_ERROR, vec![begin(), frame(frame::WINDOW_UPDATE, 0, 0, &number(0))]),
        (
            frame::FLOW_CONTROL_ERROR,
            vec![begin(), frame(frame::WINDOW_UPDATE, 0, 1, &number(frame::LARGEST_WINDOW))],
        ),
        (frame::PROTOCOL_ERROR, vec![settings(&[]), frame(frame::DATA, 0, 1, b"x")]),
        (frame::STREAM_CLOSED, vec![begin(), frame(frame::DATA, 0, 3, b"x")]),
        (frame::STREAM_CLOSED, vec![begin(), head(0)]),
        (frame::PROTOCOL_ERROR, vec![begin(), head(3)]),
        (frame::PROTOCOL_ERROR, vec![begin(), head(1)]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::HEADERS, 5, 1, &block(&HEAD))]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::HEADERS, 4, 1, &block(&[("a", "b")]))]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::CONTINUATION, 4, 1, &[])]),
        (
            frame::PROTOCOL_ERROR,
            vec![begin(), frame(frame::HEADERS, 1, 1, &[]), frame(frame::PING, 0, 0, &[0; 8])],
        ),
        (frame::PROTOCOL_ERROR, vec![settings(&[]), frame(frame::HEADERS, 4 | 8, 1, b"\x02\0")]),
        (frame::FRAME_SIZE_ERROR, vec![settings(&[]), frame(frame::HEADERS, 4 | 8, 1, b"")]),
        (frame::FRAME_SIZE_ERROR, vec![settings(&[]), frame(frame::HEADERS, 4 | 32, 1, b"1234")]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::DATA, frame::PADDED, 1, b"\x03ab")]),
        (frame::PROTOCOL_ERROR, vec![begin(), frame(frame::DATA, frame::PADDED, 1, b"")]),
        (frame::COMPRESSION_ERROR, vec![settings(&[]), frame(frame::HEADERS, 4, 1, &[0xff])]),
        (frame::ENHANCE_YOUR_CALM, vec![begin(), frame(frame::SETTINGS, 0, 0, &[0; 1206])]),
        (frame::ENHANCE_YOUR_CALM, vec![begin(), frame(frame::HEADERS, 0, 1, &[0; 65_537])]),
        (
            frame::ENHANCE_YOUR_CALM,
            vec![
                begin(),
                frame(frame::HEADERS, 1, 1, &[0; 60_000]),
                frame(frame::CONTINUATION, 0, 1, &[0; 60_000]),
            ],
        ),
        (frame::ENHANCE_YOUR_CALM, vec![begin(), frame(frame::DATA, 0, 1, b"").repeat(10_001)]),
    ];
    for (n, (code, frames)) in cases.into_iter().enumerate() {
        assert_eq!(frame::reason(fault(&frames).await), frame::reason(code), "case {n}");
    }
}

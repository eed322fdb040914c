//! HTTP/2 frames: their nine bytes, and the numbers of RFC 9113.

/// The bytes before each frame's payload.
pub(super) const HEAD_BYTES: usize = 9;

/// What a client says first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS: the stream's last.
pub(super) const END_STREAM: u8 = 0x1;
/// Of SETTINGS and PING: an answer.
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const WITH_PRIORITY: u8 = 0x20;

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

pub(super) const NO_ERROR: u32 = 0;
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const FLOW_CONTROL_ERROR: u32 = 3;
pub(super) const STREAM_CLOSED: u32 = 5;
pub(super) const FRAME_SIZE_ERROR: u32 = 6;
pub(super) const REFUSED_STREAM: u32 = 7;
pub(super) const CANCEL: u32 = 8;
pub(super) const COMPRESSION_ERROR: u32 = 9;
pub(super) const ENHANCE_YOUR_CALM: u32 = 11;

/// The window that streams and connections begin with.
pub(super) const FIRST_WINDOW: u32 = 65_535;
/// The frames that each side takes before it says otherwise.
pub(super) const FIRST_FRAME_BYTES: usize = 16_384;
/// The largest window that can be.
pub(super) const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// The largest frame that can be allowed.
pub(super) const LARGEST_FRAME: u32 = (1 << 24) - 1;

/// What precedes a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    /// Of the payload.
    pub(super) bytes: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHead {
    pub(super) fn read(bytes: [u8; HEAD_BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        Self {
            bytes: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            // The highest bit is reserved, and ignored.
            stream: u32::from_be_bytes(stream) & LARGEST_WINDOW,
        }
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a frame. Its payload is shorter than [`LARGEST_FRAME`]: ours all are.
pub(super) fn append(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(LARGEST_FRAME).to_be_bytes();
    output.extend_from_slice(&length[1..]);
    output.extend_from_slice(&[kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
    output.extend_from_slice(payload);
}

/// Appends SETTINGS.
pub(super) fn append_settings(output: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let mut payload = Vec::with_capacity(settings.len() * 6);
    for (name, value) in settings {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    append(output, SETTINGS, 0, 0, &payload);
}

/// An error code by its name in RFC 9113.
pub(super) fn reason(code: u32) -> &'static str {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).unwrap_or(&"an unknown error")
}

/// The four bytes at the start of `bytes`.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_and_the_reserved_bit_is_ignored() {
        let mut bytes = Vec::new();
        append(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 7, &[0; 70_000]);
        let mut head = *bytes.first_chunk().expect("nine bytes");
        let expected =
            FrameHead { bytes: 70_000, kind: HEADERS, flags: END_HEADERS | END_STREAM, stream: 7 };
        assert_eq!(FrameHead::read(head), expected);
        head[5] |= 0x80;
        assert_eq!(FrameHead::read(head), expected);
        assert!(expected.has(END_STREAM) && !expected.has(PADDED));
    }

    #[test]
    fn codes_have_names() {
        assert_eq!(
            (reason(8), reason(13), reason(14)),
            ("CANCEL", "HTTP_1_1_REQUIRED", "an unknown error")
        );
    }
}

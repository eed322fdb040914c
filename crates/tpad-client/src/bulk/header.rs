//! Header fields on the wire, through HPACK.

mod huffman;

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use loona_hpack::Decoder;

/// The fields of one reply's head or trailers, names and values together: the
/// daemon's are under 2 KiB, rich errors included.
pub(super) const HEADER_LIST_BYTES: usize = 64 << 10;

/// The same before it is decoded.
pub(super) const HEADER_BLOCK_BYTES: usize = HEADER_LIST_BYTES;

/// Begins a block with a dynamic table of no size (RFC 7541, section 6.3).
pub(super) const NO_TABLE: u8 = 0x20;

/// What a field costs beside its bytes (RFC 9113, section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// The fields of a head or of trailers.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// `:status`, which trailers do not have.
    pub(super) status: Option<u16>,
    pub(super) map: HeaderMap,
}

/// Why a header block makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// The compression's state is lost, and with it the connection.
    Compression(String),
    /// The reply is wrong.
    Malformed(&'static str),
}

/// Appends a field as a literal that nobody keeps: valid whatever the other
/// side's table is.
pub(super) fn append(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    append_string(block, name);
    append_string(block, value);
}

/// Appends a name or a value.
pub(super) fn append_string(block: &mut Vec<u8>, text: &str) {
    append_length(block, text.len());
    block.extend_from_slice(text.as_bytes());
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn append_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        block.push(u8::try_from(length).unwrap_or(126));
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap_or(0) | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap_or(0));
}

/// Reads a whole header block. What is malformed is still read to its end: later
/// blocks depend on it.
pub(super) fn decode(decoder: &mut Decoder<'_>, block: &[u8]) -> Result<Fields, HeaderFault> {
    let mut fields = Fields::default();
    let mut bytes = 0usize;
    let mut wrong = None;
    let decoded = decoder.decode_with_cb(
        &huffman::plain(block),
        |name: Cow<'_, [u8]>, value: Cow<'_, [u8]>| {
            bytes = bytes.saturating_add(name.len() + value.len() + FIELD_OVERHEAD);
            if bytes > HEADER_LIST_BYTES {
                wrong = Some("its fields are longer than allowed");
            }
            if wrong.is_none() {
                wrong = keep(&mut fields, &name, &value).err();
            }
        },
    );
    decoded.map_err(|error| HeaderFault::Compression(error.to_string()))?;
    wrong.map_or(Ok(fields), |what| Err(HeaderFault::Malformed(what)))
}

fn keep(fields: &mut Fields, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    if name == b":status" {
        let status = std::str::from_utf8(value).ok().filter(|text| text.len() == 3);
        let status = status.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let status = status.and_then(|text| text.parse().ok()).ok_or("its status is no number")?;
        if !fields.map.is_empty() || fields.status.replace(status).is_some() {
            return Err("its status is not its first field");
        }
        return Ok(());
    }
    let name = HeaderName::from_lowercase(name).map_err(|_| "a field's name is none")?;
    let value = HeaderValue::from_bytes(value).map_err(|_| "a field's value is none")?;
    fields.map.try_append(name, value).map_err(|_| "it has too many fields")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_every_length_read_back() {
        for length in [0, 1, 126, 127, 128, 254, 255, 16_510, 16_511, 40_000] {
            let value = "v".repeat(length);
            let mut block = Vec::new();
            append(&mut block, "x-name", &value);
            let fields = decode(&mut Decoder::new(), &block).expect("a block");
            assert_eq!(fields.map["x-name"].len(), length);
            assert_eq!(fields.status, None);
        }
    }

    #[test]
    fn the_decoders_table_outlasts_a_malformed_block() {
        let mut decoder = Decoder::new();
        // With indexing: "x: y", then a name that is not lowercase.
        let block = b"\x40\x01x\x01y\x00\x01A\x01b";
        let wrong = decode(&mut decoder, block).expect_err("an uppercase name");
        assert_eq!(wrong, HeaderFault::Malformed("a field's name is none"));
        // 0xbe: the table's first entry.
        assert_eq!(decode(&mut decoder, b"\xbe").expect("indexed").map["x"], "y");
    }

    #[test]
    fn lists_that_grow_when_they_are_decoded_are_bounded() {
        let mut decoder = Decoder::new();
        let mut block = vec![0x40, 1, b'x'];
        append_length(&mut block, 4000);
        block.extend(std::iter::repeat_n(b'y', 4000));
        block.extend(std::iter::repeat_n(0xbe, 50_000));
        let wrong = decode(&mut decoder, &block).expect_err("200 MB of fields");
        assert_eq!(wrong, HeaderFault::Malformed("its fields are longer than allowed"));
    }

    #[test]
    fn the_status_comes_first_once_and_is_a_number() {
        let field = |name: &str, value: &str| {
            let mut block = Vec::new();
            append(&mut block, name, value);
            block
        };
        let read = |block: &[u8]| decode(&mut Decoder::new(), block);
        assert_eq!(read(&field(":status", "200")).expect("a head").status, Some(200));
        for block in [
            field(":status", "2xx"),
            field(":status", "+20"),
            field(":path", "/"),
            [field(":status", "200"), field(":status", "200")].concat(),
            [field("a", "b"), field(":status", "200")].concat(),
            field("a", "b\n"),
        ] {
            assert!(matches!(read(&block), Err(HeaderFault::Malformed(_))), "{block:?}");
        }
        assert!(matches!(read(&[0xff]), Err(HeaderFault::Compression(_))));
    }
}

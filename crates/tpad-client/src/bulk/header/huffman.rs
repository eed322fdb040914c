//! Huffman-coded strings as plain ones, before HPACK's library sees them.
//!
//! The library builds a table of hash maps for each such string: for the name of a request,
//! which is in every reply, that took a tenth of the processor time of a small fetch. The
//! code of RFC 7541, appendix B, is canonical, so the lengths of its codes say all of it.

use std::borrow::Cow;
use std::sync::LazyLock;

use super::append_length;

/// The bits of each byte's code, and of the end's.
#[rustfmt::skip]
const BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The longest code.
const MOST_BITS: usize = 30;

/// The codes, those of one length in a row.
struct Code {
    /// Of each length: its first code, how many there are, and where their symbols begin.
    lengths: [(u32, u32, usize); MOST_BITS + 1],
    /// By length, then by value; the end is the last.
    symbols: Vec<usize>,
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut symbols: Vec<usize> = (0..BITS.len()).collect();
    symbols.sort_by_key(|symbol| (BITS[*symbol], *symbol));
    let mut lengths = [(0, 0, 0); MOST_BITS + 1];
    let (mut code, mut at) = (0u32, 0);
    for (bits, of_length) in lengths.iter_mut().enumerate() {
        code <<= 1;
        let count = symbols.iter().filter(|symbol| usize::from(BITS[**symbol]) == bits).count();
        // At most 257.
        let codes = u32::try_from(count).unwrap_or_default();
        *of_length = (code, codes, at);
        code += codes;
        at += count;
    }
    Code { lengths, symbols }
});

/// A header block without Huffman-coded strings. What cannot be read stays as it is, and is
/// the library's to refuse.
pub(super) fn plain(block: &[u8]) -> Cow<'_, [u8]> {
    let mut plain = Vec::new();
    let mut reader = Reader { block, at: 0, copied: 0 };
    while reader.at < block.len() && reader.field(&mut plain).is_some() {}
    if reader.copied == 0 {
        return Cow::Borrowed(block);
    }
    plain.extend_from_slice(&block[reader.copied..]);
    Cow::Owned(plain)
}

/// A place in a header block.
struct Reader<'a> {
    block: &'a [u8],
    at: usize,
    /// What of it is in the plain block already.
    copied: usize,
}

impl Reader<'_> {
    /// Passes one field, or a change of the table's size (RFC 7541, section 6).
    fn field(&mut self, plain: &mut Vec<u8>) -> Option<()> {
        let first = *self.block.get(self.at)?;
        let (prefix, literal) = match first.leading_zeros() {
            0 => (7, false),
            1 => (6, true),
            2 => (5, false),
            _ => (4, true),
        };
        let index = self.integer(prefix)?;
        if literal && index == 0 {
            self.string(plain)?;
        }
        if literal { self.string(plain) } else { Some(()) }
    }

    fn string(&mut self, plain: &mut Vec<u8>) -> Option<()> {
        let begin = self.at;
        let coded = self.block.get(begin)? & 0x80 != 0;
        let length = self.integer(7)?;
        let text = self.block.get(self.at..)?.get(..length)?;
        self.at += length;
        if coded {
            let text = decode(text)?;
            plain.extend_from_slice(&self.block[self.copied..begin]);
            append_length(plain, text.len());
            plain.extend_from_slice(&text);
            self.copied = self.at;
        }
        Some(())
    }

    /// An integer with a prefix of so many bits (RFC 7541, section 5.1).
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let mask = (1 << prefix) - 1;
        let mut value = usize::from(*self.block.get(self.at)?) & mask;
        self.at += 1;
        if value < mask {
            return Some(value);
        }
        // Longer ones are of no block that we take.
        for shift in [0, 7, 14, 21] {
            let byte = usize::from(*self.block.get(self.at)?);
            self.at += 1;
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// A string's bytes, if they are coded as they have to be.
fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let Code { lengths, symbols } = &*CODE;
    let mut text = Vec::with_capacity(coded.len() * 8 / 5);
    let (mut code, mut bits) = (0u32, 0);
    for byte in coded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            bits += 1;
            let (first, codes, at) = *lengths.get(bits)?;
            let Some(nth) = code.checked_sub(first).filter(|nth| *nth < codes) else { continue };
            // The end may not be said.
            text.push(u8::try_from(symbols[at + nth as usize]).ok()?);
            (code, bits) = (0, 0);
        }
    }
    // What fills the last byte is the beginning of the end's code, which is all ones.
    (bits < 8 && code == (1 << bits) - 1).then_some(text)
}

#[cfg(test)]
mod tests {
    use loona_hpack::Decoder;
    use proptest::prelude::*;

    use super::*;

    fn encode(text: &[u8]) -> Vec<u8> {
        let Code { lengths, symbols } = &*CODE;
        let mut bits = Vec::new();
        for byte in text {
            let length = usize::from(BITS[usize::from(*byte)]);
            let (first, _, at) = lengths[length];
            let nth = symbols[at..].iter().position(|symbol| *symbol == usize::from(*byte));
            let code = first + u32::try_from(nth.expect("every byte has a code")).expect("small");
            bits.extend((0..length).rev().map(|shift| code >> shift & 1 == 1));
        }
        bits.resize(bits.len().next_multiple_of(8), true);
        let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        bits.chunks(8).map(byte).collect()
    }

    fn literal(coded: &[u8]) -> Vec<u8> {
        let mut length = Vec::new();
        append_length(&mut length, coded.len());
        length[0] |= 0x80;
        [&[0x40, 1, b'x'], &length[..], coded].concat()
    }

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    /// What the library makes of a block, and then of one that needs the first's table.
    fn read(block: &[u8]) -> Vec<Option<Fields>> {
        let mut decoder = Decoder::new();
        [block, b"\xbe"].iter().map(|block| decoder.decode(block).ok()).collect()
    }

    proptest! {
        #[test]
        fn every_text_is_read_back(text: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&text)), Some(text.clone()));
            let block = literal(&encode(&text));
            let plain = plain(&block);
            prop_assert!(text.is_empty() || plain.len() >= 3 + text.len());
            prop_assert_eq!(read(&plain), read(&block));
            prop_assert_eq!(read(&plain)[0].clone(), Some(vec![(b"x".to_vec(), text)]));
        }

        #[test]
        fn the_library_reads_the_plain_block_as_it_reads_the_coded_one(
            before in proptest::collection::vec(any::<u8>(), 0..8),
            coded in proptest::collection::vec(any::<u8>(), 0..40),
            after in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            for block in [&literal(&coded)[..], &[&before[..], &literal(&coded), &after].concat()] {
                prop_assert_eq!(read(&plain(block)), read(block), "{:?}", block);
            }
        }
    }

    #[test]
    fn the_example_of_the_standard_is_read() {
        // RFC 7541, appendix C.4.1.
        let coded = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&coded).expect("it is right"), b"www.example.com");
        assert_eq!(decode(&[0xff; 4]), None, "the end");
        assert_eq!(decode(&[0b0000_0000]), None, "zeros at its end");
    }
}

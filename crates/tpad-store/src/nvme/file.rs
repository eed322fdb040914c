//! A block's file: one page that says what follows, then the image, padded to
//! whole pages so that a direct read lands in a slot in place.

use std::fs::File;
use std::io;
use std::ops::Range;

use tpad_manifest::BlockId;

use crate::level::crc64_nvme;
use crate::{BlockBytes, CacheClass};

/// Direct I/O reads and writes whole pages.
pub(super) const PAGE: usize = 4096;

/// What begins every file; its last byte is the layout's version.
const MAGIC: [u8; 8] = *b"TPADBLK\x01";

/// The longest class name that a page holds.
const MAX_CLASS: usize = 512;

/// How much one call writes.
const PIECE: usize = 8 << 20;

const ID: Range<usize> = 8..40;
const BYTES: Range<usize> = 40..48;
const CRC: Range<usize> = 48..56;
const CLASS_BYTES: Range<usize> = 56..58;
const CLASS: usize = 58;
const SUM: Range<usize> = PAGE - 8..PAGE;

/// A page at a page's boundary. Moving it does not move its bytes.
#[derive(Debug)]
pub(super) struct Page(Vec<u8>);

/// What the page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: BlockId,
    /// The image's size.
    pub(super) bytes: u64,
    /// Its CRC-64/NVME.
    pub(super) crc: u64,
    /// The class that it was admitted as.
    pub(super) class: String,
}

/// Why a file is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is not there.
    Missing,
    /// It is not what was written.
    Damaged(&'static str),
    /// The disk failed.
    Disk(io::Error),
}

impl Page {
    /// Zeroes.
    pub(super) fn new() -> Self {
        Self(vec![0; 2 * PAGE])
    }

    fn range(&self) -> Range<usize> {
        let start = self.0.as_ptr().align_offset(PAGE).min(PAGE);
        start..start + PAGE
    }

    pub(super) fn get(&self) -> &[u8] {
        &self.0[self.range()]
    }

    pub(super) fn get_mut(&mut self) -> &mut [u8] {
        let range = self.range();
        &mut self.0[range]
    }
}

impl Header {
    /// Of a block in memory.
    pub(super) fn of(id: &BlockId, class: &CacheClass, bytes: &BlockBytes) -> Self {
        let class = class.as_str();
        let class = if class.len() <= MAX_CLASS { class } else { "" };
        Self { id: *id, bytes: bytes.len() as u64, crc: crc64_nvme(bytes), class: class.to_owned() }
    }

    /// The page, its checksum last.
    pub(super) fn page(&self) -> Page {
        let mut page = Page::new();
        let bytes = page.get_mut();
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[ID].copy_from_slice(self.id.as_bytes());
        bytes[BYTES].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[CRC].copy_from_slice(&self.crc.to_le_bytes());
        let length = u16::try_from(self.class.len()).unwrap_or(0);
        bytes[CLASS_BYTES].copy_from_slice(&length.to_le_bytes());
        bytes[CLASS..CLASS + self.class.len()].copy_from_slice(self.class.as_bytes());
        let sum = crc64_nvme(&bytes[..SUM.start]);
        bytes[SUM].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// What a page says, if it is whole.
    pub(super) fn read(page: &[u8]) -> Result<Self, &'static str> {
        if page.len() != PAGE || page[..8] != MAGIC {
            return Err("its first page is no header of this version");
        }
        if crc64_nvme(&page[..SUM.start]) != number(&page[SUM]) {
            return Err("its header's checksum does not hold");
        }
        let length =
            usize::from(u16::from_le_bytes([page[CLASS_BYTES.start], page[CLASS_BYTES.start + 1]]));
        let class = page.get(CLASS..CLASS + length.min(MAX_CLASS)).unwrap_or_default();
        let mut id = [0; 32];
        id.copy_from_slice(&page[ID]);
        Ok(Self {
            id: BlockId::from_bytes(id),
            bytes: number(&page[BYTES]),
            crc: number(&page[CRC]),
            class: String::from_utf8_lossy(class).into_owned(),
        })
    }

    /// What the file takes.
    pub(super) fn file_bytes(&self) -> Option<u64> {
        file_bytes(self.bytes)
    }
}

/// What an image of this size takes on disk.
pub(super) fn file_bytes(image: u64) -> Option<u64> {
    image.checked_next_multiple_of(PAGE as u64)?.checked_add(PAGE as u64)
}

fn number(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(bytes);
    u64::from_le_bytes(number)
}

/// Writes a block to an empty file.
pub(super) fn write(file: &File, header: &Header, bytes: &BlockBytes) -> io::Result<()> {
    write_all(file, header.page().get(), 0)?;
    let padded = bytes.len().next_multiple_of(PAGE);
    write_all(file, &bytes.padded()[..padded], PAGE as u64)
}

fn write_all(file: &File, bytes: &[u8], mut at: u64) -> io::Result<()> {
    for mut piece in bytes.chunks(PIECE) {
        while !piece.is_empty() {
            match rustix::io::pwrite(file, piece, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    piece = &piece[written..];
                    at += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_back_and_every_flipped_byte_is_found() {
        let header = Header {
            id: BlockId::of(b"x"),
            bytes: 12_345,
            crc: 0x0123_4567_89ab_cdef,
            class: "tier_1b".into(),
        };
        let mut page = header.page();
        assert_eq!(page.get().as_ptr().align_offset(PAGE), 0);
        assert_eq!(Header::read(page.get()), Ok(header.clone()));
        for at in 0..PAGE {
            page.get_mut()[at] ^= 0x10;
            assert!(Header::read(page.get()).is_err(), "byte {at}");
            page.get_mut()[at] ^= 0x10;
        }
        assert_eq!(header.file_bytes(), Some(4 * 4096 + 4096));
    }

    #[test]
    fn sizes_that_overflow_have_no_file() {
        assert_eq!(file_bytes(u64::MAX), None);
        assert_eq!(file_bytes(u64::MAX - 4095), None);
        assert_eq!(file_bytes(0), Some(4096));
    }
}

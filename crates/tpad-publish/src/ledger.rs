//! The ledger of an import that is under way: digests that are known already,
//! kept on local disk so that an interrupted import goes on where it stopped.
//!
//! An entry is bound to what was digested, not to the import: its key covers
//! the image's parts and, for each, its object's size, tag and time. So an entry
//! outlives a changed plan and is worthless after a changed shard, and two
//! imports may share a ledger.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use tpad_manifest::{BlockId, Digest};
use tpad_store::{BlockFetch, ObjectEntry};

/// The first line. The number steps when the keys' meaning changes.
const MAGIC: &str = "tpad import ledger 1";

/// Hexadecimal digits of a line's own checksum.
const CHECK_DIGITS: usize = 16;

/// What an image is made of, objects' identities included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ImageKey(Digest);

/// The digests that are known.
pub(crate) struct Ledger {
    path: PathBuf,
    known: HashMap<ImageKey, BlockId>,
    file: File,
}

impl ImageKey {
    /// The key of an image; `None` when one of its objects is not in
    /// `objects`.
    pub(crate) fn of<'a>(
        image: &BlockFetch,
        objects: impl Fn(&str) -> Option<&'a ObjectEntry>,
    ) -> Option<Self> {
        let mut hasher = blake3::Hasher::new_derive_key("tpad import ledger 2026-11 image");
        let mut number = |number: u64| {
            hasher.update(&number.to_le_bytes());
        };
        number(image.bytes);
        for part in &image.parts {
            number(part.offset);
            number(part.bytes);
            number(part.at);
        }
        for part in &image.parts {
            let ObjectEntry { path, bytes, etag, modified_ms } = objects(&part.object)?;
            let etag = etag.as_deref().unwrap_or_default();
            for text in [path.as_str(), etag] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            hasher.update(&bytes.to_le_bytes());
            hasher.update(&modified_ms.to_le_bytes());
        }
        Some(Self(hasher.finalize().into()))
    }
}

impl Ledger {
    /// Opens the ledger of the checkpoint at `root` in `directory`, which is
    /// made if need be. Lines that cannot be read, as the last one after a
    /// crash, count as absent.
    pub(crate) fn open(directory: &Path, root: &str) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join(format!("{}.ledger", Digest::of(root.as_bytes())));
        let file = File::options().create(true).read(true).append(true).open(&path)?;
        let mut known = HashMap::new();
        let mut lines = BufReader::new(&file).split(b'\n');
        match lines.next().transpose()? {
            Some(first) if first == MAGIC.as_bytes() => {
                for line in lines {
                    known.extend(std::str::from_utf8(&line?).ok().and_then(entry));
                }
                // A torn last line must not swallow the next one.
                (&file).write_all(b"\n")?;
            }
            _ => {
                file.set_len(0)?;
                (&file).write_all(format!("{MAGIC}\n").as_bytes())?;
            }
        }
        Ok(Self { path, known, file })
    }

    /// The digest of an image, if it was computed before.
    pub(crate) fn known(&self, key: ImageKey) -> Option<BlockId> {
        self.known.get(&key).copied()
    }

    /// Keeps digests. It is not synced: after a crash of the machine the last
    /// of them are computed again.
    pub(crate) fn keep(
        &mut self,
        digests: impl Iterator<Item = (ImageKey, BlockId)>,
    ) -> io::Result<()> {
        let mut lines = String::new();
        for (ImageKey(key), id) in digests {
            let line = format!("{key} {id}");
            lines.push_str(&line);
            lines.push(' ');
            lines.push_str(&check(&line));
            lines.push('\n');
        }
        self.file.write_all(lines.as_bytes())
    }

    /// Removes the ledger: what it knows is published. Another import of the
    /// same checkpoint may have done so.
    pub(crate) fn remove(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

fn entry(line: &str) -> Option<(ImageKey, BlockId)> {
    let (entry, checksum) = line.rsplit_once(' ')?;
    let (key, id) = entry.split_once(' ')?;
    let intact = check(entry) == checksum;
    if intact { Some((ImageKey(key.parse().ok()?), id.parse().ok()?)) } else { None }
}

fn check(entry: &str) -> String {
    let mut digest = Digest::of(entry.as_bytes()).to_string();
    digest.truncate(CHECK_DIGITS);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(n: u8) -> (ImageKey, BlockId) {
        (ImageKey(Digest::from_bytes([n; 32])), BlockId::from_bytes([n ^ 0xff; 32]))
    }

    #[test]
    fn what_was_kept_is_known_again() {
        let scratch = tempfile::tempdir().expect("scratch");
        let mut ledger = Ledger::open(scratch.path(), "root").expect("opened");
        ledger.keep([pair(1), pair(2)].into_iter()).expect("kept");
        drop(ledger);
        let ledger = Ledger::open(scratch.path(), "root").expect("opened");
        assert_eq!(ledger.known(pair(2).0), Some(pair(2).1));
        assert_eq!(ledger.known(pair(3).0), None);
        let other = Ledger::open(scratch.path(), "other").expect("opened");
        assert_eq!(other.known(pair(2).0), None);
        Ledger::open(scratch.path(), "root").expect("opened").remove().expect("by another import");
        ledger.remove().expect("removed");
        let again = Ledger::open(scratch.path(), "root").expect("opened");
        assert_eq!(again.known(pair(2).0), None);
    }

    #[test]
    fn torn_and_changed_lines_are_absent_and_hide_no_other() {
        let scratch = tempfile::tempdir().expect("scratch");
        let mut ledger = Ledger::open(scratch.path(), "root").expect("opened");
        ledger.keep([pair(1), pair(2), pair(3)].into_iter()).expect("kept");
        let path = ledger.path.clone();
        drop(ledger);
        let mut bytes = fs::read(&path).expect("readable");
        let torn = bytes.len() - 10;
        bytes.truncate(torn);
        let line = MAGIC.len() + 1;
        bytes[line] = if bytes[line] == b'0' { b'1' } else { b'0' };
        fs::write(&path, &bytes).expect("written");
        let mut ledger = Ledger::open(scratch.path(), "root").expect("opened");
        assert_eq!(ledger.known.len(), 1);
        assert_eq!(ledger.known(pair(2).0), Some(pair(2).1));
        ledger.keep([pair(4)].into_iter()).expect("kept");
        drop(ledger);
        let ledger = Ledger::open(scratch.path(), "root").expect("opened");
        assert_eq!(ledger.known(pair(4).0), Some(pair(4).1));
    }

    #[test]
    fn a_file_of_another_kind_starts_over() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = Ledger::open(scratch.path(), "root").expect("opened").path;
        fs::write(&path, "something else\n").expect("written");
        let ledger = Ledger::open(scratch.path(), "root").expect("opened");
        assert!(ledger.known.is_empty());
        drop(ledger);
        assert!(fs::read_to_string(&path).expect("text").starts_with(MAGIC));
    }
}

//! Files that appear complete or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Writes what `fill` produces to `path`: first beside it under a temporary
/// name, then synced and renamed. On failure the temporary file is removed and
/// `path` is what it was.
pub(super) fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::local(format!("cannot write {}: {error}", path.display()));
    let beside = Temporary::beside(path).map_err(failed)?;
    beside.fill_and_publish(path, fill).map_err(failed)
}

/// A file of ours, removed when dropped before it has its name.
struct Temporary {
    path: PathBuf,
    file: File,
    published: bool,
}

impl Temporary {
    fn beside(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
        let mut own = std::ffi::OsString::from(".");
        own.push(name);
        own.push(format!(".{}.partial", std::process::id()));
        let path = path.with_file_name(own);
        // Left by a process of this id that was killed.
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { path, file, published: false })
    }

    fn fill_and_publish(
        mut self,
        path: &Path,
        fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut writer = BufWriter::with_capacity(1 << 20, &self.file);
        fill(&mut writer)?;
        writer.flush()?;
        drop(writer);
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        self.published = true;
        // The name is safe once its directory is.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // Nothing more can be done for a file that cannot be removed.
            let _left = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        write(&path, |file| file.write_all(b"old")).expect("written");
        let failure = write(&path, |file| {
            file.write_all(b"new")?;
            Err(io::Error::other("disk full"))
        })
        .expect_err("fill fails");
        assert!(failure.message.contains("disk full"), "{}", failure.message);
        assert_eq!(fs::read(&path).expect("readable"), b"old");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
    }
}

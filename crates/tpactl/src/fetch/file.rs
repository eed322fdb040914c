//! Files that appear complete or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Writes what `fill` produces to `path`: first beside it under a temporary
/// name, then synced and renamed. On failure the temporary file is removed and
/// `path` is what it was. A link's file is replaced, not the link; a device or
/// pipe is written to as it is, since root would replace `/dev/null` by a file.
pub(super) fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::local(format!("cannot write {}: {error}", path.display()));
    let target = match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(there) if there.is_file() => fs::canonicalize(path),
        Ok(_) => return pour(path, fill).map_err(failed),
        Err(_) => Ok(path.to_owned()),
    };
    let target = target.map_err(failed)?;
    let beside = Temporary::beside(&target).map_err(failed)?;
    beside.fill_and_publish(&target, fill).map_err(failed)
}

/// Writes to what is no regular file.
fn pour(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    fill(&mut writer)?;
    writer.flush()
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
    fn a_link_stays_one_and_its_file_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, b"old").expect("written");
        std::os::unix::fs::symlink("file", &link).expect("linked");
        write(&link, |file| file.write_all(b"new")).expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read(&file).expect("readable"), b"new");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 2);
    }

    /// A pipe stands for `/dev/null` and `/dev/stdout`, which root could
    /// replace by a file.
    #[test]
    fn what_is_no_file_is_written_to_and_never_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("it runs");
        assert!(made.success());
        // Read and write at once, so that opening waits for nobody.
        let mut ours = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
        write(&path, |file| file.write_all(b"new")).expect("written");
        assert!(!fs::symlink_metadata(&path).expect("there").is_file(), "it was replaced");
        let mut bytes = [0; 3];
        io::Read::read_exact(&mut ours, &mut bytes).expect("readable");
        assert_eq!(&bytes, b"new");
        let failure = write(dir.path(), |_| Ok(())).expect_err("a directory");
        assert!(failure.message.contains("directory"), "{}", failure.message);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
    }

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

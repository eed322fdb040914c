//! How large a disk is.

use std::io;
use std::path::Path;

/// The size of the file system that holds `path`, or would hold it: of the
/// nearest directory above it that exists.
///
/// # Errors
/// When the file system cannot be asked.
pub fn disk_bytes(path: &Path) -> io::Result<u64> {
    let nearest = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(nearest)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_is_on_a_disk_all_the_same() {
        let here = disk_bytes(&std::env::temp_dir()).expect("a file system");
        let below = disk_bytes(&std::env::temp_dir().join("no/such/directory"));
        assert_eq!(below.ok(), Some(here));
        assert!(here > 0);
    }
}

//! The Unix socket's file: made with its final permissions, never taken from a live daemon, removed at the end.
//!
//! Whoever holds the lock on `PATH.lock` owns the socket, so a socket file
//! without a locked lock belongs to a daemon that is dead. The socket is bound
//! under another name and renamed into place: nobody can connect to it before
//! its permissions are right, and a stale file is replaced in one step.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

use super::BindError;
use crate::config::UnixSocket;

/// Removes the socket's file when it is dropped, unless it is another's by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
    lock_path: PathBuf,
    /// Locked for as long as the daemon lives; the kernel unlocks it when it dies.
    _lock: File,
}

/// Makes the socket and listens on it; `key` is the configuration's that names it.
pub(crate) fn bind(
    key: &'static str,
    socket: &UnixSocket,
) -> Result<(UnixListener, SocketFile), BindError> {
    let path = &socket.path;
    make_directory(path).map_err(|error| BindError::SocketDirectory {
        key,
        path: path.clone(),
        error,
    })?;
    let failed = |error| BindError::Socket { key, path: path.clone(), error };
    let lock_path = with_suffix(path, ".lck");
    let Some(lock) = lock(&lock_path).map_err(failed)? else {
        return Err(BindError::SocketInUse { key, path: path.clone() });
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { key, path: path.clone() });
        }
        // Some other program's live socket holds no lock of ours.
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(BindError::SocketInUse { key, path: path.clone() });
        }
        Ok(_) => tracing::debug!(path = %path.display(), "replacing the socket of a dead daemon"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let new = with_suffix(path, ".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed)?;
    fs::set_permissions(&new, Permissions::from_mode(socket.mode)).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
    Ok((listener, SocketFile { path: path.clone(), inode, lock_path, _lock: lock }))
}

/// Makes the socket's directory, for this user only, if it is missing.
fn make_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) if !directory.is_dir() => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
        }
        _ => Ok(()),
    }
}

/// Locks the file, or says with `None` that another process has.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // A daemon that ended between our open and our lock has removed this file: lock its successor.
        match fs::symlink_metadata(path) {
            Ok(there) if there.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            _ => {}
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
        // While it is still locked: see `lock`.
        let _ = fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(directory: &tempfile::TempDir) -> UnixSocket {
        UnixSocket { path: directory.path().join("run/tpad.sock"), mode: 0o660 }
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_and_its_directory_get_their_permissions_and_go_with_the_daemon() {
        let directory = directory();
        let socket = socket(&directory);
        let (_listener, file) = bind("listen.uds", &socket).expect("bound");
        assert_eq!(mode(&socket.path), 0o660);
        assert_eq!(mode(socket.path.parent().expect("a parent")), 0o700);
        tokio::net::UnixStream::connect(&socket.path).await.expect("connects");
        drop(file);
        let left: Vec<_> = fs::read_dir(directory.path().join("run")).expect("listed").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn a_live_daemons_socket_is_refused_and_survives() {
        let directory = directory();
        let socket = socket(&directory);
        let (_listener, _file) = bind("listen.uds", &socket).expect("bound");
        assert!(matches!(bind("listen.uds", &socket), Err(BindError::SocketInUse { .. })));
        tokio::net::UnixStream::connect(&socket.path).await.expect("still connects");
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced() {
        let directory = directory();
        let socket = socket(&directory);
        fs::create_dir(directory.path().join("run")).expect("created");
        // As SIGKILL leaves it: the file is there and nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&socket.path).expect("bound"));
        assert!(socket.path.exists());
        let (_listener, _file) = bind("listen.uds", &socket).expect("replaced");
        tokio::net::UnixStream::connect(&socket.path).await.expect("connects");
    }

    #[tokio::test]
    async fn another_programs_socket_and_other_files_are_left_alone() {
        let directory = directory();
        let socket = socket(&directory);
        fs::create_dir(directory.path().join("run")).expect("created");
        let other = std::os::unix::net::UnixListener::bind(&socket.path).expect("bound");
        assert!(matches!(bind("listen.uds", &socket), Err(BindError::SocketInUse { .. })));
        drop(other);
        fs::remove_file(&socket.path).expect("removed");
        fs::write(&socket.path, "precious").expect("written");
        assert!(matches!(bind("listen.uds", &socket), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&socket.path).expect("read"), "precious");
    }
}

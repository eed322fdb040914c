//! Where a daemon listens.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Error;

/// A daemon's gRPC address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `http://HOST:PORT`, cleartext HTTP/2.
    Http(String),
    /// `https://HOST:PORT`, HTTP/2 over TLS.
    Https(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Error;

    /// Reads `http://HOST:PORT`, `https://HOST:PORT`, `unix:///PATH` or a bare absolute path.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Address { address: text.into(), reason: reason.into() };
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"))
            .or_else(|| text.starts_with('/').then_some(text));
        if let Some(path) = path {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(wrong("the socket's path is not absolute"));
            }
            return Ok(Self::Unix(path.into()));
        }
        let (secure, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(wrong("it has no scheme")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let uri: tonic::transport::Uri =
            format!("http://{authority}").parse().map_err(|error| wrong(&format!("{error}")))?;
        if uri.port_u16().is_none() {
            return Err(wrong("it has no port"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("a path makes no sense there"));
        }
        Ok(if secure {
            Self::Https(format!("https://{authority}"))
        } else {
            Self::Http(format!("http://{authority}"))
        })
    }
}

impl Address {
    /// `HOST:PORT`; `None` for a Unix socket.
    pub(crate) fn authority(&self) -> Option<&str> {
        match self {
            Self::Http(url) => url.strip_prefix("http://"),
            Self::Https(url) => url.strip_prefix("https://"),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) | Self::Https(url) => f.write_str(url),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// The places of the daemon's Unix socket when nobody names one: the one rule
/// for the daemon and its clients.
///
/// They are `$XDG_RUNTIME_DIR/tpad/tpad.sock`, `/run/tpad/tpad.sock` for the
/// system's daemon, and `/tmp/tpad-UID/tpad.sock`.
#[derive(Clone, Debug)]
pub struct SocketPaths {
    runtime: Option<PathBuf>,
    system: PathBuf,
    temporary: PathBuf,
    user: u32,
}

impl SocketPaths {
    /// The places for this process's user. `runtime_dir` is the value of
    /// `XDG_RUNTIME_DIR`; relative values count as unset.
    #[must_use]
    pub fn new(runtime_dir: Option<&OsStr>) -> Self {
        let user = rustix::process::geteuid().as_raw();
        Self {
            runtime: runtime_dir
                .map(Path::new)
                .filter(|dir| dir.is_absolute())
                .map(|dir| dir.join("tpad/tpad.sock")),
            system: "/run/tpad/tpad.sock".into(),
            temporary: format!("/tmp/tpad-{user}/tpad.sock").into(),
            user,
        }
    }

    /// Where a daemon listens: in its user's runtime directory, else in `/run`
    /// for root, else below `/tmp`.
    #[must_use]
    pub fn to_listen(&self) -> PathBuf {
        match &self.runtime {
            Some(runtime) => runtime.clone(),
            None if self.user == 0 => self.system.clone(),
            None => self.temporary.clone(),
        }
    }

    /// Where a client connects: the first place that holds a socket of this
    /// user or of the system; when none does, where this user's daemon would
    /// listen.
    #[must_use]
    pub fn to_connect(&self) -> PathBuf {
        let mine = self.runtime.iter().chain([&self.temporary]);
        let places = mine.filter(|path| owner(path) == Some(self.user));
        // Only root can make /run/tpad, so whoever owns it was chosen by root.
        let found = places.chain([&self.system]).find(|path| is_socket(path));
        found.cloned().unwrap_or_else(|| self.to_listen())
    }
}

/// The handoff socket beside a daemon's gRPC socket, unless its configuration says
/// otherwise: the name with `-handoff` before `.sock`.
#[must_use]
pub fn handoff_socket(grpc: &Path) -> PathBuf {
    let stem = grpc.file_stem().unwrap_or_default().to_string_lossy();
    grpc.with_file_name(format!("{stem}-handoff.sock"))
}

fn owner(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|metadata| metadata.uid())
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let read = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        assert_eq!(read("http://127.0.0.1:7070/").expect("url"), "http://127.0.0.1:7070");
        assert_eq!(read("https://h:1").expect("url"), "https://h:1");
        assert_eq!(read("http://[::1]:7070").expect("url"), "http://[::1]:7070");
        assert_eq!(read("unix:///run/x.sock").expect("socket"), "unix:///run/x.sock");
        assert_eq!(read("/run/x.sock").expect("path"), "unix:///run/x.sock");
        for text in ["", "localhost:7070", "ftp://h:1", "http://h", "unix:x", "http://h:1/p"] {
            let error = read(text).expect_err(text);
            assert_eq!(error.kind(), crate::Kind::InvalidArgument, "{error}");
        }
    }

    #[test]
    fn sockets_are_found_where_the_rule_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut paths = SocketPaths::new(Some(dir.path().as_os_str()));
        paths.system = dir.path().join("run/tpad.sock");
        paths.temporary = dir.path().join("tmp/tpad.sock");
        let mine = dir.path().join("tpad/tpad.sock");
        assert_eq!(paths.to_listen(), mine);
        assert_eq!(paths.to_connect(), mine);

        let elsewhere = |user| SocketPaths { runtime: None, user, ..paths.clone() }.to_listen();
        assert_eq!(elsewhere(0), paths.system);
        assert_eq!(elsewhere(7), paths.temporary);

        std::fs::create_dir(dir.path().join("tmp")).expect("a directory");
        let _socket = std::os::unix::net::UnixListener::bind(&paths.temporary).expect("a socket");
        assert_eq!(paths.to_connect(), paths.temporary);
        std::fs::create_dir(dir.path().join("tpad")).expect("a directory");
        let _socket = std::os::unix::net::UnixListener::bind(&mine).expect("a socket");
        assert_eq!(paths.to_connect(), mine);
        assert_eq!(SocketPaths::new(Some(OsStr::new("relative"))).runtime, None);
    }
}

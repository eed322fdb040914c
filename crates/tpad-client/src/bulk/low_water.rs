//! How much has to have come before a socket wakes its reader.
#![expect(unsafe_code, reason = "no crate at hand sets SO_RCVLOWAT")]

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd as _};

/// Sets the low-water mark. The kernel lowers what it cannot hold, and wakes the reader at
/// once if what is there is enough for a lower one.
pub(super) fn set(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let socket = socket.as_fd().as_raw_fd();
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).unwrap_or_default();
    // SAFETY: the socket is open as long as it is borrowed, and `bytes` is the `int` of
    // `length` bytes that the option takes; the kernel reads it and keeps nothing of it.
    let set = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            std::ptr::from_ref(&bytes).cast(),
            length,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, Interest};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_reader_sleeps_until_the_mark_and_not_longer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let reader = TcpStream::connect(address).await.expect("it listens");
        let (mut writer, _) = listener.accept().await.expect("a connection");
        set(&reader, 20_000).expect("it is a socket");
        writer.write_all(&[7; 19_999]).await.expect("there is room");
        let moment = std::time::Duration::from_millis(200);
        let early = tokio::time::timeout(moment, reader.ready(Interest::READABLE)).await;
        assert!(early.is_err(), "woken below the mark");
        writer.write_all(&[7]).await.expect("there is room");
        reader.ready(Interest::READABLE).await.expect("all is there");

        // Lowered, it wakes a reader of what is there already.
        let reader = TcpStream::connect(address).await.expect("it listens");
        let (mut writer, _) = listener.accept().await.expect("a connection");
        set(&reader, 20_000).expect("it is a socket");
        writer.write_all(&[7; 10]).await.expect("there is room");
        let early = tokio::time::timeout(moment, reader.ready(Interest::READABLE)).await;
        assert!(early.is_err(), "woken below the mark");
        set(&reader, 1).expect("it is a socket");
        reader.ready(Interest::READABLE).await.expect("enough is there");
    }
}

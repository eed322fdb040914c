//! How much of a stream its client takes without being asked, as it says when it connects.
//!
//! A reply that fits in the window that each stream gets at first, on a connection whose own
//! window is as good as endless, leaves HTTP/2 as fast as the socket takes it. One that does not
//! can wait there for who reads it. Of tpad's clients both that receive blocks give so much: the
//! bulk one, with one call on a connection, and tonic's for streams, which many calls share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A frame's header (RFC 9113, section 4.1).
const HEADER: usize = 9;
/// A setting: its name of two bytes and its value of four (section 6.5.1).
const SETTING: usize = 6;
/// What a `WINDOW_UPDATE` adds.
const INCREMENT: usize = 4;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;
/// Of a stream and of a connection, without a word of the client's.
const FIRST: u32 = 65_535;
/// A connection's, from which on it does not matter what else of it is unread.
const ENDLESS: u32 = 1 << 30;

/// What a connection's client takes of each stream without being asked.
#[derive(Clone, Debug)]
pub(super) struct Window(Arc<AtomicU32>);

/// Finds it in what the client says before its first request, which HTTP/2 then reads for itself.
#[derive(Debug)]
pub(super) struct Greeting {
    window: Window,
    stream: u32,
    connection: u32,
    /// What is not complete: a header, a setting or an increment.
    part: [u8; HEADER],
    filled: usize,
    next: Next,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Header,
    /// So many bytes of settings.
    Settings(usize),
    Increment,
    /// Requests: all is known.
    Other,
}

impl Window {
    /// Of a client that has said nothing: none.
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    #[cfg(test)]
    pub(super) fn of(bytes: u32) -> Self {
        Self(Arc::new(bytes.into()))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed).into()
    }
}

impl Greeting {
    pub(super) fn new(window: Window) -> Self {
        let (stream, connection) = (FIRST, FIRST);
        Self { window, stream, connection, part: [0; HEADER], filled: 0, next: Next::Header }
    }

    /// Whether more is to be seen after `bytes`, which follow the preface and what was seen.
    pub(super) fn sees(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let whole = match self.next {
                Next::Header => HEADER,
                Next::Settings(_) => SETTING,
                Next::Increment => INCREMENT,
                Next::Other => return false,
            };
            let taken = bytes.len().min(whole - self.filled);
            self.part[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            (self.filled, bytes) = (self.filled + taken, &bytes[taken..]);
            if self.filled < whole {
                return true;
            }
            self.filled = 0;
            self.next = match self.next {
                Next::Settings(left) => {
                    self.setting();
                    // A length that is no whole number of settings ends the connection.
                    Next::settings(left.saturating_sub(SETTING))
                }
                Next::Increment => {
                    self.widen();
                    Next::Header
                }
                _ => self.header(),
            };
        }
    }

    fn header(&self) -> Next {
        let [a, b, c, kind, flags, stream @ ..] = self.part;
        let bytes = u32::from_be_bytes([0, a, b, c]) as usize;
        match kind {
            SETTINGS if flags & ACK == 0 => Next::settings(bytes),
            WINDOW_UPDATE if stream == [0; 4] && bytes == INCREMENT => Next::Increment,
            _ => Next::Other,
        }
    }

    fn setting(&mut self) {
        let [a, b, value @ .., _, _, _] = self.part;
        if u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE {
            self.stream = u32::from_be_bytes(value);
            self.tell();
        }
    }

    fn widen(&mut self) {
        let [increment @ .., _, _, _, _, _] = self.part;
        self.connection = self.connection.saturating_add(u32::from_be_bytes(increment));
        self.tell();
    }

    fn tell(&self) {
        let bytes = if self.connection >= ENDLESS { self.stream } else { 0 };
        self.window.0.store(bytes, Ordering::Relaxed);
    }
}

impl Next {
    fn settings(bytes: usize) -> Self {
        if bytes == 0 { Self::Header } else { Self::Settings(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: u8 = 1;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
        frame.extend(payload);
        frame
    }

    fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| name.to_be_bytes().into_iter().chain(value.to_be_bytes()))
            .collect();
        frame(SETTINGS, 0, 0, &payload)
    }

    fn widen(stream: u8, by: u32) -> Vec<u8> {
        frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
    }

    /// What is known after `frames`, come in parts of `part` bytes, and whether that is all.
    fn seen(frames: &[Vec<u8>], part: usize) -> (u64, bool) {
        let window = Window::new();
        let mut greeting = Greeting::new(window.clone());
        let more = frames.concat().chunks(part).all(|part| greeting.sees(part));
        (window.bytes(), !more)
    }

    #[test]
    fn the_windows_are_found_however_they_come() {
        let request = frame(HEADERS, 5, 1, &[0; 40]);
        let stream = settings(&[(1, 0), (INITIAL_WINDOW_SIZE, 16 << 20), (5, 1 << 20)]);
        let ack = frame(SETTINGS, ACK, 0, &[]);
        for part in 1..100 {
            let both = [stream.clone(), widen(0, ENDLESS), request.clone()];
            assert_eq!(seen(&both, part), (16 << 20, true), "{part}");
            let turned = [settings(&[]), widen(0, 1 << 29), widen(0, 1 << 29), stream.clone()];
            assert_eq!(seen(&turned, part), (16 << 20, false), "{part}");
            // What comes after the first request was sent is not looked at.
            for late in [&request, &ack] {
                let late = [stream.clone(), late.clone(), widen(0, ENDLESS)];
                assert_eq!(seen(&late, part), (0, true), "{part}");
            }
        }
        // The last of a setting's values counts, as for HTTP/2.
        let twice = settings(&[(INITIAL_WINDOW_SIZE, 1), (INITIAL_WINDOW_SIZE, 2)]);
        assert_eq!(seen(&[widen(0, ENDLESS), twice], 100), (2, false));
    }

    #[test]
    fn who_gives_the_connection_little_is_asked() {
        let stream = settings(&[(INITIAL_WINDOW_SIZE, 16 << 20)]);
        assert_eq!(seen(std::slice::from_ref(&stream), 100), (0, false));
        assert_eq!(seen(&[stream.clone(), widen(0, 16 << 20)], 100), (0, false));
        // Another stream's, and a frame of another length, which HTTP/2 refuses.
        assert_eq!(seen(&[stream.clone(), widen(1, ENDLESS)], 100), (0, true));
        let long = frame(WINDOW_UPDATE, 0, 0, &[0x40; 5]);
        assert_eq!(seen(&[stream, long], 100), (0, true));
        // Each stream keeps the first window, if that is all it has.
        assert_eq!(seen(&[settings(&[]), widen(0, ENDLESS)], 100), (u64::from(FIRST), false));
        // Settings of seven bytes: HTTP/2 refuses them.
        let mut odd = settings(&[(INITIAL_WINDOW_SIZE, 1)]);
        odd[2] = 7;
        odd.extend([0; 20]);
        assert_eq!(seen(&[odd], 100).0, 0);
    }
}

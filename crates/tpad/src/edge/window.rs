//! How much of a stream its client takes without being asked: the window it gives each at first.
//!
//! A reply that fits in it leaves HTTP/2 as fast as the socket takes it, whether anybody reads
//! that stream or not. One that does not can wait there for its reader.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A frame's header (RFC 9113, section 4.1).
const HEADER: usize = 9;
/// A setting: its name of two bytes and its value of four (section 6.5.1).
const SETTING: usize = 6;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;
/// Without a word of the client's.
const DEFAULT: u32 = 65_535;

/// The first window of each of a connection's streams, as the client said when it connected.
#[derive(Clone, Debug)]
pub(super) struct Window(Arc<AtomicU32>);

/// Finds it in what the client says first, which HTTP/2 then reads for itself.
#[derive(Debug)]
pub(super) struct Greeting {
    window: Window,
    /// The header or the setting that is not complete.
    part: [u8; HEADER],
    filled: usize,
    /// Bytes of settings that are to come; `None` before the header was seen.
    left: Option<usize>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU32::new(DEFAULT)))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed).into()
    }
}

impl Greeting {
    pub(super) fn new(window: Window) -> Self {
        Self { window, part: [0; HEADER], filled: 0, left: None }
    }

    /// Whether more is to be seen after `bytes`, which follow the preface and what was seen.
    pub(super) fn sees(&mut self, mut bytes: &[u8]) -> bool {
        while self.left != Some(0) {
            let whole = if self.left.is_some() { SETTING } else { HEADER };
            let taken = bytes.len().min(whole - self.filled);
            self.part[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            (self.filled, bytes) = (self.filled + taken, &bytes[taken..]);
            if self.filled < whole {
                return true;
            }
            self.filled = 0;
            self.left = Some(match self.left {
                None => self.settings(),
                Some(left) => {
                    self.setting();
                    // A length that is no whole number of settings ends the connection.
                    left.saturating_sub(SETTING)
                }
            });
        }
        false
    }

    /// The bytes of settings that follow the header; none after one that is no such frame's.
    fn settings(&self) -> usize {
        let [a, b, c, kind, flags, ..] = self.part;
        let bytes = u32::from_be_bytes([0, a, b, c]);
        if kind == SETTINGS && flags & ACK == 0 { bytes as usize } else { 0 }
    }

    fn setting(&self) {
        let [a, b, value @ .., _, _, _] = self.part;
        if u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE {
            self.window.0.store(u32::from_be_bytes(value), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, settings: &[(u16, u32)]) -> Vec<u8> {
        let length = u8::try_from(settings.len() * SETTING).expect("few");
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 0];
        for (name, value) in settings {
            frame.extend(name.to_be_bytes());
            frame.extend(value.to_be_bytes());
        }
        frame
    }

    /// What is known after `bytes`, come in parts of `part` bytes, and how many were needed.
    fn seen(bytes: &[u8], part: usize) -> (u64, usize) {
        let window = Window::new();
        let mut greeting = Greeting::new(window.clone());
        let mut needed = 0;
        for part in bytes.chunks(part) {
            needed += part.len();
            if !greeting.sees(part) {
                break;
            }
        }
        (window.bytes(), needed)
    }

    #[test]
    fn the_window_is_found_however_the_settings_come() {
        let mut bytes =
            frame(SETTINGS, 0, &[(1, 0), (INITIAL_WINDOW_SIZE, 16 << 20), (5, 1 << 20)]);
        let whole = bytes.len();
        // What comes later is not looked at.
        bytes.extend(frame(SETTINGS, 0, &[(INITIAL_WINDOW_SIZE, 7)]));
        for part in 1..whole {
            let (window, needed) = seen(&bytes, part);
            let most = whole.next_multiple_of(part).min(bytes.len());
            assert_eq!((window, needed), (16 << 20, most), "{part}");
        }
        // The last of a setting's values counts, as for HTTP/2.
        let twice = frame(SETTINGS, 0, &[(INITIAL_WINDOW_SIZE, 1), (INITIAL_WINDOW_SIZE, 2)]);
        assert_eq!(seen(&twice, 100).0, 2);
    }

    #[test]
    fn who_says_nothing_of_it_has_the_default() {
        let default = u64::from(DEFAULT);
        assert_eq!(seen(&frame(SETTINGS, 0, &[]), 1), (default, HEADER));
        assert_eq!(seen(&frame(SETTINGS, 0, &[(1, 0)]), 1), (default, HEADER + SETTING));
        let setting = [(INITIAL_WINDOW_SIZE, 1)];
        assert_eq!(seen(&frame(0, 0, &setting), 1), (default, HEADER), "no settings");
        assert_eq!(seen(&frame(SETTINGS, ACK, &setting), 1), (default, HEADER), "no settings");
        // A frame that claims seven bytes: HTTP/2 refuses it.
        let mut odd = frame(SETTINGS, 0, &setting);
        odd[2] = 7;
        odd.extend([0; 20]);
        assert_eq!(seen(&odd, 100).0, 1);
    }
}

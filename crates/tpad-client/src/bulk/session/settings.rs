//! What the daemon's SETTINGS say.

use super::super::frame;
use super::{Fault, fault};

/// The daemon's settings: HTTP/2's own until it says otherwise.
#[derive(Debug)]
pub(super) struct PeerSettings {
    /// The largest payload of a frame that it takes.
    pub(super) frame_bytes: usize,
    /// What it takes of each stream before it raises the stream's window.
    pub(super) window: u32,
    /// Streams at a time.
    pub(super) streams: u32,
}

impl PeerSettings {
    pub(super) fn new() -> Self {
        Self {
            frame_bytes: frame::FIRST_FRAME_BYTES,
            window: frame::FIRST_WINDOW,
            streams: u32::MAX,
        }
    }

    /// The settings of a frame that holds some, in order: their names and values.
    pub(super) fn read(payload: &[u8]) -> Result<impl Iterator<Item = (u16, u32)>, Fault> {
        let (settings, []) = payload.as_chunks::<6>() else {
            return fault(frame::FRAME_SIZE_ERROR, "SETTINGS has six bytes each");
        };
        let read = |[a, b, value @ ..]: &[u8; 6]| {
            (u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*value))
        };
        Ok(settings.iter().map(read))
    }

    /// Takes a setting over; by how much it changes the windows of streams that are there.
    pub(super) fn set(&mut self, name: u16, value: u32) -> Result<i64, Fault> {
        match name {
            frame::ENABLE_PUSH if value != 0 => {
                return fault(frame::PROTOCOL_ERROR, "a server cannot allow pushes");
            }
            frame::MAX_CONCURRENT_STREAMS => self.streams = value,
            frame::INITIAL_WINDOW_SIZE if value > frame::LARGEST_WINDOW => {
                return fault(frame::FLOW_CONTROL_ERROR, "a window that cannot be");
            }
            frame::INITIAL_WINDOW_SIZE => {
                let before = std::mem::replace(&mut self.window, value);
                return Ok(i64::from(value) - i64::from(before));
            }
            frame::MAX_FRAME_SIZE => {
                let bytes = usize::try_from(value).unwrap_or(0);
                if bytes < frame::FIRST_FRAME_BYTES || value > frame::LARGEST_FRAME {
                    return fault(frame::PROTOCOL_ERROR, "a frame size that cannot be");
                }
                self.frame_bytes = bytes;
            }
            // The others are not meant for us, or looked at elsewhere.
            _ => {}
        }
        Ok(0)
    }
}

//! Frames other than DATA: what they change, and how they are answered.

use super::super::frame::{self, FrameHead};
use super::super::header::HEADER_BLOCK_BYTES;
use super::header_block::HeaderBlock;
use super::settings::PeerSettings;
use super::{ANSWER_BYTES, Fault, Session, fault};

impl Session {
    /// How much of a frame other than DATA is to be kept for [`Session::frame`]; of
    /// kinds that nobody knows nothing.
    pub(in crate::bulk) fn keeps(head: FrameHead) -> Result<usize, Fault> {
        let most = match head.kind {
            frame::HEADERS | frame::CONTINUATION => HEADER_BLOCK_BYTES,
            frame::SETTINGS => 1200,
            frame::GOAWAY => 4096,
            frame::PRIORITY
            | frame::RST_STREAM
            | frame::PING
            | frame::WINDOW_UPDATE
            | frame::PUSH_PROMISE => 64,
            _ => return Ok(0),
        };
        if head.bytes > most {
            let what = format!("a frame of kind {} has {} bytes", head.kind, head.bytes);
            return fault(frame::ENHANCE_YOUR_CALM, what);
        }
        Ok(head.bytes)
    }

    /// A frame other than DATA, with its payload.
    pub(in crate::bulk) fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        self.admit(head)?;
        match head.kind {
            frame::HEADERS => self.headers(head, payload)?,
            frame::CONTINUATION => {
                let block = self.header_blocks.go_on(head, payload)?;
                self.header_block(block)?;
            }
            frame::SETTINGS => self.settings(head, payload)?,
            frame::PING => self.pinged(head, payload)?,
            frame::WINDOW_UPDATE => self.raise(head, payload)?,
            frame::RST_STREAM => self.reset(head, payload)?,
            frame::GOAWAY => self.goes_away(head, payload)?,
            frame::PUSH_PROMISE => {
                return fault(frame::PROTOCOL_ERROR, "a promise that was ruled out");
            }
            frame::PRIORITY if head.stream == 0 || payload.len() != 5 => {
                return fault(frame::FRAME_SIZE_ERROR, "PRIORITY has five bytes, of a stream");
            }
            // Of no meaning here, or of kinds that may come later.
            _ => {}
        }
        if self.answers > ANSWER_BYTES {
            return fault(frame::ENHANCE_YOUR_CALM, "it asks and does not read the answers");
        }
        Ok(())
    }

    fn headers(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        self.known(head.stream)?;
        if self.call.as_ref().is_none_or(|call| call.stream != head.stream || call.ended) {
            return fault(frame::STREAM_CLOSED, format!("headers of stream {}", head.stream));
        }
        let block = self.header_blocks.begin(head, payload)?;
        self.header_block(block)
    }

    /// What a block says of the call, once it is there.
    fn header_block(&mut self, block: Option<HeaderBlock>) -> Result<(), Fault> {
        let (Some(HeaderBlock { fields, end }), Some(call)) = (block, &mut self.call) else {
            return Ok(());
        };
        call.fields(fields, end)
            .or_else(|what| fault(frame::PROTOCOL_ERROR, format!("a reply is malformed: {what}")))
    }

    fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return fault(frame::PROTOCOL_ERROR, "SETTINGS of a stream");
        }
        if head.has(frame::ACK) {
            let wrong = !payload.is_empty();
            return if wrong {
                fault(frame::FRAME_SIZE_ERROR, "SETTINGS' answer is empty")
            } else {
                Ok(())
            };
        }
        let settings = PeerSettings::read(payload)?;
        self.greeted = true;
        for (name, value) in settings {
            if name == frame::HEADER_TABLE_SIZE {
                self.request_heads.resize(value);
            }
            let change = self.peer.set(name, value)?;
            if let Some(call) = &mut self.call
                && !call.raise(change)
            {
                return fault(frame::FLOW_CONTROL_ERROR, "a window that cannot be");
            }
        }
        self.answer(frame::SETTINGS, &[]);
        self.send_body();
        Ok(())
    }

    fn pinged(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        if payload.len() != 8 || head.stream != 0 {
            return fault(frame::FRAME_SIZE_ERROR, "PING has eight bytes, of stream 0");
        }
        if !head.has(frame::ACK) {
            self.answer(frame::PING, payload);
        }
        Ok(())
    }

    fn raise(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        let more = match (frame::number(payload), payload.len()) {
            (Some(more), 4) => i64::from(more & frame::LARGEST_WINDOW),
            _ => return fault(frame::FRAME_SIZE_ERROR, "WINDOW_UPDATE has four bytes"),
        };
        self.known(head.stream)?;
        let raised = if head.stream == 0 {
            self.send_window += more;
            more > 0 && self.send_window <= i64::from(frame::LARGEST_WINDOW)
        } else {
            let call = self.call.as_mut().filter(|call| call.stream == head.stream);
            call.is_none_or(|call| more > 0 && call.raise(more))
        };
        if !raised {
            return fault(frame::FLOW_CONTROL_ERROR, "a window that cannot be");
        }
        self.send_body();
        Ok(())
    }

    fn reset(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        let code = match (frame::number(payload), payload.len()) {
            (Some(code), 4) => code,
            _ => return fault(frame::FRAME_SIZE_ERROR, "RST_STREAM has four bytes"),
        };
        self.known(head.stream)?;
        if let Some(call) = self.call.as_mut().filter(|call| call.stream == head.stream) {
            call.reset(code);
        }
        Ok(())
    }

    fn goes_away(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        let numbers = (frame::number(payload), frame::number(&payload[4.min(payload.len())..]));
        let (Some(last), Some(code), 0) = (numbers.0, numbers.1, head.stream) else {
            return fault(frame::FRAME_SIZE_ERROR, "GOAWAY has eight bytes, of stream 0");
        };
        let last = last & frame::LARGEST_WINDOW;
        self.going_away = Some((last, code));
        if let Some(call) = self.call.as_mut().filter(|call| call.stream > last) {
            call.turned_away(code);
        }
        Ok(())
    }

    fn answer(&mut self, kind: u8, payload: &[u8]) {
        frame::append(&mut self.output, kind, frame::ACK, 0, payload);
        self.answers += frame::HEAD_BYTES + payload.len();
    }

    /// Refuses frames of streams that nobody opened.
    fn known(&self, stream: u32) -> Result<(), Fault> {
        if stream % 2 == u32::from(stream != 0) && stream < self.next_stream {
            Ok(())
        } else {
            fault(frame::PROTOCOL_ERROR, format!("a frame of stream {stream}, which nobody opened"))
        }
    }
}

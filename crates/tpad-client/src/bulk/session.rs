//! The protocol of one connection, without its socket: which frames may come,
//! and what they change and call for.
//!
//! One call at a time: calls that share a connection would wait for each
//! other's bytes, since each is received by whoever made it.

use loona_hpack::Decoder;

use super::call::{CallState, Request};
use super::flow::{Overrun, Window};
use super::frame::{self, FrameHead};
use super::header::{self, Fields, HEADER_BLOCK_BYTES, HEADER_LIST_BYTES, HeaderFault};

/// What the daemon may send before it hears from us: a thirtieth of a second at 2 GB/s
/// until half of it is given back, far more than any round trip. What is not read
/// stays in the sockets: nothing here takes this memory.
pub(super) const WINDOW_BYTES: u32 = 64 << 20;

/// The largest frames that we take: twice the daemon's pieces. Nothing else waits
/// behind one, since a call has its connection for itself.
pub(super) const FRAME_BYTES: u32 = 4 << 20;

/// Answers that wait for a daemon which asks and does not read.
const ANSWER_BYTES: usize = 64 << 10;

/// Frames in a row that bring no byte of a reply: pings, settings, empty data.
const IDLE_FRAMES: u32 = 10_000;

/// An error that ends the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The daemon is told this.
    pub(super) code: u32,
    pub(super) what: String,
}

/// What the daemon's SETTINGS say.
#[derive(Debug)]
struct PeerSettings {
    frame_bytes: usize,
    window: u32,
    streams: u32,
}

/// A connection's state.
pub(super) struct Session {
    peer: PeerSettings,
    /// What we may send over all calls.
    send_window: i64,
    window: Window,
    next_stream: u32,
    pub(super) call: Option<CallState>,
    /// A header block that is continued: is it a stream's end, and its bytes.
    block: Option<(bool, Vec<u8>)>,
    decoder: Decoder<'static>,
    /// The last stream that the daemon will serve, and why it goes.
    going_away: Option<(u32, u32)>,
    /// Whether its SETTINGS came, which are the first frame.
    greeted: bool,
    idle_frames: u32,
    /// To be written.
    pub(super) output: Vec<u8>,
    /// What of it answers questions.
    answers: usize,
}

fn fault<T>(code: u32, what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { code, what: what.into() })
}

impl Session {
    pub(super) fn new() -> Self {
        let mut output = frame::PREFACE.to_vec();
        let settings = [
            (frame::ENABLE_PUSH, 0),
            (frame::INITIAL_WINDOW_SIZE, WINDOW_BYTES),
            (frame::MAX_FRAME_SIZE, FRAME_BYTES),
            (frame::MAX_HEADER_LIST_SIZE, u32::try_from(HEADER_LIST_BYTES).unwrap_or(u32::MAX)),
        ];
        frame::append_settings(&mut output, &settings);
        let more = WINDOW_BYTES - frame::FIRST_WINDOW;
        frame::append(&mut output, frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        let mut decoder = Decoder::new();
        // HPACK's default, which we do not change.
        decoder.set_max_allowed_table_size(4096);
        Self {
            peer: PeerSettings {
                frame_bytes: frame::FIRST_FRAME_BYTES,
                window: frame::FIRST_WINDOW,
                streams: u32::MAX,
            },
            send_window: i64::from(frame::FIRST_WINDOW),
            window: Window::new(WINDOW_BYTES),
            next_stream: 1,
            call: None,
            block: None,
            decoder,
            going_away: None,
            greeted: false,
            idle_frames: 0,
            output,
            answers: 0,
        }
    }

    /// Whether another call may begin.
    pub(super) fn is_free(&self) -> bool {
        self.going_away.is_none()
            && self.block.is_none()
            && self.peer.streams > 0
            && self.next_stream <= frame::LARGEST_WINDOW
            && self.call.as_ref().is_none_or(|call| call.ended && call.is_sent())
    }

    /// Begins a call.
    pub(super) fn start(&mut self, request: Request) {
        let stream = self.next_stream;
        self.next_stream = self.next_stream.saturating_add(2);
        let end = if request.body.is_empty() { frame::END_STREAM } else { 0 };
        let head = request.head();
        // The daemon takes frames of 16 KiB at least, and a head has far less.
        frame::append(&mut self.output, frame::HEADERS, frame::END_HEADERS | end, stream, &head);
        let window = i64::from(self.peer.window);
        self.call = Some(CallState::new(stream, request.body, window, WINDOW_BYTES));
        self.send_body();
    }

    /// Writes as much of the request as the daemon's windows take.
    fn send_body(&mut self) {
        let Some(call) = &mut self.call else { return };
        while !call.ended
            && let Some((piece, last)) = call.next_piece(self.peer.frame_bytes, self.send_window)
        {
            self.send_window -= piece.len() as i64;
            let end = if last { frame::END_STREAM } else { 0 };
            frame::append(&mut self.output, frame::DATA, end, call.stream, &piece);
        }
    }

    /// Says that we are leaving, and why.
    pub(super) fn leave(&mut self, code: u32) {
        if let Some(call) = self.call.take().filter(|call| !call.ended) {
            let code = frame::CANCEL.to_be_bytes();
            frame::append(&mut self.output, frame::RST_STREAM, 0, call.stream, &code);
        }
        let mut payload = [0; 8];
        payload[4..].copy_from_slice(&code.to_be_bytes());
        frame::append(&mut self.output, frame::GOAWAY, 0, 0, &payload);
    }

    /// Asks whether the daemon is there.
    pub(super) fn ping(&mut self) {
        frame::append(&mut self.output, frame::PING, 0, 0, b"tpadping");
    }

    /// Checks the head of a DATA frame and counts its payload, padding and all.
    pub(super) fn data(&mut self, head: FrameHead) -> Result<(), Fault> {
        self.admit(head)?;
        let overrun = |Overrun| Fault {
            code: frame::FLOW_CONTROL_ERROR,
            what: "more came than the windows allow".into(),
        };
        self.window.receive(head.bytes).map_err(overrun)?;
        match &mut self.call {
            Some(call) if call.stream == head.stream && !call.ended => {
                if call.head.is_none() {
                    return fault(frame::PROTOCOL_ERROR, "data came before the reply's head");
                }
                call.window.receive(head.bytes).map_err(overrun)
            }
            _ => fault(frame::STREAM_CLOSED, format!("data of stream {}", head.stream)),
        }
    }

    /// Bytes of DATA frames were taken, payload or padding.
    pub(super) fn take(&mut self, bytes: usize) {
        if bytes > 0 {
            self.idle_frames = 0;
        }
        let call = self.call.as_mut().filter(|call| !call.ended);
        let of_call = call.and_then(|call| Some((call.stream, call.window.take(bytes)?)));
        let of_all = self.window.take(bytes).map(|more| (0, more));
        for (stream, more) in of_call.into_iter().chain(of_all) {
            let more = more.to_be_bytes();
            frame::append(&mut self.output, frame::WINDOW_UPDATE, 0, stream, &more);
        }
    }

    /// A DATA frame that ends its stream was taken whole.
    pub(super) fn end_of_data(&mut self) {
        if let Some(call) = &mut self.call {
            call.ended = true;
        }
    }

    /// What every frame has to keep.
    fn admit(&mut self, head: FrameHead) -> Result<(), Fault> {
        if !self.greeted && (head.kind, head.flags & frame::ACK) != (frame::SETTINGS, 0) {
            return fault(frame::PROTOCOL_ERROR, "it did not begin with SETTINGS: no HTTP/2");
        }
        let continued = self.block.is_some();
        let stream = self.call.as_ref().map_or(0, |call| call.stream);
        if continued && (head.kind, head.stream) != (frame::CONTINUATION, stream) {
            return fault(frame::PROTOCOL_ERROR, "a header block was not continued");
        }
        self.idle_frames += 1;
        if self.idle_frames > IDLE_FRAMES {
            return fault(frame::ENHANCE_YOUR_CALM, "too many frames that bring nothing");
        }
        Ok(())
    }

    /// How much of a frame other than DATA is to be kept for [`Session::frame`]; of
    /// kinds that nobody knows nothing.
    pub(super) fn keeps(head: FrameHead) -> Result<usize, Fault> {
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
    pub(super) fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        self.admit(head)?;
        match head.kind {
            frame::HEADERS => self.headers(head, payload)?,
            frame::CONTINUATION => {
                let Some((end, mut block)) = self.block.take() else {
                    return fault(frame::PROTOCOL_ERROR, "nothing is to be continued");
                };
                block.extend_from_slice(payload);
                self.header_block(end, block, head.has(frame::END_HEADERS))?;
            }
            frame::SETTINGS => self.settings(head, payload)?,
            frame::PING => self.pinged(head, payload)?,
            frame::WINDOW_UPDATE => self.raise(head, payload)?,
            frame::RST_STREAM => {
                let code = match (frame::number(payload), payload.len()) {
                    (Some(code), 4) => code,
                    _ => return fault(frame::FRAME_SIZE_ERROR, "RST_STREAM has four bytes"),
                };
                self.known(head.stream)?;
                if let Some(call) = self.call.as_mut().filter(|call| call.stream == head.stream) {
                    call.reset(code);
                }
            }
            frame::GOAWAY => {
                let numbers =
                    (frame::number(payload), frame::number(&payload[4.min(payload.len())..]));
                let (Some(last), Some(code), 0) = (numbers.0, numbers.1, head.stream) else {
                    return fault(frame::FRAME_SIZE_ERROR, "GOAWAY has eight bytes, of stream 0");
                };
                let last = last & frame::LARGEST_WINDOW;
                self.going_away = Some((last, code));
                if let Some(call) = self.call.as_mut().filter(|call| call.stream > last) {
                    call.turned_away(code);
                }
            }
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
        let mut block = payload;
        let mut padding = 0;
        if head.has(frame::PADDED) {
            let Some((length, rest)) = block.split_first() else {
                return fault(frame::FRAME_SIZE_ERROR, "HEADERS is too short");
            };
            (padding, block) = (usize::from(*length), rest);
        }
        if head.has(frame::WITH_PRIORITY) {
            let Some(rest) = block.get(5..) else {
                return fault(frame::FRAME_SIZE_ERROR, "HEADERS is too short");
            };
            block = rest;
        }
        let Some(block) = block.len().checked_sub(padding).and_then(|end| block.get(..end)) else {
            return fault(frame::PROTOCOL_ERROR, "HEADERS has more padding than bytes");
        };
        let end = head.has(frame::END_STREAM);
        self.header_block(end, block.to_vec(), head.has(frame::END_HEADERS))
    }

    fn header_block(&mut self, end: bool, block: Vec<u8>, whole: bool) -> Result<(), Fault> {
        if block.len() > HEADER_BLOCK_BYTES {
            return fault(frame::ENHANCE_YOUR_CALM, "a header block is longer than allowed");
        }
        if !whole {
            self.block = Some((end, block));
            return Ok(());
        }
        let fields = match header::decode(&mut self.decoder, &block) {
            Ok(fields) => fields,
            Err(HeaderFault::Compression(what)) => return fault(frame::COMPRESSION_ERROR, what),
            Err(HeaderFault::Malformed(what)) => {
                return fault(frame::PROTOCOL_ERROR, format!("a reply is malformed: {what}"));
            }
        };
        self.fields(fields, end)
    }

    fn fields(&mut self, fields: Fields, end: bool) -> Result<(), Fault> {
        let Some(call) = &mut self.call else { return Ok(()) };
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
        let (settings, []) = payload.as_chunks::<6>() else {
            return fault(frame::FRAME_SIZE_ERROR, "SETTINGS has six bytes each");
        };
        self.greeted = true;
        for [a, b, value @ ..] in settings {
            self.setting(u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*value))?;
        }
        self.answer(frame::SETTINGS, &[]);
        self.send_body();
        Ok(())
    }

    fn setting(&mut self, name: u16, value: u32) -> Result<(), Fault> {
        match name {
            frame::ENABLE_PUSH if value != 0 => {
                fault(frame::PROTOCOL_ERROR, "a server cannot allow pushes")
            }
            frame::MAX_CONCURRENT_STREAMS => {
                self.peer.streams = value;
                Ok(())
            }
            frame::INITIAL_WINDOW_SIZE if value > frame::LARGEST_WINDOW => {
                fault(frame::FLOW_CONTROL_ERROR, "a window that cannot be")
            }
            frame::INITIAL_WINDOW_SIZE => {
                let change = i64::from(value) - i64::from(self.peer.window);
                self.peer.window = value;
                if let Some(call) = &mut self.call
                    && !call.raise(change)
                {
                    return fault(frame::FLOW_CONTROL_ERROR, "a window that cannot be");
                }
                Ok(())
            }
            frame::MAX_FRAME_SIZE => {
                let bytes = usize::try_from(value).unwrap_or(0);
                if bytes < frame::FIRST_FRAME_BYTES || value > frame::LARGEST_FRAME {
                    return fault(frame::PROTOCOL_ERROR, "a frame size that cannot be");
                }
                self.peer.frame_bytes = bytes;
                Ok(())
            }
            // We keep nothing in tables, and others are not meant for us.
            frame::HEADER_TABLE_SIZE | frame::MAX_HEADER_LIST_SIZE => Ok(()),
            _ => Ok(()),
        }
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

    fn answer(&mut self, kind: u8, payload: &[u8]) {
        frame::append(&mut self.output, kind, frame::ACK, 0, payload);
        self.answers += frame::HEAD_BYTES + payload.len();
    }

    /// All of the output was written.
    pub(super) fn said(&mut self) {
        self.output.clear();
        self.answers = 0;
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

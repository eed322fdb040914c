//! The protocol of one connection, without its socket: which frames may come,
//! and what they change and call for.
//!
//! One call at a time: calls that share a connection would wait for each
//! other's bytes, since each is received by whoever made it.

mod control;
mod header_block;
mod request_head;
mod settings;

use self::header_block::HeaderBlocks;
use self::request_head::RequestHeads;
use self::settings::PeerSettings;
use super::call::{CallState, Request};
use super::flow::{Overrun, Window};
use super::frame::{self, FrameHead};
use super::header::HEADER_LIST_BYTES;

/// What the daemon may send before it hears from us: a thirtieth of a second at 2 GB/s
/// until half of it is given back, far more than any round trip. What is not read
/// stays in the sockets: nothing here takes this memory. By this length a daemon knows who
/// reads within frames, and sends a reply's head in one with its payload.
pub(super) const WINDOW_BYTES: u32 = 64 << 20;

/// The same for the connection: as much as can be, since its one call has a bound of its own.
/// From 1 GiB on a daemon ends replies before we have taken them, and closes the connection if
/// we do not; with one call on it nothing else is lost.
const CONNECTION_WINDOW_BYTES: u32 = frame::LARGEST_WINDOW;

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

/// A connection's state.
pub(super) struct Session {
    peer: PeerSettings,
    /// What we may send over all calls.
    send_window: i64,
    window: Window,
    next_stream: u32,
    pub(super) call: Option<CallState>,
    request_heads: RequestHeads,
    header_blocks: HeaderBlocks,
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
        let more = CONNECTION_WINDOW_BYTES - frame::FIRST_WINDOW;
        frame::append(&mut output, frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        Self {
            peer: PeerSettings::new(),
            send_window: i64::from(frame::FIRST_WINDOW),
            window: Window::new(CONNECTION_WINDOW_BYTES),
            next_stream: 1,
            call: None,
            request_heads: RequestHeads::new(),
            header_blocks: HeaderBlocks::new(),
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
            && !self.header_blocks.is_open()
            && self.peer.streams > 0
            && self.next_stream <= frame::LARGEST_WINDOW
            && self.call.as_ref().is_none_or(|call| call.ended && call.is_sent())
    }

    /// Begins a call.
    pub(super) fn start(&mut self, request: Request) {
        let stream = self.next_stream;
        self.next_stream = self.next_stream.saturating_add(2);
        let end = if request.body.is_empty() { frame::END_STREAM } else { 0 };
        let head = self.request_heads.block(&request);
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
        let continued = self.header_blocks.is_open();
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

    /// All of the output was written.
    pub(super) fn said(&mut self) {
        self.output.clear();
        self.answers = 0;
    }
}

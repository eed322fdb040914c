//! Blocks on their way to a client: whichever is ready first, its image in
//! pieces, and at the end what went wrong.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream, StreamExt as _};
use tokio::time::Instant;
use tonic::Status;
use tpad_engine::{Block, EngineError, Selected};
use tpad_manifest::BlockKey;
use tpad_proto::v1::{self, BlockPart, block_part::Part};
use tpad_store::{Medium, ReadOptions};

use super::call::Call;
use super::look_ahead::{Ahead, Budget, Window};
use super::resume::Resume;
use super::status;

/// Bytes of one payload message: a piece of the edge, which cuts longer ones, and
/// below the 4 MiB that clients of other languages take by default. 2 MiB read a fifth
/// faster than 1 MiB (docs/performance.md, "Frames and windows").
pub(super) const PAYLOAD_BYTES: usize = 2 << 20;

/// Failed keys that the final status names.
const KEYS_NAMED: usize = 16;

/// The messages of one fetch.
///
/// Reads run ahead within a [`Window`]; a block that is ready is sent whatever
/// the others wait for. Dropped when the client goes away, it stops waiting for
/// its reads; those that others share go on.
pub(super) struct BlockStream {
    selected: Selected,
    resume: Resume,
    /// The block that is sent before all others, until it is or cannot be.
    first: Option<usize>,
    call: Call,
    /// The next block to start reading.
    next: usize,
    window: Window,
    reading: FuturesUnordered<BoxFuture<'static, Finished>>,
    ready: VecDeque<Ready>,
    /// The image being sent: what is left of it.
    sending: Option<(Bytes, Ahead)>,
    started: bool,
    failures: Failures,
}

/// A block that can be sent.
struct Ready {
    ordinal: usize,
    block: Box<Block>,
    ahead: Ahead,
}

/// A read that has ended.
struct Finished {
    ordinal: usize,
    key: BlockKey,
    result: Result<Box<Block>, EngineError>,
    ahead: Ahead,
}

/// What the final status will say.
#[derive(Default)]
struct Failures {
    first: Option<EngineError>,
    keys: Vec<String>,
    count: usize,
}

impl BlockStream {
    pub(super) fn new(selected: Selected, resume: Resume, call: Call, ahead: &Budget) -> Self {
        Self {
            selected,
            first: resume.first(),
            resume,
            call,
            next: 0,
            window: ahead.window(),
            reading: FuturesUnordered::new(),
            ready: VecDeque::new(),
            sending: None,
            started: false,
            failures: Failures::default(),
        }
    }

    fn start(&self) -> BlockPart {
        let generation = self.selected.generation();
        part(Part::Start(v1::StreamStart {
            model: generation.model().to_owned(),
            revision: generation.revision(),
            generation: generation.number(),
            blocks: self.selected.len() as u64,
            bytes: self.selected.bytes(),
            resumed: self.resume.is_resumed(),
        }))
    }

    /// Starts reads while there is room ahead: first of the block that the stream broke off
    /// in, if it did.
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        if !self.started
            && let Some(first) = self.resume.first()
        {
            self.read(first, cx);
        }
        while self.next < self.selected.len() {
            let ordinal = self.next;
            let elsewhere = self.resume.has(ordinal) || self.resume.first() == Some(ordinal);
            if !elsewhere && !self.read(ordinal, cx) {
                return;
            }
            self.next = self.next.max(ordinal + 1);
        }
    }

    /// Starts to read a block, if there is room for it.
    fn read(&mut self, ordinal: usize, cx: &mut Context<'_>) -> bool {
        let Some((key, bytes)) = self.selected.get(ordinal) else { return true };
        if Instant::now() >= self.call.deadline {
            let left = (self.next..self.selected.len()).filter(|n| !self.resume.has(*n)).count();
            self.next = self.selected.len();
            self.failures.add_late(&key, left);
            self.first.take_if(|first| *first == ordinal);
            return true;
        }
        let Some(ahead) = self.window.take(bytes) else { return false };
        let generation = self.selected.generation().clone();
        let options = ReadOptions::demand(self.call.deadline);
        let mut read: BoxFuture<'static, Finished> = Box::pin(async move {
            let result = generation.read(key.clone(), options).await.map(Box::new);
            Finished { ordinal, key, result, ahead }
        });
        // What is in memory is there at once, and waits among no others.
        match read.as_mut().poll(cx) {
            Poll::Ready(finished) => self.take(finished),
            Poll::Pending => self.reading.push(read),
        }
        true
    }

    /// A read has ended.
    fn take(&mut self, Finished { ordinal, key, result, ahead }: Finished) {
        match result {
            Ok(block) => self.ready.push_back(Ready { ordinal, block, ahead }),
            Err(error) => {
                self.first.take_if(|first| *first == ordinal);
                self.window.give_back(ahead);
                self.failures.add(&key, error);
            }
        }
    }

    /// The next block that is ready and may be sent.
    fn next_ready(&mut self) -> Option<Ready> {
        let Some(first) = self.first else { return self.ready.pop_front() };
        let at = self.ready.iter().position(|ready| ready.ordinal == first)?;
        self.first = None;
        self.ready.remove(at)
    }

    /// The next message that can be sent without waiting.
    fn message(&mut self) -> Option<Result<BlockPart, Status>> {
        if !self.started {
            self.started = true;
            return Some(Ok(self.start()));
        }
        if let Some((mut image, ahead)) = self.sending.take() {
            let piece = image.split_to(image.len().min(PAYLOAD_BYTES));
            if image.is_empty() {
                self.window.give_back(ahead);
            } else {
                self.sending = Some((image, ahead));
            }
            return Some(Ok(part(Part::Payload(piece))));
        }
        while let Some(Ready { ordinal, block, ahead }) = self.next_ready() {
            let Block { key, record, served } = *block;
            let mut header = match tpad_proto::block(&key, &record, medium(served.medium)) {
                Ok(header) => header,
                Err(source) => {
                    self.window.give_back(ahead);
                    self.failures.add(&key, EngineError::BlockSize { key: key.clone(), source });
                    continue;
                }
            };
            let mut image = served.bytes.to_bytes();
            header.ordinal = Some(ordinal as u64);
            header.offset = self.resume.offset(ordinal, &record.id, image.len() as u64);
            // Within the image, which is in memory.
            image.advance(usize::try_from(header.offset).unwrap_or(0));
            if image.is_empty() {
                self.window.give_back(ahead);
            } else {
                self.sending = Some((image, ahead));
            }
            return Some(Ok(part(Part::Block(header))));
        }
        None
    }
}

impl Stream for BlockStream {
    type Item = Result<BlockPart, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            this.read_ahead(cx);
            // Also while a block is being sent, so that the next one is ready
            // when it has been.
            while let Poll::Ready(Some(finished)) = this.reading.poll_next_unpin(cx) {
                this.take(finished);
            }
            if let Some(message) = this.message() {
                return Poll::Ready(Some(message));
            }
            if !this.reading.is_empty() {
                return Poll::Pending;
            }
            if this.next >= this.selected.len() {
                let last = this.failures.take_status(&this.call, this.selected.len());
                return Poll::Ready(last.map(Err));
            }
        }
    }
}

impl Failures {
    fn add(&mut self, key: &BlockKey, error: EngineError) {
        self.count += 1;
        if self.keys.len() < KEYS_NAMED {
            self.keys.push(key.to_string());
        }
        self.first.get_or_insert(error);
    }

    /// Counts `blocks` that are not read any more, `key` the first of them.
    fn add_late(&mut self, key: &BlockKey, blocks: usize) {
        let what = format!("{blocks} of the blocks were still to be read");
        self.add(key, EngineError::Deadline { what });
        self.count += blocks.saturating_sub(1);
    }

    /// The status that ends the stream, once.
    fn take_status(&mut self, call: &Call, blocks: usize) -> Option<Status> {
        let first = self.first.take()?;
        let metadata = [
            ("failed_blocks", self.count.to_string()),
            ("blocks", blocks.to_string()),
            ("keys", self.keys.join("; ")),
        ];
        Some(status::of(&first, call, &metadata))
    }
}

/// The wire's word for a medium.
pub(crate) fn medium(medium: Medium) -> v1::Medium {
    match medium {
        Medium::Hbm => v1::Medium::Hbm,
        Medium::Dram => v1::Medium::Dram,
        Medium::Nvme => v1::Medium::Nvme,
        Medium::ObjectStore => v1::Medium::ObjectStore,
    }
}

fn part(part: Part) -> BlockPart {
    BlockPart { part: Some(part) }
}

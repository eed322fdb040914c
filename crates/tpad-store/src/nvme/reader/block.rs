//! One block's read: its pieces, read in any order by anyone, and what they come
//! to when all are back.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tpad_manifest::BlockId;

use super::super::file::{Fault, Header, PAGE, Page};
use crate::arena::SlotPart;
use crate::level::{crc64_nvme, crc64_nvme_joined};
use crate::{SlotMut, Urgency};

/// How much one read of an image asks for. Of one cold file, four threads with reads of
/// 4 MiB, or 16 such reads in flight, gave 1.16 to 1.24 times what eight with 1 MiB
/// gave, at under half of the processor time; and a block of 16 MiB is read and
/// checked by four at once.
pub(super) const PIECE_BYTES: usize = 4 << 20;

/// What came of a read: the header and the image, checked against each other.
pub(in crate::nvme) type Answer = Result<(Header, SlotMut), Unread>;

/// Why there is no image.
#[derive(Debug)]
pub(in crate::nvme) struct Unread {
    /// What is wrong.
    pub(in crate::nvme) fault: Fault,
    /// The slot, to be filled from elsewhere; it holds anything. `None` when the
    /// reader ends.
    pub(in crate::nvme) slot: Option<SlotMut>,
}

/// A block that is to be read.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: BlockId,
    pub(super) path: PathBuf,
    /// Whether to read past the page cache.
    pub(super) direct: bool,
    pub(super) slot: SlotMut,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// A block that is being read.
#[derive(Debug)]
struct Reading {
    id: BlockId,
    file: File,
    image_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once it was used.
    answer: Option<oneshot::Sender<Answer>>,
    header: Option<Header>,
    /// What is back of the slot, each with the checksum of its image bytes.
    parts: Vec<(SlotPart, u64)>,
    /// Pieces that are not back.
    left: usize,
    /// The first thing that was wrong.
    fault: Option<Fault>,
}

/// A piece of a block's file and the memory that it goes to, which it owns: to be
/// kept wherever something may still write there.
#[derive(Debug)]
pub(super) struct Piece {
    reading: Arc<Reading>,
    target: Target,
    /// Bytes that are read.
    done: usize,
    /// As it was handed out; counted until it is back.
    pub(super) urgency: Urgency,
}

#[derive(Debug)]
enum Target {
    Header(Page),
    Image(SlotPart),
}

impl Job {
    /// Whether nobody waits for it any more.
    pub(super) fn is_forsaken(&self) -> bool {
        self.answer.is_closed()
    }

    /// Opens the file. `None` when that is how the read ends, which is told.
    ///
    /// It blocks for as long as the file system takes to find a file, the price of
    /// a small read: whoever calls it has others in flight meanwhile.
    pub(super) fn open(self) -> Option<Vec<Piece>> {
        let Self { id, path, direct, slot, answer } = self;
        match super::super::disk::open(&path, direct) {
            Ok(file) => Some(Reading::begin(id, file, slot, answer)),
            Err(error) => {
                let fault = match error.kind() {
                    io::ErrorKind::NotFound => Fault::Missing,
                    _ => Fault::Disk(error),
                };
                // Who left wants no answer.
                let _left = answer.send(Err(Unread { fault, slot: Some(slot) }));
                None
            }
        }
    }
}

impl Reading {
    fn begin(
        id: BlockId,
        file: File,
        slot: SlotMut,
        answer: oneshot::Sender<Answer>,
    ) -> Vec<Piece> {
        let image_bytes = slot.len();
        let parts = slot.cut(image_bytes.next_multiple_of(PAGE), PIECE_BYTES);
        let state = State {
            answer: Some(answer),
            header: None,
            parts: Vec::with_capacity(parts.len()),
            left: parts.len() + 1,
            fault: None,
        };
        let reading = Arc::new(Self { id, file, image_bytes, state: Mutex::new(state) });
        let targets = std::iter::once(Target::Header(Page::new()))
            .chain(parts.into_iter().map(Target::Image));
        let piece = |target| Piece {
            reading: Arc::clone(&reading),
            target,
            done: 0,
            urgency: Urgency::Demand,
        };
        targets.map(piece).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Piece {
    pub(super) fn id(&self) -> &BlockId {
        &self.reading.id
    }

    /// Whether reading it changes nothing any more: something was wrong with the
    /// block, or nobody waits for it.
    pub(super) fn is_void(&self) -> bool {
        let state = self.reading.lock();
        state.fault.is_some() || state.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// What is to be read: from where, into what.
    pub(super) fn rest(&mut self) -> (&File, &mut [u8], u64) {
        let (into, start) = match &mut self.target {
            Target::Header(page) => (page.get_mut(), 0),
            Target::Image(part) => {
                let start = PAGE + part.at();
                (part.bytes_mut(), start)
            }
        };
        (&self.reading.file, &mut into[self.done..], (start + self.done) as u64)
    }

    /// Takes what one attempt to read the rest came to. Whether that was all of
    /// it, and the piece is to be finished.
    pub(super) fn advance(&mut self, read: io::Result<usize>) -> bool {
        match read {
            Ok(0) if !self.rest().1.is_empty() => self.spoil(Fault::Damaged("it is cut short")),
            Ok(bytes) => self.done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.spoil(Fault::Disk(error)),
        }
        self.rest().1.is_empty() || self.is_void()
    }

    /// Ends the block's read without an answer: this piece will never be finished.
    pub(super) fn abandon(&self) {
        let answer = self.reading.lock().answer.take();
        // Not under the lock: whoever waited for it is woken.
        drop(answer);
    }

    fn spoil(&self, fault: Fault) {
        self.reading.lock().fault.get_or_insert(fault);
    }

    /// Checks what was read, and answers if it was the last piece of its block.
    /// Takes about an eighth of a millisecond of processor time for a MiB.
    pub(super) fn finish(self) {
        let void = self.is_void();
        let Self { reading, target, .. } = self;
        let checked = match target {
            Target::Header(_) if void => Checked::Nothing,
            Target::Header(page) => match header(page.get(), &reading) {
                Ok(header) => Checked::Header(header),
                Err(problem) => Checked::Wrong(problem, None),
            },
            Target::Image(part) if void => Checked::Part(part, 0),
            Target::Image(mut part) => {
                let image = part.image_bytes();
                let (image, padding) = part.bytes_mut().split_at(image);
                if padding.iter().any(|byte| *byte != 0) {
                    Checked::Wrong("its padding is not zero", Some(part))
                } else {
                    let crc = crc64_nvme(image);
                    Checked::Part(part, crc)
                }
            }
        };
        let mut state = reading.lock();
        match checked {
            Checked::Nothing => {}
            Checked::Header(header) => state.header = Some(header),
            Checked::Part(part, crc) => state.parts.push((part, crc)),
            Checked::Wrong(problem, part) => {
                state.fault.get_or_insert(Fault::Damaged(problem));
                state.parts.extend(part.map(|part| (part, 0)));
            }
        }
        state.left -= 1;
        if state.left == 0 {
            state.answer();
        }
    }
}

/// What a piece held.
enum Checked {
    Nothing,
    Header(Header),
    Part(SlotPart, u64),
    Wrong(&'static str, Option<SlotPart>),
}

fn header(page: &[u8], reading: &Reading) -> Result<Header, &'static str> {
    let header = Header::read(page)?;
    if header.id != reading.id {
        return Err("it holds another block");
    }
    if header.bytes != reading.image_bytes as u64 {
        return Err("its block has another size");
    }
    Ok(header)
}

impl State {
    /// Every piece is back: says what they come to.
    fn answer(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let mut parts = std::mem::take(&mut self.parts);
        parts.sort_unstable_by_key(|(part, _)| part.at());
        let joined = |first, (part, crc): &(SlotPart, u64)| {
            crc64_nvme_joined(first, *crc, part.image_bytes() as u64)
        };
        let crc = parts.split_first().map_or(0, |((_, crc), rest)| rest.iter().fold(*crc, joined));
        let slot = SlotMut::joined(parts.into_iter().map(|(part, _)| part).collect());
        let answered = match (self.fault.take(), self.header.take(), slot) {
            (None, Some(header), Some(slot)) if header.crc == crc => Ok((header, slot)),
            (fault, _, slot) => {
                let fault = fault.unwrap_or(Fault::Damaged("its checksum does not hold"));
                Err(Unread { fault, slot })
            }
        };
        // Who left wants no answer; the slot comes free with it.
        let _left = answer.send(answered);
    }
}

//! A stream's blocks, one by one, into whatever memory they are given; and how a
//! stream that broke goes on.

use std::sync::Arc;
use std::time::Duration;

use super::assembly::Assembly;
use super::header::Header;
use super::{BlockLimits, StreamStart};
use crate::bulk::{Bulk, Socket};
use crate::call::Call;
use crate::fetch::{Fetch, Transport};
use crate::receive::{Incoming, Messages, ReadError};
use crate::{Error, Kind, RetryPolicy};

/// What a reply without a client of its own may claim.
const MOST_BLOCK_BYTES: u64 = 1 << 20;

/// Before a stream that broke is resumed a second time in a row; four times as long after
/// each failure, or as long as the daemon says. Four tries take four seconds: a restart.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause that is accepted from the daemon.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a stream has to bring before it may break as often as before: one that breaks after
/// each byte is not worth a connection for each.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Reads one fetch.
pub(crate) struct BlockReader {
    fetch: Fetch,
    /// Where the stream goes on if it breaks; `None`: nowhere.
    transport: Option<Transport>,
    call: Call,
    messages: Messages,
    assembly: Assembly,
    /// How often in a row the stream may break without a byte in between.
    resumes: u32,
    broken: u32,
    /// Bytes since it broke last.
    since: u64,
}

impl BlockReader {
    /// Makes the call, again if it is turned away before its start.
    pub(crate) async fn open(
        fetch: Fetch,
        transport: Transport,
        call: Call,
        limits: BlockLimits,
    ) -> Result<Self, Error> {
        let (messages, assembly) = call
            .attempt(|| async {
                let messages = fetch.open(&transport, &call, None).await?;
                begin(messages, &fetch, &call, limits.max_block_bytes).await
            })
            .await?;
        let resumes = limits.resumes;
        let transport = Some(transport);
        Ok(Self { fetch, transport, call, messages, assembly, resumes, broken: 0, since: 0 })
    }

    /// Reads a reply that is already there, and nothing else.
    #[cfg(test)]
    pub(super) async fn over(
        reply: impl crate::receive::ReplyBytes + 'static,
        fetch: Fetch,
    ) -> Result<Self, Error> {
        Self::of(Messages::of(reply), fetch).await
    }

    /// Reads what comes from a socket that is already there, and nothing else.
    pub(crate) async fn over_socket(
        bulk: &Arc<Bulk>,
        socket: Box<dyn Socket>,
        fetch: Fetch,
    ) -> Result<Self, Error> {
        let place = bulk.place().ok_or_else(|| Error::protocol("fetch", "no room for a call"))?;
        let called = bulk.call_over(place, socket, fetch.path(), fetch.message(None)?).await;
        let reply = called.map_err(|status| Error::of(&status, "socket"))?;
        Self::of(Messages::of(reply), fetch).await
    }

    async fn of(messages: Messages, fetch: Fetch) -> Result<Self, Error> {
        let call = Call::starting_now("socket".into(), None, RetryPolicy::off());
        let (messages, assembly) = begin(messages, &fetch, &call, MOST_BLOCK_BYTES).await?;
        Ok(Self {
            fetch,
            transport: None,
            call,
            messages,
            assembly,
            resumes: 0,
            broken: 0,
            since: 0,
        })
    }

    pub(crate) fn start(&self) -> &StreamStart {
        self.assembly.start()
    }

    /// The size of the next block's image, which is then to be received; `None` when all
    /// blocks came.
    pub(crate) async fn next(&mut self) -> Result<Option<u64>, Error> {
        loop {
            let message = self.call.read(self.messages.next()).await;
            match message {
                Err(error) => self.resume(error).await?,
                Ok(None) => return self.assembly.finish().map(|()| None),
                Ok(Some(Incoming::Payload(bytes))) => self.assembly.payload(bytes)?,
                Ok(Some(Incoming::Part(part))) => {
                    if let Some(bytes) = self.assembly.accept(part)? {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// The next bytes of the open block's image, until `into` is full, which is not
    /// longer than what is missing.
    pub(crate) async fn receive(&mut self, into: &mut [u8]) -> Result<(), Error> {
        let mut filled = 0;
        while filled < into.len() {
            let call = self.call.clone();
            // One deadline for the whole piece: a timer for each read is not free.
            let received = call.read(self.receive_on(into, &mut filled)).await;
            if let Err(error) = received {
                self.resume(error).await?;
            }
        }
        Ok(())
    }

    async fn receive_on(&mut self, into: &mut [u8], filled: &mut usize) -> Result<(), ReadError> {
        while *filled < into.len() {
            if self.messages.left() == 0 {
                match self.messages.next().await? {
                    Some(Incoming::Payload(bytes)) => self.assembly.payload(bytes)?,
                    Some(Incoming::Part(part)) => {
                        // It cannot go on with a block: for what is wrong with it.
                        self.assembly.accept(part)?;
                    }
                    None => self.assembly.finish()?,
                }
                continue;
            }
            let bytes = self.messages.receive(&mut into[*filled..]).await?;
            *filled += bytes;
            self.assembly.received(bytes);
            self.since += bytes as u64;
            if self.since >= PROGRESS_BYTES {
                self.broken = 0;
            }
        }
        Ok(())
    }

    /// What is missing of the open block.
    pub(crate) fn missing(&self) -> u64 {
        self.assembly.missing()
    }

    /// The open block, once its image was received.
    pub(crate) fn close(&mut self) -> Result<Header, Error> {
        let missing = || Error::protocol("fetch", "a block was closed before its end");
        let header = self.assembly.close().ok_or_else(missing)?;
        // A whole block is progress, however small.
        self.broken = 0;
        Ok(header)
    }

    /// Goes on with a stream that broke with `error`, or fails with it.
    async fn resume(&mut self, error: Error) -> Result<(), Error> {
        if !matches!(error, Error::Disconnected { .. }) {
            return Err(error);
        }
        let Some(resume) = self.assembly.resume() else { return Err(error) };
        // Its connection's place is free for the next.
        self.messages.close();
        self.since = 0;
        let mut asked = Duration::ZERO;
        while self.broken < self.resumes {
            let pause = match self.broken.checked_sub(1) {
                None => Duration::ZERO,
                Some(failed) => FIRST_PAUSE.saturating_mul(1 << failed.saturating_mul(2).min(16)),
            };
            let pause = pause.max(std::mem::take(&mut asked)).min(LONGEST_PAUSE);
            self.broken += 1;
            self.call.wait(tokio::time::sleep(pause)).await?;
            match self.open_again(&resume).await {
                Ok(true) => return Ok(()),
                // It cannot go on: what broke it is what there is to say.
                Ok(false) => return Err(error),
                Err(again) => match again.refusal().and_then(|refusal| refusal.retry_after) {
                    Some(after) if after <= LONGEST_PAUSE => asked = after,
                    None if again.kind() == Kind::Unavailable => {}
                    _ => return Err(again),
                },
            }
        }
        Err(error)
    }

    /// Whether the daemon goes on where the stream broke.
    async fn open_again(&mut self, resume: &tpad_proto::v1::Resume) -> Result<bool, Error> {
        let Some(transport) = &self.transport else { return Ok(false) };
        let resume = resume.clone();
        let partial = resume.partial.is_some();
        let mut messages = self.fetch.open(transport, &self.call, Some(resume)).await?;
        let first = self.call.read(messages.next()).await?;
        let Some(Incoming::Part(Some(first))) = first else { return Ok(false) };
        if !self.assembly.is_resumed_by(&first) {
            return Ok(false);
        }
        if partial {
            let next = self.call.read(messages.next()).await?;
            match next {
                Some(Incoming::Part(Some(block))) if self.assembly.is_continued_by(&block) => {}
                _ => return Ok(false),
            }
        }
        self.messages = messages;
        Ok(true)
    }
}

/// Reads a reply's first message.
async fn begin(
    mut messages: Messages,
    fetch: &Fetch,
    call: &Call,
    max_block_bytes: u64,
) -> Result<(Messages, Assembly), Error> {
    let ended = || Error::protocol("fetch", "the stream ended before its start");
    let first = match call.read(messages.next()).await?.ok_or_else(ended)? {
        Incoming::Part(part) => part.unwrap_or_default(),
        Incoming::Payload(_) => {
            return Err(Error::protocol("fetch", "the stream does not begin with its start"));
        }
    };
    let assembly = Assembly::open(first, fetch.model(), fetch.asked(), max_block_bytes)?;
    Ok((messages, assembly))
}

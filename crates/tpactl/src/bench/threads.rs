//! Threads that ask, each with a runtime of its own and clients that live on it.
//!
//! Workers of one runtime that shares its tasks would wake each other's threads for
//! every answer, and what that costs would be counted as the daemon's latency. So each
//! worker stays on a thread, as inference workers are processes of their own.

use std::future::{Future, poll_fn};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tpad_client::Client;

use crate::failure::Failure;

/// The threads. Dropped, they end with what runs on them.
#[derive(Debug)]
pub(super) struct Threads {
    handles: Vec<Handle>,
    _stop: DropGuard,
}

/// A client and the thread that it lives on.
#[derive(Clone, Debug)]
pub(super) struct Homed {
    pub(super) client: Client,
    pub(super) home: Handle,
}

impl Threads {
    /// As many threads, but no more than processors.
    pub(super) fn start(wanted: u32) -> Result<Self, Failure> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let count = usize::try_from(wanted).unwrap_or(processors).clamp(1, processors);
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let start = |_| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handle, stop) = (runtime.handle().clone(), stop.clone());
            let run = move || runtime.block_on(stop.cancelled_owned());
            thread::Builder::new().name("tpactl-bench".to_owned()).spawn(run)?;
            Ok(handle)
        };
        let handles: std::io::Result<Vec<Handle>> = (0..count).map(start).collect();
        let handles =
            handles.map_err(|error| Failure::local(format!("cannot start threads: {error}")))?;
        Ok(Self { handles, _stop: guard })
    }

    /// A client made by `connect` to live on the `n`th thread; there are as many as are
    /// asked for, in turn.
    pub(super) async fn client<E>(
        &self,
        n: usize,
        connect: impl Future<Output = Result<Client, E>>,
    ) -> Result<Homed, E> {
        let home = self.handles[n % self.handles.len()].clone();
        // What it starts, it starts there.
        let mut connect = std::pin::pin!(connect);
        let connected = poll_fn(|cx| {
            let _there = home.enter();
            connect.as_mut().poll(cx)
        });
        let client = connected.await?;
        Ok(Homed { client, home })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_are_no_more_threads_than_processors_and_at_least_one() {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        for (wanted, count) in [(0, 1), (1, 1), (u32::MAX, processors)] {
            assert_eq!(Threads::start(wanted).expect("threads").handles.len(), count);
        }
    }
}

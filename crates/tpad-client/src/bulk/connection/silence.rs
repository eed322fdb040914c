//! How long a daemon may say nothing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::ConnectionError;

/// How long the other side has said nothing.
pub(super) struct Silence {
    limit: Duration,
    since: Instant,
    asked: bool,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    /// A daemon that says nothing for `limit` is asked whether it is there, and given up after
    /// as long again.
    pub(super) fn new(limit: Duration) -> Self {
        let since = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(since + limit));
        Self { limit, since, asked: false, timer }
    }

    /// It ends here. The timer is left as it is, since this is called for every read: it
    /// looks when it fires.
    pub(super) fn heard(&mut self) {
        self.since = Instant::now();
        self.asked = false;
    }

    /// Whether the daemon was asked and has not answered.
    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Ready when the daemon is to be asked, and with an error when it did not answer.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.since + self.limit;
            if due > Instant::now() {
                self.timer.as_mut().reset(due);
            } else if self.asked {
                return Poll::Ready(Err(ConnectionError::Silent(self.limit * 2)));
            } else {
                // From now: nobody may have looked for long.
                self.since = Instant::now();
                self.asked = true;
                self.timer.as_mut().reset(self.since + self.limit);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

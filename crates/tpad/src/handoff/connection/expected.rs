//! What a worker is likely to acquire next.

use tpad_engine::Worker;
use tpad_proto::handoff::v1::{self as wire, Failure};

use super::calls::admit;
use crate::handoff::Shared;

impl Shared {
    /// Has it brought. Nobody waits for it, and so nobody is told when it is not.
    pub(super) fn expect(&self, worker: &Worker, expect: wire::Expect) {
        // Whatever is wrong with this message, the one before is over: not at once, since a
        // call for what it named may have come right before this and not have begun.
        worker.expect_no_more();
        if expect.keys.is_empty() {
            return;
        }
        if let Err(Failure { message, .. }) = self.try_to_expect(worker, expect) {
            tracing::debug!(why = message, "what a worker expects is not brought");
        }
    }

    fn try_to_expect(&self, worker: &Worker, expect: wire::Expect) -> Result<(), Failure> {
        let wire::Expect { model, generation, keys, device } = expect;
        admit(&keys)?;
        let (generation, keys) = self.named(&model, generation, keys)?;
        worker.expect_on(&device, &generation, keys);
        Ok(())
    }
}

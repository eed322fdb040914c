//! Blocks that are likely to be acquired next.

use std::sync::PoisonError;

use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1 as wire;

use crate::Gpu;
use crate::handoff::Handoff;
use crate::handoff::link::Ask;

impl Handoff {
    /// Tells the daemon which blocks are likely to be acquired on a GPU next, in this order.
    /// It copies them there while nothing that anybody waits for is on its way, as far as
    /// nothing has to go that is worth more. Nothing is held by it: [`Handoff::acquire_on`]
    /// what is needed once that is known, and what is under way by then is waited for.
    ///
    /// Each call takes the place of the one before over this connection, by whatever handle,
    /// whose blocks are given up as far as they are not there; without keys it just gives
    /// up. Blocks that are known to lie there are not named, nor those beyond
    /// [`DaemonSide::keys`](crate::DaemonSide::keys).
    ///
    /// It is behind the calls that were sent before it, waits for nothing, and cannot fail:
    /// where the daemon hands over no memory of the GPU, the connection is over, or too much
    /// waits to be sent, the daemon is not told.
    pub fn expect_on(&self, gpu: &Gpu, model: &str, keys: &[BlockKey]) {
        if !self.devices.iter().any(|device| device == gpu.uuid()) {
            return;
        }
        let missing = keys.iter().filter(|key| !self.directories.is_on(gpu, model, key));
        let keys: Vec<_> = missing.take(self.daemon.keys).map(Into::into).collect();
        let mut expects = self.link.shared.expects.lock().unwrap_or_else(PoisonError::into_inner);
        // What was told before is over, unless that was nothing.
        if keys.is_empty() && !*expects {
            return;
        }
        let told = !keys.is_empty();
        let (model, device) = (model.to_owned(), gpu.uuid().to_owned());
        let expect = wire::Expect { model, generation: 0, keys, device };
        // A guess: nobody misses it.
        if self.link.asks.try_send(Ask::Expect(expect)).is_ok() {
            *expects = told;
        }
    }
}

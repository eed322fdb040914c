//! A prefetch's answers: how far it is, and at last all that was done.

use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use tokio::time::Instant;
use tonic::Status;
use tpad_engine::{EngineError, Prefetch, Prefetched, PrefetchedBlock, Totals};
use tpad_proto::v1::PrefetchResponse;

use super::call::Call;
use super::scope::amount;
use super::status;

/// How often it is told how far a prefetch is.
const NEWS: Duration = Duration::from_millis(200);

/// The messages of one prefetch: the first at once, the last when all is done,
/// then the status of the first failure, if there was one. Dropped, it ends the
/// prefetch.
pub(super) fn answers(
    prefetch: Prefetch,
    call: Call,
) -> BoxStream<'static, Result<PrefetchResponse, Status>> {
    let Prefetch { generation, asked, blocks } = prefetch;
    let (revision, generation) = (generation.revision(), generation.number());
    let done = Done { asked, ..Done::default() };
    let start = Progress::Start(blocks, done);
    futures::stream::unfold(start, move |progress| {
        let call = call.clone();
        async move {
            let (done, next) = match progress {
                Progress::Start(blocks, done) => (done.message(), Progress::Reading(blocks, done)),
                Progress::Reading(mut blocks, mut done) => {
                    let news = Instant::now() + NEWS;
                    loop {
                        match blocks.next().await {
                            Some(block) => done.add(block),
                            None => break (done.message(), Progress::Over(done)),
                        }
                        if Instant::now() >= news {
                            break (done.message(), Progress::Reading(blocks, done));
                        }
                    }
                }
                Progress::Over(done) => {
                    let failed = done.failed.blocks.to_string();
                    let first = done.first?;
                    let status = status::of(&first, &call, &[("failed_blocks", failed)]);
                    return Some((Err(status), Progress::End));
                }
                Progress::End => return None,
            };
            Some((Ok(PrefetchResponse { revision, generation, ..done }), next))
        }
    })
    .boxed()
}

enum Progress {
    Start(BoxStream<'static, PrefetchedBlock>, Done),
    Reading(BoxStream<'static, PrefetchedBlock>, Done),
    Over(Done),
    End,
}

/// What was done so far.
#[derive(Default)]
struct Done {
    asked: Totals,
    there: Totals,
    fetched: Totals,
    no_room: Totals,
    failed: Totals,
    first: Option<EngineError>,
}

impl Done {
    fn add(&mut self, block: PrefetchedBlock) {
        let PrefetchedBlock { bytes, outcome } = block;
        let amount = match outcome {
            Prefetched::There => &mut self.there,
            Prefetched::Fetched => &mut self.fetched,
            Prefetched::NoRoom => &mut self.no_room,
            Prefetched::Failed(error) => {
                self.first.get_or_insert(error);
                &mut self.failed
            }
        };
        amount.blocks += 1;
        amount.bytes = amount.bytes.saturating_add(bytes);
    }

    fn message(&self) -> PrefetchResponse {
        PrefetchResponse {
            asked: Some(amount(self.asked)),
            there: Some(amount(self.there)),
            fetched: Some(amount(self.fetched)),
            no_room: Some(amount(self.no_room)),
            failed: Some(amount(self.failed)),
            ..PrefetchResponse::default()
        }
    }
}

//! Routing masks: which experts a router may pick, now and whenever that
//! changes.

use futures::stream::{BoxStream, StreamExt as _};
use tonic::Status;
use tonic::transport::Channel;
use tpad_manifest::{CostClass, RoutingMask, TierSet};
use tpad_proto::v1;
use tpad_proto::v1::routing_service_client::RoutingServiceClient;
use tpad_proto::v1::watch_routing_mask_response::Event;

use crate::call::Call;
use crate::client::MODEL_MESSAGE_BYTES;
use crate::{Client, Error};

/// A mask to ask for.
#[derive(Clone, Debug)]
pub struct GetMask {
    /// The model.
    pub model: String,
    /// The tiers that shall be active.
    pub tier_set: TierSet,
    /// Leaves out where the experts came from, so that no index needs to be
    /// read.
    pub omit_sources: bool,
    /// The etag of a mask that the caller has: an equal one comes without its
    /// content.
    pub etag: Option<String>,
    /// Asks for what is resident, which costs a lookup for each block.
    pub resident: Option<Residency>,
}

/// A question for what is resident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residency {
    /// The slowest place that counts as resident.
    pub level: CostClass,
    /// Layers by their numbers in the checkpoint's tensor names; empty for all
    /// MoE layers.
    pub layers: Vec<u32>,
}

/// A mask to ask for and to follow. What is resident is asked for with
/// [`GetMask`] alone.
#[derive(Clone, Debug)]
pub struct WatchMask {
    /// The model.
    pub model: String,
    /// The tiers that shall be active.
    pub tier_set: TierSet,
    /// As in [`GetMask`].
    pub omit_sources: bool,
    /// As in [`GetMask`]; concerns the first event.
    pub etag: Option<String>,
}

/// A mask, or the news that it is the one that the caller named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedMask {
    /// The manifest's number.
    pub revision: u64,
    /// The daemon's count of swaps; no part of the etag.
    pub generation: u64,
    /// Equal masks have equal etags, on every daemon.
    pub etag: String,
    /// The mask; `None` when it is the one whose etag the request named.
    pub mask: Option<RoutingMask>,
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MaskEvent {
    /// The mask from here on.
    Mask(FetchedMask),
    /// There is none from here on, until one comes.
    None {
        /// Why, as a constant that programs can compare: `MODEL_LOADING`,
        /// `MASK_EMPTY` and the like.
        reason: String,
        /// The same for people.
        message: String,
    },
}

/// A mask that is followed. Dropping it cancels the call.
pub struct MaskWatch {
    events: BoxStream<'static, Result<v1::WatchRoutingMaskResponse, Status>>,
    call: Call,
}

impl GetMask {
    /// Asks for a model's mask with everything that does not depend on where
    /// blocks are.
    #[must_use]
    pub fn of(model: &str, tier_set: TierSet) -> Self {
        let model = model.to_owned();
        Self { model, tier_set, omit_sources: false, etag: None, resident: None }
    }
}

impl WatchMask {
    /// Follows a model's mask from the present one on.
    #[must_use]
    pub fn of(model: &str, tier_set: TierSet) -> Self {
        Self { model: model.to_owned(), tier_set, omit_sources: false, etag: None }
    }
}

impl Client {
    /// The mask of a model and TierSet as it is now. Asking has no effect on
    /// the daemon's caches.
    ///
    /// # Errors
    /// The daemon's refusal: [`Kind::NotFound`](crate::Kind::NotFound) for a
    /// model or named set that it does not have,
    /// [`Kind::FailedPrecondition`](crate::Kind::FailedPrecondition) when no
    /// expert is left or the model is not loaded. [`Error::Protocol`] for a
    /// mask that contradicts itself.
    pub async fn routing_mask(&self, request: GetMask) -> Result<FetchedMask, Error> {
        let GetMask { model, tier_set, omit_sources, etag, resident } = request;
        let message = v1::GetRoutingMaskRequest {
            model,
            tier_set: tpad_proto::tier_set(&tier_set),
            omit_sources,
            etag: etag.unwrap_or_default(),
            resident: resident.map(|Residency { level, layers }| v1::Residency {
                level: v1::CostClass::from(level).into(),
                layers,
            }),
        };
        let send = |call: &Call| {
            let (mut service, message) = (self.routing(), call.request(message.clone()));
            async move { service.get_routing_mask(message).await }
        };
        let answer = self.unary(send).await?;
        let mask = answer.mask.ok_or_else(|| Error::protocol("mask", "there is none"))?;
        FetchedMask::read(mask)
    }

    /// The mask now, and again whenever it changes. The client's deadline
    /// covers the whole watch: see [`with_deadline`](Client::with_deadline).
    ///
    /// # Errors
    /// The daemon's refusal: [`Kind::NotFound`](crate::Kind::NotFound) for a
    /// model that it does not have.
    pub async fn watch_routing_mask(&self, request: WatchMask) -> Result<MaskWatch, Error> {
        let WatchMask { model, tier_set, omit_sources, etag } = request;
        let message = v1::WatchRoutingMaskRequest {
            model,
            tier_set: tpad_proto::tier_set(&tier_set),
            omit_sources,
            etag: etag.unwrap_or_default(),
        };
        let call = self.call();
        call.attempt(|| async {
            let mut service = self.routing();
            let answer = call.wait(service.watch_routing_mask(call.request(message.clone())));
            let answer = answer.await?.map_err(|status| call.error(&status))?;
            Ok(MaskWatch { events: answer.into_inner().boxed(), call: call.clone() })
        })
        .await
    }

    fn routing(&self) -> RoutingServiceClient<Channel> {
        RoutingServiceClient::new(self.channel()).max_decoding_message_size(MODEL_MESSAGE_BYTES)
    }
}

impl MaskWatch {
    /// The next event; the first comes at once. `None` when the daemon ended
    /// the watch without an error. Nothing is lost when the returned future is
    /// dropped.
    ///
    /// # Errors
    /// The daemon's refusal, [`Kind::Unavailable`](crate::Kind::Unavailable)
    /// when it drains; a broken connection. No event comes after an error.
    pub async fn next(&mut self) -> Option<Result<MaskEvent, Error>> {
        let message = match self.call.wait(self.events.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(status))) => return self.end(self.call.error(&status)),
            Err(error) => return self.end(error),
        };
        match MaskEvent::read(message) {
            Ok(event) => Some(Ok(event)),
            Err(error) => self.end(error),
        }
    }

    fn end(&mut self, error: Error) -> Option<Result<MaskEvent, Error>> {
        self.events = futures::stream::empty().boxed();
        Some(Err(error))
    }
}

impl std::fmt::Debug for MaskWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MaskWatch").finish_non_exhaustive()
    }
}

impl FetchedMask {
    fn read(mut mask: v1::RoutingMask) -> Result<Self, Error> {
        let (revision, generation) = (mask.revision, mask.generation);
        let etag = std::mem::take(&mut mask.etag);
        let content = if mask.unchanged {
            None
        } else {
            let read = RoutingMask::try_from(mask);
            Some(read.map_err(|error| Error::protocol("mask", error.to_string()))?)
        };
        Ok(Self { revision, generation, etag, mask: content })
    }
}

impl MaskEvent {
    fn read(message: v1::WatchRoutingMaskResponse) -> Result<Self, Error> {
        match message.event {
            Some(Event::Mask(mask)) => FetchedMask::read(mask).map(Self::Mask),
            Some(Event::None(v1::NoMask { reason, message })) => Ok(Self::None { reason, message }),
            None => Err(Error::protocol("mask", "the watch's event is of an unknown kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_without_content_is_an_error_and_an_unchanged_mask_is_not() {
        let unknown = MaskEvent::read(v1::WatchRoutingMaskResponse { event: None });
        assert!(matches!(unknown, Err(Error::Protocol { .. })), "{unknown:?}");
        let same = FetchedMask::read(tpad_proto::unchanged_mask(3, 7, "e".to_owned()));
        let same = same.expect("it names the caller's mask");
        let expected = FetchedMask { revision: 3, generation: 7, etag: "e".to_owned(), mask: None };
        assert_eq!(same, expected);
    }

    #[test]
    fn a_mask_that_contradicts_itself_is_refused() {
        let tier = v1::TierMask {
            tier: "a".to_owned(),
            groups: vec![v1::ExpertBits { experts: 9, bits: vec![0xff].into() }],
            ..Default::default()
        };
        let mask = v1::RoutingMask {
            origin: v1::TierSetOrigin::Default.into(),
            tiers: vec![tier],
            ..Default::default()
        };
        let error = FetchedMask::read(mask).expect_err("nine experts do not fit a byte");
        assert!(error.to_string().starts_with("mask: "), "{error}");
    }
}

//! A fetch: what is sent, over which receiver, and how it goes on when it breaks.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http_body_util::Full;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tpad_proto::v1;

use crate::bulk::{Bulk, Unanswered, grpc_timeout};
use crate::call::Call;
use crate::receive::{Messages, OrdinaryReply};
use crate::request::Asked;
use crate::{Error, FetchDense, FetchExperts, FetchRouters};

/// What a stream of blocks is asked for.
#[derive(Clone, Debug)]
pub enum Fetch {
    /// Experts.
    Experts(FetchExperts),
    /// Router heads.
    Routers(FetchRouters),
    /// Dense tensors.
    Dense(FetchDense),
}

/// How replies come.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// Straight from the socket, as long as there is room for one more; then as the other.
    Bulk(Arc<Bulk>, Channel),
    /// Over the connection that all calls share.
    Ordinary(Channel),
}

impl From<FetchExperts> for Fetch {
    fn from(fetch: FetchExperts) -> Self {
        Self::Experts(fetch)
    }
}

impl From<FetchRouters> for Fetch {
    fn from(fetch: FetchRouters) -> Self {
        Self::Routers(fetch)
    }
}

impl From<FetchDense> for Fetch {
    fn from(fetch: FetchDense) -> Self {
        Self::Dense(fetch)
    }
}

impl Fetch {
    pub(crate) fn model(&self) -> &str {
        match self {
            Self::Experts(fetch) => &fetch.model,
            Self::Routers(fetch) => &fetch.model,
            Self::Dense(fetch) => &fetch.model,
        }
    }

    pub(crate) fn asked(&self) -> Asked {
        match self {
            Self::Experts(fetch) => Asked::experts(fetch),
            Self::Routers(fetch) => Asked::routers(fetch),
            Self::Dense(fetch) => Asked::dense(fetch),
        }
    }

    pub(crate) const fn path(&self) -> &'static str {
        match self {
            Self::Experts(_) => "/tpad.v1.ExpertService/FetchExperts",
            Self::Routers(_) => "/tpad.v1.ExpertService/FetchRouters",
            Self::Dense(_) => "/tpad.v1.ExpertService/FetchDense",
        }
    }

    /// The message with its prefix.
    pub(crate) fn message(&self, resume: Option<v1::Resume>) -> Result<Bytes, Error> {
        let model = self.model().to_owned();
        match self {
            Self::Experts(fetch) => framed(&v1::FetchExpertsRequest {
                model,
                keys: fetch.keys.iter().map(v1::ExpertKey::from).collect(),
                blocks: fetch
                    .blocks
                    .iter()
                    .map(|(key, layer)| v1::ExpertAtLayer { key: Some(key.into()), layer: *layer })
                    .collect(),
                tiers: fetch.tiers.clone(),
                layers: fetch.layers.clone(),
                resume,
            }),
            Self::Routers(fetch) => framed(&v1::FetchRoutersRequest {
                model,
                tiers: fetch.tiers.clone(),
                layers: fetch.layers.clone(),
                resume,
            }),
            Self::Dense(fetch) => {
                framed(&v1::FetchDenseRequest { model, names: fetch.names.clone(), resume })
            }
        }
    }

    /// Makes the call, once.
    pub(crate) async fn open(
        &self,
        transport: &Transport,
        call: &Call,
        resume: Option<v1::Resume>,
    ) -> Result<Messages, Error> {
        let message = self.message(resume)?;
        let reply = async {
            let (bulk, channel) = match transport {
                Transport::Bulk(bulk, channel) => {
                    (bulk.place().map(|place| (bulk, place)), channel)
                }
                Transport::Ordinary(channel) => (None, channel),
            };
            Ok(match bulk {
                Some((bulk, place)) => {
                    let (path, left) = (self.path(), call.time_left());
                    match bulk.call(place, path, message.clone(), left).await {
                        Ok(reply) => Messages::of(reply),
                        // No connection for it, of which daemons allow so many: one that is
                        // there may serve it.
                        Err(Unanswered::Connection) => {
                            let request = self.request(message, call)?;
                            Messages::of(OrdinaryReply::call(channel.clone(), request).await?)
                        }
                        Err(Unanswered::Status(status)) => return Err(status),
                    }
                }
                None => {
                    let request = self.request(message, call)?;
                    Messages::of(OrdinaryReply::call(channel.clone(), request).await?)
                }
            })
        };
        call.wait(reply).await?.map_err(|status: Status| call.error(&status))
    }

    fn request(&self, message: Bytes, call: &Call) -> Result<http::Request<Body>, Status> {
        let mut request = http::Request::builder()
            .method(http::Method::POST)
            .uri(self.path())
            .header(TE, "trailers")
            .header(CONTENT_TYPE, "application/grpc");
        if let Some(left) = call.time_left() {
            request = request.header("grpc-timeout", grpc_timeout(left));
        }
        request
            .body(Body::new(Full::new(message)))
            .map_err(|error| Status::internal(error.to_string()))
    }
}

fn framed(message: &impl prost::Message) -> Result<Bytes, Error> {
    let length = message.encoded_len();
    let announced = u32::try_from(length)
        .map_err(|_| Error::protocol("fetch", "a request of more than 4 GiB cannot be sent"))?;
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(announced);
    message.encode(&mut bytes).map_err(|error| Error::protocol("fetch", error.to_string()))?;
    Ok(bytes.freeze())
}

/// Numbers in rows, each row by its first and how many they are.
#[derive(Debug, Default)]
pub(crate) struct Ordinals(BTreeMap<u64, u64>);

impl Ordinals {
    /// Adds a number; whether it is new.
    pub(crate) fn add(&mut self, number: u64) -> bool {
        let before = self.0.range(..=number).next_back().map(|(first, count)| (*first, *count));
        let (mut first, mut count) = (number, 1);
        if let Some((start, length)) = before {
            if number - start < length {
                return false;
            }
            if number - start == length {
                (first, count) = (start, length + 1);
            }
        }
        if let Some(next) = number.checked_add(1)
            && let Some(length) = self.0.remove(&next)
        {
            count += length;
        }
        self.0.insert(first, count);
        true
    }

    pub(crate) fn rows(&self) -> Vec<v1::OrdinalRange> {
        self.0.iter().map(|(&first, &count)| v1::OrdinalRange { first, count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_rows_in_whatever_order_they_come() {
        let mut ordinals = Ordinals::default();
        for number in [5, 3, 4, 9, 0, 10, u64::MAX, 8] {
            assert!(ordinals.add(number));
        }
        for number in [0, 3, 4, 5, 8, 9, 10, u64::MAX] {
            assert!(!ordinals.add(number), "{number}");
        }
        let rows: Vec<_> = ordinals.rows().iter().map(|row| (row.first, row.count)).collect();
        assert_eq!(rows, [(0, 1), (3, 3), (8, 3), (u64::MAX, 1)]);
    }
}

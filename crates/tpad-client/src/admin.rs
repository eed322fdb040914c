//! Administration: what the daemon serves, and its end.
//!
//! The daemon answers these calls over its Unix socket and over loopback;
//! elsewhere they are refused with [`Kind::Denied`](crate::Kind::Denied).

mod residence;

use std::time::Duration;

use serde::Serialize;
use tonic::transport::Channel;
use tpad_proto::v1;
use tpad_proto::v1::admin_service_client::AdminServiceClient;
use tpad_proto::v1::reload_model_request::Target;

pub use self::residence::{Amount, EvictLevel, Evicted, Pinned, Scope, Unpinned};
use crate::call::Call;
use crate::{Client, Error};

/// The administrative calls of a [`Client`]; see [`Client::admin`].
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
}

/// A model to add to what a daemon serves.
#[derive(Clone, Debug, Default)]
pub struct LoadModel {
    /// What requests shall call it.
    pub model: String,
    /// The checkpoint's root, or the URL of one revision. A path is the daemon's.
    pub root: String,
    /// Where the manifest's `objects_base` may point besides the root.
    pub allowed_bases: Vec<String>,
    /// A model of the daemon's whose endpoint and credentials reach the root
    /// too; empty for those of the daemon's environment.
    pub origin_of: String,
}

/// What a model serves after it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LoadedModel {
    /// What loading did.
    pub outcome: LoadOutcome,
    /// The manifest's number.
    pub revision: u64,
    /// The daemon's count of swaps.
    pub generation: u64,
}

/// What loading a model did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoadOutcome {
    /// The model served nothing before.
    Loaded,
    /// The model serves another document than before.
    Reloaded,
    /// Its root has nothing else than what it serves.
    Unchanged,
    /// The daemon does not say.
    Unknown,
}

/// What a model served last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct UnloadedModel {
    /// The manifest's number; 0 when it could not be loaded.
    pub revision: u64,
    /// The daemon's count of swaps; 0 when it could not be loaded.
    pub generation: u64,
}

impl Client {
    /// The calls that change what the daemon serves.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin { client: self.clone() }
    }
}

impl Admin {
    /// Adds a model, and waits until it is served.
    ///
    /// # Errors
    /// The daemon's refusal; the model is not added then.
    pub async fn load_model(&self, model: LoadModel) -> Result<LoadedModel, Error> {
        let LoadModel { model, root, allowed_bases, origin_of } = model;
        let message = v1::LoadModelRequest { model, root, allowed_bases, origin_of };
        let send = |call: &Call| {
            let (mut service, message) = (self.service(), call.request(message.clone()));
            async move { service.load_model(message).await }
        };
        let answer = self.client.unary(send).await?;
        Ok(answer.loaded.unwrap_or_default().into())
    }

    /// Loads a model of the daemon's again, now.
    ///
    /// # Errors
    /// The daemon's refusal; the model serves what it served then.
    pub async fn reload_model(&self, model: &str) -> Result<LoadedModel, Error> {
        self.reload(model, None).await
    }

    /// Has the daemon serve this revision of the model's root, whatever the root
    /// names, until [`Admin::follow_root`] or the daemon's end.
    ///
    /// # Errors
    /// The daemon's refusal; the model serves what it served then.
    pub async fn stay_on(&self, model: &str, revision: u64) -> Result<LoadedModel, Error> {
        self.reload(model, Some(Target::Revision(revision))).await
    }

    /// Has the daemon serve what the model's configured root names, and follow it.
    ///
    /// # Errors
    /// The daemon's refusal; the model serves what it served then.
    pub async fn follow_root(&self, model: &str) -> Result<LoadedModel, Error> {
        self.reload(model, Some(Target::Follow(v1::Follow {}))).await
    }

    async fn reload(&self, model: &str, target: Option<Target>) -> Result<LoadedModel, Error> {
        let message = v1::ReloadModelRequest { model: model.to_owned(), target };
        let send = |call: &Call| {
            let (mut service, message) = (self.service(), call.request(message.clone()));
            async move { service.reload_model(message).await }
        };
        let answer = self.client.unary(send).await?;
        Ok(answer.loaded.unwrap_or_default().into())
    }

    /// Ends a model. Streams that read it read on.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub async fn unload_model(&self, model: &str) -> Result<UnloadedModel, Error> {
        let message = v1::UnloadModelRequest { model: model.to_owned() };
        let send = |call: &Call| {
            let (mut service, message) = (self.service(), call.request(message.clone()));
            async move { service.unload_model(message).await }
        };
        let v1::UnloadModelResponse { revision, generation } = self.client.unary(send).await?;
        Ok(UnloadedModel { revision, generation })
    }

    /// Stops the daemon as SIGTERM does. It is not ready when this returns, and
    /// ends after at most the time that it answers.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub async fn drain(&self) -> Result<Duration, Error> {
        let send = |call: &Call| {
            let (mut service, message) = (self.service(), call.request(v1::DrainRequest {}));
            async move { service.drain(message).await }
        };
        let answer = self.client.unary(send).await?;
        Ok(Duration::from_millis(answer.deadline_ms))
    }

    fn service(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.client.channel())
    }
}

impl From<v1::LoadedModel> for LoadedModel {
    fn from(loaded: v1::LoadedModel) -> Self {
        let outcome = match loaded.outcome() {
            v1::LoadOutcome::Loaded => LoadOutcome::Loaded,
            v1::LoadOutcome::Reloaded => LoadOutcome::Reloaded,
            v1::LoadOutcome::Unchanged => LoadOutcome::Unchanged,
            v1::LoadOutcome::Unspecified => LoadOutcome::Unknown,
        };
        Self { outcome, revision: loaded.revision, generation: loaded.generation }
    }
}

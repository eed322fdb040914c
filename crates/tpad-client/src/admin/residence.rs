//! Which blocks stay in host memory and on disk, and which are forgotten.

use std::time::Duration;

use serde::Serialize;
use tpad_manifest::ExpertKey;
use tpad_proto::v1;

use super::Admin;
use crate::Error;
use crate::call::Call;

/// Blocks of a model: tiers, groups and experts, which add up. A tier's routers go
/// with it when the whole tier is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Whole tiers.
    pub tiers: Vec<String>,
    /// All experts of groups.
    pub groups: Vec<(String, u32)>,
    /// Single experts.
    pub experts: Vec<ExpertKey>,
    /// At these layers; empty for every layer.
    pub layers: Vec<u32>,
}

/// Blocks and the bytes of their images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a pin holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pinned {
    /// What it keeps in host memory.
    #[serde(flatten)]
    pub held: Amount,
    /// The revision whose blocks they are.
    pub revision: u64,
    /// It took the place of an earlier pin.
    pub renewed: bool,
}

/// What ended pins held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Unpinned {
    /// How many pins ended.
    pub pins: u64,
    /// What they held, blocks of several pins counted for each.
    #[serde(flatten)]
    pub held: Amount,
}

/// A level that can forget blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictLevel {
    /// GPU memory.
    Hbm,
    /// Host memory.
    Dram,
    /// Disk.
    Nvme,
}

/// What was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Evicted {
    /// By GPU memory, each block once however many devices had it.
    pub hbm: Amount,
    /// By host memory.
    pub dram: Amount,
    /// By the disk.
    pub nvme: Amount,
    /// Nothing: someone has pinned them.
    pub pinned: Amount,
}

impl Admin {
    /// Reads a scope's blocks into host memory and keeps them there until `ttl` is
    /// over. The same owner's pin of the same scope is renewed.
    ///
    /// # Errors
    /// The daemon's refusal; nothing is pinned then that was not.
    pub async fn pin(
        &self,
        model: &str,
        owner: &str,
        scope: Scope,
        ttl: Duration,
    ) -> Result<Pinned, Error> {
        let message = v1::PinRequest {
            model: model.to_owned(),
            owner: owner.to_owned(),
            scope: Some(scope.into()),
            ttl_ms: ttl.as_millis().try_into().unwrap_or(u64::MAX),
        };
        let send = |call: &Call| {
            let (mut service, message) = (self.service(), call.request(message.clone()));
            async move { service.pin(message).await }
        };
        let v1::PinResponse { held, revision, renewed } = self.client.unary(send).await?;
        Ok(Pinned { held: held.into(), revision, renewed })
    }

    /// Ends an owner's pins of a model: the one of `scope`, or all.
    ///
    /// # Errors
    /// The daemon's refusal; [`Kind::NotFound`](crate::Kind::NotFound) when there
    /// is none.
    pub async fn unpin(
        &self,
        model: &str,
        owner: &str,
        scope: Option<Scope>,
    ) -> Result<Unpinned, Error> {
        let scope = scope.map(Into::into);
        let message = v1::UnpinRequest { model: model.to_owned(), owner: owner.to_owned(), scope };
        let send = |call: &Call| {
            let (mut service, message) = (self.service(), call.request(message.clone()));
            async move { service.unpin(message).await }
        };
        let v1::UnpinResponse { pins, held } = self.client.unary(send).await?;
        Ok(Unpinned { pins, held: held.into() })
    }

    /// Has host memory and disk, or one of them, forget a scope's blocks. Pinned
    /// ones stay.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub async fn evict(
        &self,
        model: &str,
        scope: Scope,
        level: Option<EvictLevel>,
    ) -> Result<Evicted, Error> {
        let level = match level {
            None => v1::CostClass::Unspecified,
            Some(EvictLevel::Hbm) => v1::CostClass::Hbm,
            Some(EvictLevel::Dram) => v1::CostClass::Dram,
            Some(EvictLevel::Nvme) => v1::CostClass::Nvme,
        };
        let (model, scope) = (model.to_owned(), Some(scope.into()));
        let message = v1::EvictRequest { model, scope, level: level.into() };
        let send = |call: &Call| {
            let (mut service, message) = (self.service(), call.request(message.clone()));
            async move { service.evict(message).await }
        };
        let v1::EvictResponse { hbm, dram, nvme, pinned } = self.client.unary(send).await?;
        let [hbm, dram, nvme, pinned] = [hbm, dram, nvme, pinned].map(Into::into);
        Ok(Evicted { hbm, dram, nvme, pinned })
    }
}

impl From<Option<v1::Amount>> for Amount {
    fn from(amount: Option<v1::Amount>) -> Self {
        let v1::Amount { blocks, bytes } = amount.unwrap_or_default();
        Self { blocks, bytes }
    }
}

impl From<Scope> for v1::Scope {
    fn from(scope: Scope) -> Self {
        let Scope { tiers, groups, experts, layers } = scope;
        let groups = groups.into_iter().map(|(tier, group)| v1::GroupKey { tier, group });
        let experts = experts.iter().map(v1::ExpertKey::from);
        Self { tiers, groups: groups.collect(), experts: experts.collect(), layers }
    }
}

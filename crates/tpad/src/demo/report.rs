//! What the demo shows.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tpad_client::ModelDescription;

use super::survey::Survey;
use crate::config::show_bytes;

/// The demo's findings.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) directory: PathBuf,
    pub(super) model: ModelDescription,
    pub(super) shards: usize,
    pub(super) tensors: usize,
    pub(super) synthesized_in: Duration,
    pub(super) imported_in: Duration,
    pub(super) cold: Survey,
    pub(super) warm: Survey,
    pub(super) grpc: Option<SocketAddr>,
    pub(super) uds: Option<PathBuf>,
    pub(super) http: Option<SocketAddr>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.model.summary.name;
        writeln!(
            f,
            "made      {} tensors in {} shards, {} s",
            self.tensors,
            self.shards,
            seconds(self.synthesized_in)
        )?;
        writeln!(
            f,
            "imported  as model {name}, revision {}: no weight was copied, {} s",
            self.model.summary.revision,
            seconds(self.imported_in)
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "  {:<12} {:>8} {:>14} {:>12} {:>10}",
            "TIER", "LAYERS", "EXPERTS", "PARAMETERS", "SIZE"
        )?;
        for tier in &self.model.tier_details {
            let groups: Vec<String> =
                tier.groups.iter().map(|group| group.experts.to_string()).collect();
            writeln!(
                f,
                "  {:<12} {:>8} {:>14} {:>12} {:>10}",
                tier.id,
                self.model.layers.len(),
                groups.join("+"),
                tier.parameters,
                show_bytes(tier.bytes)
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "verified  {} experts, {} routers and {} dense tensors: {} equal the shards",
            self.cold.experts,
            self.cold.routers,
            self.cold.dense,
            show_bytes(self.cold.bytes)
        )?;
        writeln!(f, "cold      {}", pass(&self.cold))?;
        writeln!(f, "warm      {}", pass(&self.warm))?;
        writeln!(f)?;
        self.addresses(f)
    }
}

impl Report {
    fn addresses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.model.summary.name;
        let mut address = String::new();
        if let Some(uds) = &self.uds {
            address = format!("unix://{}", uds.display());
            writeln!(f, "gRPC      {address}")?;
        }
        if let Some(grpc) = self.grpc {
            address = format!("http://{grpc}");
            writeln!(f, "gRPC      {address}")?;
        }
        if let Some(http) = self.http {
            writeln!(f, "HTTP      http://{http}/status  /metrics  /readyz")?;
        }
        writeln!(f, "files     {}", self.directory.display())?;
        writeln!(f)?;
        writeln!(f, "try       export TPAD_ADDR={address}")?;
        writeln!(f, "          cargo run --release -p tpactl -- models {name}")?;
        let last = self.model.tier_details.last();
        if let (Some(tier), Some(layer)) = (last, self.model.layers.first()) {
            writeln!(
                f,
                "          cargo run --release -p tpactl -- fetch --model {name} --tier {} \
                 --group 0 --expert 0 --layer {layer} --out expert.safetensors",
                tier.id
            )?;
        }
        write!(f, "          cargo run --release -p tpactl -- status")
    }
}

fn pass(survey: &Survey) -> String {
    let mut text = format!("{} blocks in {} s, from", survey.blocks(), seconds(survey.waited));
    let mut separator = " ";
    for (medium, blocks) in &survey.media {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{separator}{medium} ({blocks})");
        separator = ", ";
    }
    text
}

fn seconds(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64())
}

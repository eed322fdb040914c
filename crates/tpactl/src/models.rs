//! `tpactl models`: what a daemon serves.

use serde::Serialize;
use tpad_client::{Client, ListedBlock, ListedTensor, ModelDescription, ModelState, ModelSummary};

use crate::failure::Failure;
use crate::fetch::KeyReport;
use crate::output::{Output, Tone, human_bytes, printable};

/// List the daemon's models, or show one in full
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl models
  tpactl models mixtral
  tpactl models mixtral --blocks --tier tier_1b --json | jq .block_id")]
pub(crate) struct Args {
    /// Show this model's tiers, groups and layers
    #[arg(value_name = "M")]
    model: Option<String>,

    /// List the model's blocks; with --json one document per line
    #[arg(long, requires = "model")]
    blocks: bool,

    /// List the blocks of this tier alone
    #[arg(long, value_name = "T", requires = "blocks")]
    tier: Option<String>,

    /// Print the model's manifest document
    #[arg(long, requires = "model", conflicts_with = "blocks")]
    manifest: bool,
}

/// What `--blocks --json` prints per line.
#[derive(Serialize)]
struct BlockLine {
    key: KeyReport,
    block_id: String,
    image_bytes: u64,
    source_expert: Option<u32>,
    router_column: Option<u32>,
    tensors: Vec<ListedTensor>,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    match args.model {
        None => list(client, output).await,
        Some(model) if args.blocks => blocks(&model, args.tier.as_deref(), client, output).await,
        Some(model) => {
            let described = client.describe_model(&model).await?;
            if args.manifest {
                output.text(described.manifest_json)
            } else if output.is_json() {
                output.json(&described)
            } else {
                output.text(describe(&described, output))
            }
        }
    }
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let models = client.list_models().await?;
    if output.is_json() {
        return output.json(&serde_json::json!({ "models": models }));
    }
    output.text(table(&models, output))
}

fn table(models: &[ModelSummary], output: &Output) -> String {
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|model| {
            vec![
                model.name.clone(),
                state(model.state).to_owned(),
                number(model.revision),
                number(model.generation),
                model.tiers.join(" "),
                if model.reason.is_empty() { model.root.clone() } else { model.reason.clone() },
            ]
        })
        .collect();
    output.table(&["MODEL", "STATE", "REVISION", "GENERATION", "TIERS", "ROOT"], &rows)
}

fn describe(model: &ModelDescription, output: &Output) -> String {
    let summary = &model.summary;
    let tone = if summary.state == ModelState::Serving { Tone::Good } else { Tone::Bad };
    let mut lines = vec![
        format!("{}  {}", printable(&summary.name), output.tone(tone, state(summary.state))),
        format!("root           {}", printable(&summary.root)),
        format!("revision       {}", number(summary.revision)),
        format!("generation     {}", number(summary.generation)),
        format!("layers         {}", ranges(&model.layers)),
        format!("dense tensors  {}", model.dense_tensors),
        format!("files          {}", printable(&model.files.join(" "))),
        format!("default tiers  {}", printable(&summary.default_tier_set.join(" "))),
    ];
    if !summary.reason.is_empty() {
        lines.push(format!("reason         {}", printable(&summary.reason)));
    }
    let rows: Vec<Vec<String>> = model
        .tier_details
        .iter()
        .map(|tier| {
            let experts: Vec<String> =
                tier.groups.iter().map(|group| group.experts.to_string()).collect();
            vec![
                tier.id.clone(),
                tier.placement.clone(),
                experts.join("+"),
                format!("{}/{}/{}", tier.k_tier, tier.k_group, tier.k_expert),
                tier.parameters.to_string(),
                tier.parameter_budget.to_string(),
                human_bytes(tier.bytes),
                tier.skipped.clone(),
            ]
        })
        .collect();
    lines.push(String::new());
    let headings = ["TIER", "PLACEMENT", "EXPERTS", "K", "PARAMETERS", "BUDGET", "SIZE", "SKIPPED"];
    lines.push(output.table(&headings, &rows));
    lines.join("\n")
}

async fn blocks(
    model: &str,
    tier: Option<&str>,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let mut pages = client.list_blocks(model, tier);
    while let Some(block) = pages.next().await {
        let block = block?;
        if output.is_json() {
            output.json_line(&line(block))?;
        } else {
            output.text(format_args!(
                "{}  {}  {}",
                block.id,
                printable(&block.key.to_string()),
                human_bytes(block.image_bytes)
            ))?;
        }
    }
    Ok(())
}

fn line(block: ListedBlock) -> BlockLine {
    BlockLine {
        key: (&block.key).into(),
        block_id: block.id.to_string(),
        image_bytes: block.image_bytes,
        source_expert: block.source.map(|source| source.expert),
        router_column: block.source.map(|source| source.column),
        tensors: block.tensors,
    }
}

fn state(state: ModelState) -> &'static str {
    match state {
        ModelState::Loading => "loading",
        ModelState::Serving => "serving",
        ModelState::Failed => "failed",
        _ => "unknown",
    }
}

/// Revisions and generations count from 1; 0 is none.
fn number(number: u64) -> String {
    if number == 0 { "-".to_owned() } else { number.to_string() }
}

/// `0-2 4` for 0, 1, 2, 4.
fn ranges(layers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(layer) => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let spell = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(spell).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shown_as_runs() {
        assert_eq!(ranges(&[0, 1, 2, 4, 7, 8]), "0-2 4 7-8");
        assert_eq!(ranges(&[u32::MAX]), "4294967295");
        assert_eq!(ranges(&[]), "");
    }
}

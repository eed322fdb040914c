//! `tpactl status`: the daemon's own account of itself.

mod summary;

use serde_json::Value;
use tpad_client::Client;

use self::summary::Summary;

use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, printable};

/// Show the daemon's status: models, tiers with their homes, levels
///
/// With --json the daemon's document is printed byte for byte: the same that its HTTP port shows
/// at /status.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl status
  tpactl status --all
  tpactl --addr http://127.0.0.1:7070 status --json")]
pub(crate) struct Args {
    /// Every field, as an outline
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let document = client.status().await?;
    if output.is_json() {
        return output.text(document.trim_end());
    }
    let status: Value = serde_json::from_str(&document).map_err(|error| {
        Failure::new(Exit::Internal, format!("the daemon's status is no JSON: {error}"))
    })?;
    output.text(format_args!("daemon at {}", printable(client.address())))?;
    if !args.all
        && let Ok(summary) = serde_json::from_value::<Summary>(status.clone())
    {
        return output.text(summary.show(output));
    }
    let mut lines = Vec::new();
    outline(&status, 0, output, &mut lines);
    output.text(lines.join("\n"))
}

/// The document as an outline. It shows whatever the daemon reports, so that a
/// newer daemon's fields are not hidden by an older `tpactl`.
fn outline(value: &Value, depth: usize, output: &Output, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            let width = fields.keys().map(|name| name.chars().count()).max().unwrap_or(0);
            for (name, value) in fields {
                let name = printable(name);
                if let Some(leaf) = leaf(value) {
                    lines.push(format!("{indent}{name:<width$}  {leaf}"));
                } else {
                    lines.push(format!("{indent}{}", output.tone(Tone::Heading, name)));
                    outline(value, depth + 1, output, lines);
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    lines.push(String::new());
                }
                outline(item, depth, output, lines);
            }
        }
        _ => lines.extend(leaf(value).map(|leaf| format!("{indent}{leaf}"))),
    }
}

/// A value that fits one line: scalars and lists of them.
fn leaf(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("-".to_owned()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(printable(text)),
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            let items: Vec<String> = items.iter().filter_map(leaf).collect();
            Some(if items.is_empty() { "-".to_owned() } else { items.join(" ") })
        }
        Value::Object(fields) if fields.is_empty() => Some("-".to_owned()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_document_is_shown() {
        let status = serde_json::json!({
            "version": "0.1.0",
            "levels": { "dram": { "used_bytes": 7, "state": "on" } },
            "models": [{ "name": "a\u{7}", "tiers": ["1", "2"] }, { "name": "b", "tiers": [] }],
        });
        let mut lines = Vec::new();
        outline(&status, 0, &Output::for_terminal(false, None), &mut lines);
        let expected = [
            "levels",
            "  dram",
            "    state       on",
            "    used_bytes  7",
            "models",
            "  name   a\\u{7}",
            "  tiers  1 2",
            "",
            "  name   b",
            "  tiers  -",
            "version  0.1.0",
        ];
        assert_eq!(lines, expected);
    }
}

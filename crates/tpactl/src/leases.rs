//! `tpactl leases`: which workers hold a daemon's memory.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tpad_client::Client;

use crate::failure::{Exit, Failure};
use crate::output::{Output, human_bytes};

/// List the workers on the daemon's machine that read blocks in place, and what they hold
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl leases
  tpactl leases --json | jq '.workers[] | select(.bytes > 1073741824) | .pid'")]
pub(crate) struct Args {}

/// The part of the status that this is about.
#[derive(Debug, Serialize, Deserialize)]
struct Leases {
    bytes: u64,
    /// None of a daemon that is older.
    #[serde(default)]
    direct_bytes: u64,
    most_bytes: u64,
    workers: Vec<Worker>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Worker {
    pid: Option<i32>,
    uid: Option<u32>,
    name: String,
    leases: u64,
    bytes: u64,
    #[serde(default)]
    direct_bytes: u64,
    connected_seconds: u64,
    oldest_seconds: Option<u64>,
}

pub(crate) async fn run(args: Args, client: &Client, output: &Output) -> Result<(), Failure> {
    let Args {} = args;
    let document = client.status().await?;
    let leases = read(&document)?;
    if output.is_json() {
        return output.json(&leases);
    }
    output.text(table(&leases, output))
}

fn read(document: &str) -> Result<Leases, Failure> {
    let wrong = |error| Failure::new(Exit::Internal, format!("the daemon's status: {error}"));
    let mut status: Value = serde_json::from_str(document).map_err(wrong)?;
    let leases = status.get_mut("leases").map(Value::take).ok_or_else(|| {
        Failure::new(
            Exit::FailedPrecondition,
            "this daemon is older than leases: its status has none".to_owned(),
        )
    })?;
    serde_json::from_value(leases).map_err(wrong)
}

fn table(leases: &Leases, output: &Output) -> String {
    let number = |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let rows: Vec<Vec<String>> = leases
        .workers
        .iter()
        .map(|worker| {
            vec![
                number(worker.pid.map(i64::from)),
                number(worker.uid.map(i64::from)),
                worker.name.clone(),
                worker.leases.to_string(),
                human_bytes(worker.bytes),
                human_bytes(worker.direct_bytes),
                worker.oldest_seconds.map_or_else(|| "-".to_owned(), age),
                age(worker.connected_seconds),
            ]
        })
        .collect();
    let headings = ["PID", "UID", "WORKER", "LEASES", "BYTES", "DIRECT", "OLDEST", "CONNECTED"];
    let held = leases.bytes.saturating_add(leases.direct_bytes);
    let (bytes, most) = (human_bytes(held), human_bytes(leases.most_bytes));
    let total = format!("all together {bytes} of at most {most}, what several hold counted once");
    if rows.is_empty() {
        return format!("no worker is connected\n{total}");
    }
    format!("{}\n{total}", output.table(&headings, &rows))
}

/// A time to glance at.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_listed_with_what_they_hold_and_for_how_long() {
        let status = serde_json::json!({ "leases": {
            "bytes": 3 << 20, "most_bytes": 1 << 30, "later": true,
            "workers": [
                { "pid": 71, "uid": 1000, "name": "vllm\u{7}", "leases": 12, "bytes": 3 << 20,
                  "connected_seconds": 7300, "oldest_seconds": 61 },
                { "pid": null, "uid": 0, "name": "", "leases": 0, "bytes": 0,
                  "connected_seconds": 200_000, "oldest_seconds": null },
            ],
        }});
        let leases = read(&status.to_string()).expect("it has them");
        let table = table(&leases, &Output::for_terminal(false, None));
        let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
        assert!(lines[0].starts_with("PID") && lines[0].ends_with("CONNECTED"), "{table}");
        for (line, words) in
            [(1, ["71", "1000", "3.00 MiB", "61 s", "2 h"]), (2, ["-", "0", "-", "0", "2 d"])]
        {
            for word in words {
                assert!(lines[line].contains(word), "{word}: {table}");
            }
        }
        assert!(!table.contains('\u{7}') && lines[3].contains("of at most 1.00 GiB"), "{table}");
        let none = Leases { workers: Vec::new(), ..leases };
        let none = super::table(&none, &Output::for_terminal(false, None));
        assert!(none.starts_with("no worker is connected\n"), "{none}");
    }

    #[test]
    fn an_older_daemon_has_no_leases_to_show() {
        let failure = read("{\"models\": []}").expect_err("nothing there");
        assert!(format!("{failure:?}").contains("older"), "{failure:?}");
        assert!(read("no JSON").is_err());
    }
}

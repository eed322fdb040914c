//! What is said, to people and to a file of JSON lines.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Where results go.
#[derive(Debug)]
pub struct Log {
    /// What every line says of the machine: a stand-in is named in each.
    driver: String,
    file: Option<Mutex<File>>,
}

impl Log {
    /// A log that says of every line which driver it is of, and keeps lines in `file`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(driver: String, file: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.with_context(|| format!("{} cannot be written", path.display()))
        };
        let file = file.map(open).transpose()?.map(Mutex::new);
        Ok(Self { driver, file })
    }

    /// Says a line to people, and an object to the file.
    pub fn say(&self, line: &str, what: &str, values: &Value) {
        // Who does not listen misses it.
        let _closed = writeln!(std::io::stdout(), "{line}");
        let Some(file) = &self.file else { return };
        let seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let entry = json!({
            "time": seconds, "driver": self.driver, "what": what, "values": values,
        });
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let _full = writeln!(file, "{entry}");
    }
}

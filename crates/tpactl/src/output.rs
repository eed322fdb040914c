//! What a command shows: text or JSON on standard output, notes and errors on
//! standard error, colour only where a person looks.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Failure;

/// Where and how a command reports.
pub(crate) struct Output {
    json: bool,
    colour_stdout: bool,
    colour_stderr: bool,
}

/// A colour, or none, around a piece of text.
#[derive(Clone, Copy)]
pub(crate) enum Tone {
    /// Names of columns and sections.
    Heading,
    /// All is well.
    Good,
    /// Someone should look.
    Bad,
}

impl Output {
    /// Output for this process's streams. `no_color` is the variable's value:
    /// set and not empty, it turns colour off everywhere.
    pub(crate) fn for_terminal(json: bool, no_color: Option<&OsStr>) -> Self {
        let wanted = no_color.is_none_or(OsStr::is_empty);
        Self {
            json,
            colour_stdout: wanted && !json && io::stdout().is_terminal(),
            colour_stderr: wanted && !json && io::stderr().is_terminal(),
        }
    }

    /// Whether `--json` was given: standard output then holds JSON alone.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Writes `text` and a line break to standard output.
    pub(crate) fn text(&self, text: impl fmt::Display) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")
            .and_then(|()| stdout.flush())
            .map_err(|error| Failure::stdout(&error))
    }

    /// Writes `value` as JSON to standard output.
    pub(crate) fn json<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::local(format!("cannot write JSON: {error}")))?;
        self.text(text)
    }

    /// Writes `value` as one line of JSON, for lists without an end in sight.
    pub(crate) fn json_line<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::local(format!("cannot write JSON: {error}")))?;
        self.text(text)
    }

    /// Writes a line for people to standard error; standard output stays for
    /// results.
    pub(crate) fn note(&self, text: impl fmt::Display) {
        // Nothing is left to tell when standard error is closed.
        let _closed = writeln!(io::stderr().lock(), "{text}");
    }

    /// `text` in a tone, when standard output is a terminal.
    pub(crate) fn tone(&self, tone: Tone, text: impl fmt::Display) -> String {
        paint(self.colour_stdout, tone, text)
    }

    /// Reports the end of a command that failed.
    pub(crate) fn failure(&self, failure: &Failure) -> ExitCode {
        if failure.quiet {
            return ExitCode::SUCCESS;
        }
        if self.json {
            let error = serde_json::json!({ "error": {
                "kind": failure.exit.name(),
                "message": failure.message,
                "remedy": failure.remedy,
            }});
            self.note(error);
        } else {
            self.note(format_args!(
                "{} {}",
                paint(self.colour_stderr, Tone::Bad, "error:"),
                printable_lines(&failure.message)
            ));
            if let Some(remedy) = &failure.remedy {
                self.note(format_args!("  {}", printable_lines(remedy)));
            }
        }
        failure.exit.into()
    }

    /// A table with aligned columns. Cells hold no control characters: names
    /// come from other people's checkpoints and must not drive a terminal.
    pub(crate) fn table(&self, headings: &[&str], rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(headings.get(column).map_or(0, |heading| heading.len()))
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (cell, width) in cells.zip(&widths) {
                // Writing to a String cannot fail.
                let _infallible = write!(line, "{cell:<width$}  ");
            }
            line.trim_end().to_owned()
        };
        let mut text = self.tone(Tone::Heading, line(&mut headings.iter().copied()));
        for row in &rows {
            text.push('\n');
            text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        text
    }
}

fn paint(colour: bool, tone: Tone, text: impl fmt::Display) -> String {
    let code = match tone {
        Tone::Heading => "1",
        Tone::Good => "32",
        Tone::Bad => "31",
    };
    if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
}

/// `text` with control characters spelled out.
pub(crate) fn printable(text: &str) -> String {
    let spell = |c: char| {
        if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
    };
    text.chars().map(spell).collect()
}

/// `text` with every control character but the line break spelled out.
pub(crate) fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// Bytes for people: three digits and a binary unit.
pub(crate) fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Output {
        Output { json: false, colour_stdout: false, colour_stderr: false }
    }

    #[test]
    fn tables_align_and_escape_what_a_terminal_would_obey() {
        let rows = vec![
            vec!["tier_1b".to_owned(), "8".to_owned()],
            vec!["\u{1b}[2J".to_owned(), "16".to_owned()],
        ];
        let table = plain().table(&["TIER", "EXPERTS"], &rows);
        assert_eq!(table, "TIER       EXPERTS\ntier_1b    8\n\\u{1b}[2J  16");
    }

    #[test]
    fn no_color_wins_over_a_terminal() {
        let output = Output::for_terminal(false, Some(OsStr::new("1")));
        assert_eq!(output.tone(Tone::Bad, "x"), "x");
        assert_eq!(paint(true, Tone::Bad, "x"), "\u{1b}[31mx\u{1b}[0m");
    }
}

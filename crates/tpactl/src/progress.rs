//! Progress bars on standard error, hidden when it is no terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `total` bytes with rate and time left; without a total, a count.
/// Nothing is drawn when standard error is no terminal. It is removed when
/// finished or dropped.
pub(crate) fn bytes(label: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        ),
        None => {
            (ProgressBar::no_length(), "{prefix} {spinner} {binary_bytes} {binary_bytes_per_sec}")
        }
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.set_style(style(template));
    bar.set_prefix(label.to_owned());
    bar
}

fn style(template: &str) -> ProgressStyle {
    // The templates are this file's own; a wrong one would fall back to the
    // default bar instead of ending the command.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_hidden_without_a_terminal_and_still_count() {
        let bar = bytes("read", Some(10));
        bar.inc(4);
        assert_eq!((bar.position(), bar.length()), (4, Some(10)));
        assert_eq!(bytes("read", None).length(), None);
    }
}

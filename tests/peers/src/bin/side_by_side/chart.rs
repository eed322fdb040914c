//! The README's picture: throughput and processor time at 16 MiB x 4.

use std::fmt::Write as _;

use crate::figures::{Part, Row, Spread};
use crate::wire;

/// What is drawn: the size and concurrency that one worker's layer asks for.
const CASE: &str = "16 MiB x 4";

const BAR: f64 = 18.0;
const STEP: f64 = 26.0;
const TOP: f64 = 64.0;
/// Room for names, and for the numbers right of the bars.
const NAMES: f64 = 236.0;
const NUMBERS: f64 = 64.0;
const PANEL: f64 = 220.0;
const GAP: f64 = 20.0;

/// Colours that read on white and on GitHub's dark page; the page's own background
/// shows through.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}\
.title{font-weight:600}.note{fill:#59636e;font-size:12px}\
.bar{fill:#8c959f}.ours{fill:#0969da}.limit{fill:#c4cad1}.spread{stroke:#1f2328;stroke-width:1}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.note{fill:#9198a1}\
.bar{fill:#656c76}.ours{fill:#4493f8}.limit{fill:#3d444d}.spread{stroke:#f0f6fc}}";

/// The picture of the wire's part.
pub(crate) fn draw(part: &Part) -> String {
    let mut rows: Vec<&Row> = part
        .rows
        .iter()
        .filter(|row| row.case == CASE && Spread::of(&row.cpu()).is_some())
        .collect();
    let median = |values: &[f64]| Spread::of(values).map_or(0.0, |spread| spread.median);
    rows.sort_by(|a, b| median(&b.gb_per_second).total_cmp(&median(&a.gb_per_second)));
    let count = u32::try_from(rows.len()).map_or(0.0, f64::from);
    let (width, height) = (NAMES + 2.0 * (PANEL + NUMBERS) + GAP, TOP + count * STEP + 12.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"Throughput and processor time of tpad and its peers\">\n\
         <style>{STYLE}</style>\n"
    );
    let second = NAMES + PANEL + NUMBERS + GAP;
    write(
        &mut svg,
        0.0,
        20.0,
        "title",
        "Experts of 16 MiB in memory, 4 at a time, TCP on loopback",
    );
    write(&mut svg, NAMES, 48.0, "note", "GB/s, more is better");
    write(&mut svg, second, 48.0, "note", "CPU s/GB, both sides, less is better");
    let speeds: Vec<Vec<f64>> = rows.iter().map(|row| row.gb_per_second.clone()).collect();
    let costs: Vec<Vec<f64>> = rows.iter().map(|row| row.cpu()).collect();
    for (left, all) in [(NAMES, &speeds), (second, &costs)] {
        let most = all.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
        let mut y = TOP;
        for (row, values) in rows.iter().zip(all) {
            let Some(spread) = Spread::of(values) else { continue };
            let x = |value: f64| left + value / most * PANEL;
            let class = class(row);
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{left}\" y=\"{y:.0}\" width=\"{:.1}\" \
                 height=\"{BAR}\" rx=\"2\"/>\
                 <line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
                x(spread.median) - left,
                x(spread.least),
                x(spread.most),
                middle = y + BAR / 2.0,
            );
            let end = x(spread.most) + 6.0;
            write(&mut svg, end, y + 14.0, "", &format!("{:.2}", spread.median));
            y += STEP;
        }
    }
    let mut y = TOP;
    for row in &rows {
        let weight = if row.peer.starts_with(wire::OURS) { "title" } else { "" };
        write(&mut svg, 0.0, y + 14.0, weight, &row.peer);
        y += STEP;
    }
    svg.push_str("</svg>\n");
    svg
}

fn class(row: &Row) -> &'static str {
    match row.peer.as_str() {
        peer if peer.starts_with(wire::LIMIT) => "limit",
        peer if peer.starts_with(wire::OURS) => "ours",
        _ => "bar",
    }
}

fn write(svg: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    // Writing to a String cannot fail.
    let _infallible =
        writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Sample;

    #[test]
    fn every_peer_with_figures_has_two_bars_the_fastest_first() {
        let mut rows = Vec::new();
        for (peer, speed) in [("slow <peer>", 1.0), (wire::LIMIT, 4.0), (wire::OURS, 3.0)] {
            let mut row = Row::new(peer, CASE);
            row.add(Sample { gb_per_second: speed, server_cpu: 1.0 / speed, ..Sample::default() });
            rows.push(row);
        }
        rows.push(Row { error: Some("no".to_owned()), ..Row::new("absent", CASE) });
        let svg = draw(&Part { rows, ..Part::default() });
        assert_eq!(svg.matches("<rect").count(), 6, "{svg}");
        assert!(!svg.contains("absent") && svg.contains("slow &lt;peer>"), "{svg}");
        let place = |name: &str| svg.find(&format!(">{name}<")).expect("it is named");
        assert!(place(wire::LIMIT) < place(wire::OURS));
    }
}

//! Latency by percentile as a picture.

use std::fmt::Write as _;

use super::report::Report;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// Room for the numbers beside the axes.
const MARGIN: f64 = 70.0;

/// An SVG of the latency at each percentile, both axes by powers of ten: what few
/// requests see is what few pictures show.
pub(super) fn latency(report: &Report) -> String {
    let points = report.curve.iter().filter(|(percentile, _)| *percentile < 100.0);
    let points: Vec<(f64, f64)> = points.copied().filter(|(_, ms)| *ms > 0.0).collect();
    let lowest = points.iter().map(|(_, ms)| *ms).fold(f64::INFINITY, f64::min);
    let highest = points.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
    let (bottom, top) = (decade(lowest).floor(), decade(highest).ceil());
    let (bottom, top) = if top > bottom { (bottom, top) } else { (bottom, bottom + 1.0) };
    let nines = points.iter().map(|(percentile, _)| nines(*percentile)).fold(1.0, f64::max).ceil();
    let x = |percentile: f64| MARGIN + self::nines(percentile) / nines * (WIDTH - 2.0 * MARGIN);
    let y = |ms: f64| {
        HEIGHT - MARGIN - (decade(ms) - bottom) / (top - bottom) * (HEIGHT - 2.0 * MARGIN)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(&report.title())
    );
    let mut line = |from: (f64, f64), to: (f64, f64), label: &str, at: (f64, f64), anchor: &str| {
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            svg,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ccc\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{label}</text>",
            from.0, from.1, to.0, to.1, at.0, at.1
        );
    };
    let (left, right, floor, ceiling) = (MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN, MARGIN);
    for (label, percentile) in
        [("0", 0.0), ("90", 90.0), ("99", 99.0), ("99.9", 99.9), ("99.99", 99.99)]
    {
        if self::nines(percentile) <= nines {
            let x = x(percentile);
            line((x, floor), (x, ceiling), &format!("{label} %"), (x, floor + 20.0), "middle");
        }
    }
    let mut power = bottom;
    while power <= top {
        let ms = 10f64.powf(power);
        let y = y(ms);
        line((left, y), (right, y), &format!("{ms} ms"), (left - 8.0, y + 4.0), "end");
        power += 1.0;
    }
    let path: Vec<String> = points
        .iter()
        .map(|(percentile, ms)| format!("{:.1},{:.1}", x(*percentile), y(*ms)))
        .collect();
    // Writing to a String cannot fail.
    let _infallible = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#1663b5\" stroke-width=\"2\"/>",
        path.join(" ")
    );
    svg.push_str("</svg>\n");
    svg
}

/// How many nines a percentile has: 0 at 0, 1 at 90, 2 at 99.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

fn decade(ms: f64) -> f64 {
    if ms.is_finite() && ms > 0.0 { ms.log10() } else { 0.0 }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

//! A daemon's HTTP pages.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The status code and the body of a page.
///
/// # Panics
/// When nobody answers.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status code"), body.to_owned())
}

/// The value of a metric in `/metrics`, the sum over all label sets that hold
/// all of `labels`.
///
/// # Panics
/// When there is no such metric: a misspelt name is not zero.
#[must_use]
pub fn metric(exposition: &str, name: &str, labels: &[&str]) -> f64 {
    let family = name.strip_suffix("_total").unwrap_or(name);
    let known = exposition.lines().any(|line| line.starts_with(&format!("# TYPE {family} ")));
    assert!(known, "no metric {name} in\n{exposition}");
    let samples = exposition.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let found = series.split('{').next()? == name;
        (found && labels.iter().all(|label| series.contains(label))).then_some(value)
    });
    samples.map(|value| value.parse::<f64>().expect("a number")).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_the_label_sets_that_match() {
        let text = "# TYPE reads counter\nreads_total{level=\"dram\",outcome=\"hit\"} 3\n\
            reads_total{level=\"dram\",outcome=\"miss\"} 4\nreads_total_x 9\n";
        assert!((metric(text, "reads_total", &["level=\"dram\""]) - 7.0).abs() < f64::EPSILON);
        assert!((metric(text, "reads_total", &["hit"]) - 3.0).abs() < f64::EPSILON);
    }
}

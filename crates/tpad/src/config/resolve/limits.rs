//! What clients may hold, and how long they may take.

use std::time::Duration;

use super::Problems;
use super::values::{count, duration, hours, narrow, size};
use crate::config::{Deadlines, Limits, mirror};

pub(super) fn deadlines(deadlines: mirror::Deadlines, problems: &mut Problems) -> Deadlines {
    let mirror::Deadlines { default, max } = deadlines;
    let range = || Duration::from_millis(1)..=hours(24 * 365);
    let default =
        duration("deadlines.default", default, Duration::from_secs(600), range(), problems);
    let max = duration("deadlines.max", max, Duration::from_secs(3600), range(), problems);
    if default > max {
        problems.add(
            "deadlines.default",
            format!(
                "{default:?} is longer than deadlines.max = {max:?}: lower it or raise the other"
            ),
        );
    }
    Deadlines { default, max }
}

pub(super) fn limits(limits: mirror::Limits, problems: &mut Problems) -> Limits {
    let mirror::Limits {
        connections,
        http_connections,
        streams_per_connection,
        requests,
        in_flight_bytes,
        in_flight_bytes_per_connection,
        request_bytes,
        header_bytes,
        preface_deadline,
        progress_deadline,
        keepalive_interval,
        keepalive_timeout,
    } = limits;
    let time = || Duration::from_millis(10)..=hours(24);
    Limits {
        connections: count("limits.connections", connections, 1024, 1 << 20, problems),
        http_connections: count("limits.http_connections", http_connections, 64, 1 << 16, problems),
        streams_per_connection: count(
            "limits.streams_per_connection",
            streams_per_connection,
            256,
            1 << 20,
            problems,
        ),
        requests: count("limits.requests", requests, 16_384, 1 << 24, problems),
        in_flight_bytes: size(
            "limits.in_flight_bytes",
            in_flight_bytes,
            1 << 30,
            1 << 20..=1 << 46,
            problems,
        ),
        in_flight_bytes_per_connection: size(
            "limits.in_flight_bytes_per_connection",
            in_flight_bytes_per_connection,
            16 << 20,
            1 << 20..=1 << 46,
            problems,
        ),
        request_bytes: narrow(size(
            "limits.request_bytes",
            request_bytes,
            4 << 20,
            1 << 10..=1 << 30,
            problems,
        )),
        header_bytes: narrow(size(
            "limits.header_bytes",
            header_bytes,
            16 << 10,
            1 << 10..=1 << 20,
            problems,
        )),
        preface_deadline: duration(
            "limits.preface_deadline",
            preface_deadline,
            Duration::from_secs(5),
            time(),
            problems,
        ),
        progress_deadline: duration(
            "limits.progress_deadline",
            progress_deadline,
            Duration::from_secs(30),
            time(),
            problems,
        ),
        keepalive_interval: duration(
            "limits.keepalive_interval",
            keepalive_interval,
            Duration::from_secs(20),
            time(),
            problems,
        ),
        keepalive_timeout: duration(
            "limits.keepalive_timeout",
            keepalive_timeout,
            Duration::from_secs(20),
            time(),
            problems,
        ),
    }
}

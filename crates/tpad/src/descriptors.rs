//! File descriptors: as many as the process may have, and whether they are enough.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the daemon opens beside its clients' connections: shards, origin
/// connections, listeners, the log.
const OWN_DESCRIPTORS: u64 = 512;

/// Raises the process's soft limit to its hard one: the soft limit is for
/// programs that use `select`. For `main`.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If that is not allowed the limit stays, and `shortage` tells.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// What is wrong if the process cannot have `connections` at a time.
pub(crate) fn shortage(connections: usize) -> Option<String> {
    let limit = getrlimit(Resource::Nofile).current?;
    let needed = u64::try_from(connections).ok()?.saturating_add(OWN_DESCRIPTORS);
    (limit < needed).then(|| {
        format!(
            "limits.connections and limits.http_connections allow {connections} connections, which take {needed} \
             descriptors with the daemon's own, and the process may have {limit}: raise its limit (ulimit -n, \
             LimitNOFILE) or lower limits.connections"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_names_both_numbers() {
        let limit = getrlimit(Resource::Nofile).current.expect("tests run with a limit");
        let connections = usize::try_from(limit).expect("64 bits");
        let message = shortage(connections).expect("not enough");
        assert!(message.contains(&limit.to_string()), "{message}");
        assert!(message.contains(&(limit + OWN_DESCRIPTORS).to_string()), "{message}");
        assert_eq!(shortage(0).is_some(), limit < OWN_DESCRIPTORS);
    }
}

//! The daemon that a command talks to.

use std::path::PathBuf;
use std::time::Duration;

use tpad_client::{Address, Client, ClientOptions, Error, Kind, RetryPolicy, SocketPaths};

use crate::failure::{Exit, Failure};

/// Which daemon, and how long it may take.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Daemon")]
pub(crate) struct Remote {
    /// The daemon's address: http://HOST:PORT, https://HOST:PORT or unix:///PATH [default: the user's or the
    /// system's Unix socket]
    #[arg(long, global = true, env = "TPAD_ADDR", value_name = "URL")]
    pub(crate) addr: Option<Address>,

    /// The certificates (PEM) that an https:// address is trusted by [default: the system's]
    #[arg(long, global = true, env = "TPAD_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Give up on a call after this many seconds [default: never]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    /// Try again this often when the daemon says that it is busy and when to come back
    #[arg(long, global = true, value_name = "N", default_value_t = 3)]
    pub(crate) retries: u32,
}

impl Remote {
    /// Connects. `sockets` says where the default socket is.
    pub(crate) async fn connect(&self, sockets: &SocketPaths) -> Result<Client, Failure> {
        self.connect_with(sockets, |_| {}).await
    }

    /// The same, with options of the command's own.
    pub(crate) async fn connect_with(
        &self,
        sockets: &SocketPaths,
        change: impl Fn(&mut ClientOptions),
    ) -> Result<Client, Failure> {
        let address = self.addr.clone().unwrap_or_else(|| Address::Unix(sockets.to_connect()));
        let mut options = ClientOptions::default();
        options.deadline = self.timeout;
        options.retry = RetryPolicy::up_to(self.retries, Duration::from_secs(10));
        if let Some(path) = &self.tls_ca {
            let read = std::fs::read(path);
            let read = read.map_err(|e| Failure::local(format!("{}: {e}", path.display())))?;
            options.tls.ca_pem = Some(read);
        }
        change(&mut options);
        Ok(Client::connect_with(&address, options).await?)
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("not a positive number of seconds".to_owned()),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of_call(&error)
    }
}

impl Failure {
    /// A call that failed.
    pub(crate) fn of_call(error: &Error) -> Self {
        let exit = match error.kind() {
            Kind::NotFound => Exit::NotFound,
            Kind::Denied => Exit::Denied,
            Kind::Unavailable => Exit::Unavailable,
            Kind::ResourceExhausted => Exit::ResourceExhausted,
            Kind::DeadlineExceeded => Exit::DeadlineExceeded,
            Kind::DataLoss => Exit::DataLoss,
            Kind::InvalidArgument => Exit::InvalidArgument,
            Kind::FailedPrecondition => Exit::FailedPrecondition,
            Kind::Cancelled => Exit::Unavailable,
            Kind::Internal => Exit::Internal,
        };
        let failure = Self::new(exit, error);
        match remedy(error) {
            Some(remedy) => failure.remedy(remedy),
            None => failure,
        }
    }
}

fn remedy(error: &Error) -> Option<String> {
    let after = error.refusal().and_then(|refusal| refusal.retry_after);
    Some(match error {
        Error::Connect { .. } => "start a daemon with `tpad serve ROOT`, or name one with --addr \
                                  or TPAD_ADDR"
            .to_owned(),
        Error::Disconnected { .. } => {
            "the daemon stopped or the network failed; try again".to_owned()
        }
        Error::Deadline { .. } => "give it more time with --timeout".to_owned(),
        Error::CorruptBlock { .. } | Error::CorruptFile { .. } => {
            "bytes changed on their way from the daemon; try again, and report it if it repeats"
                .to_owned()
        }
        Error::Refused(refusal) => match (refusal.kind, after) {
            (_, Some(after)) => {
                format!("the daemon asks to try again in {} s", after.as_secs_f64())
            }
            (Kind::DataLoss, None) => {
                "the checkpoint's bytes do not match its manifest; run `tpactl manifest check` \
                 on its root"
                    .to_owned()
            }
            _ => return None,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_positive_seconds() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["0", "-1", "nan", "inf", "x", "1e300"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn failures_carry_exit_code_and_remedy() {
        let error = Error::Connect { address: "http://x:1".into(), reason: "refused".into() };
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(failure.remedy.is_some_and(|remedy| remedy.contains("--addr")));
    }
}

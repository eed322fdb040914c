//! How to reach an object store.

use std::fmt;
use std::time::Duration;

/// How to reach an object store. Everything is optional for directories.
///
/// Without credentials requests go unsigned: the address of the cloud's
/// metadata server is asked only when [`instance_credentials`] says so.
///
/// [`instance_credentials`]: Self::instance_credentials
#[derive(Clone, PartialEq, Eq)]
pub struct OriginOptions {
    /// The server's URL where it is not the cloud's own.
    pub endpoint: Option<String>,
    /// The S3 region; `us-east-1` if nothing else is said.
    pub region: Option<String>,
    /// The S3 access key, or the Azure account's name.
    pub access_key_id: Option<String>,
    /// The S3 secret key, or the Azure account's key.
    pub secret_access_key: Option<String>,
    /// The token of temporary S3 credentials, or a bearer token for Google
    /// Cloud Storage and Azure.
    pub session_token: Option<String>,
    /// The file with a Google service account's key.
    pub google_credentials: Option<String>,
    /// Whether to take credentials from the surroundings: web identity, task
    /// roles, the metadata server. Only used where no others are given.
    pub instance_credentials: bool,
    /// Whether plain HTTP is good enough. `http://` roots imply it.
    pub allow_http: bool,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long to wait for the next byte of an answer.
    pub read_timeout: Duration,
    /// How often a passing failure is tried again, within the deadline.
    pub retries: u32,
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            google_credentials: None,
            instance_credentials: false,
            allow_http: false,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(10),
            retries: 4,
        }
    }
}

impl OriginOptions {
    /// The defaults, with what the environment says in the variables that the
    /// clouds' own tools read. For `main` only: nothing else reads the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// The defaults, with what `variable` answers to the names that the clouds'
    /// own tools read. Empty values count as missing.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()))
        };
        Self {
            endpoint: first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]),
            region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
            access_key_id: first(&["AWS_ACCESS_KEY_ID", "AZURE_STORAGE_ACCOUNT_NAME"]),
            secret_access_key: first(&["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY"]),
            session_token: first(&["AWS_SESSION_TOKEN"]),
            google_credentials: first(&["GOOGLE_APPLICATION_CREDENTIALS"]),
            allow_http: first(&["AWS_ALLOW_HTTP"])
                .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true")),
            ..Self::default()
        }
    }
}

/// Shows whether there are secrets, never which.
impl fmt::Debug for OriginOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            endpoint,
            region,
            access_key_id,
            secret_access_key,
            session_token,
            google_credentials,
            instance_credentials,
            allow_http,
            connect_timeout,
            read_timeout,
            retries,
        } = self;
        f.debug_struct("OriginOptions")
            .field("endpoint", endpoint)
            .field("region", region)
            .field("access_key_id", access_key_id)
            .field("secret_access_key", &secret_access_key.as_ref().map(|_| "***"))
            .field("session_token", &session_token.as_ref().map(|_| "***"))
            .field("google_credentials", google_credentials)
            .field("instance_credentials", instance_credentials)
            .field("allow_http", allow_http)
            .field("connect_timeout", connect_timeout)
            .field("read_timeout", read_timeout)
            .field("retries", retries)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let options = OriginOptions::from_variables(|name| Some(format!("value-of-{name}")));
        let shown = format!("{options:?}");
        assert!(shown.contains("value-of-AWS_ACCESS_KEY_ID"), "{shown}");
        assert!(!shown.contains("SECRET") && !shown.contains("TOKEN"), "{shown}");
    }

    #[test]
    fn empty_variables_are_missing() {
        let options = OriginOptions::from_variables(|_| Some(String::new()));
        assert_eq!(options, OriginOptions::default());
    }
}

//! Whom TLS trusts.

use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::ClientTlsConfig;

use crate::Error;

/// How an `https://` address is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsOptions {
    /// The certificates, as PEM, of which one must have signed the daemon's. `None`: those
    /// that the system trusts.
    pub ca_pem: Option<Vec<u8>>,
    /// The name that the daemon's certificate must have. `None`: the address's host.
    pub server_name: Option<String>,
}

/// One address's trust, for both receivers.
#[derive(Clone)]
pub(crate) struct Tls {
    roots: RootCertStore,
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// `host` is the address's.
    pub(crate) fn of(options: &TlsOptions, host: &str, address: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Address { address: address.to_owned(), reason };
        let name = options.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
            .map_err(|_| wrong(format!("{name:?} is no name that a certificate can have")))?;
        let mut roots = RootCertStore::empty();
        match &options.ca_pem {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let added = certificate.map_err(|error| error.to_string());
                    let added = added.and_then(|certificate| {
                        roots.add(certificate).map_err(|error| error.to_string())
                    });
                    added.map_err(|error| wrong(format!("a certificate to trust: {error}")))?;
                }
            }
            // What cannot be read there is no certificate that anybody needs.
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(wrong("there is no certificate to trust: name a file with some".into()));
        }
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?;
        let mut config = config.with_root_certificates(roots.clone()).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { roots, connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// For tonic's channel.
    pub(crate) fn ordinary(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .trust_anchors(self.roots.roots.iter().cloned())
            .domain_name(self.name.to_str())
    }

    pub(crate) fn connector(&self) -> &TlsConnector {
        &self.connector
    }

    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

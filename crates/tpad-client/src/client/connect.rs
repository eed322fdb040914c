//! How a client connects: where to, with which windows and frames, and how long a peer may be
//! silent.

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Endpoint;

use super::Client;
use crate::bulk::Bulk;
use crate::error::root;
use crate::fetch::Transport;
use crate::stream::Buffers;
use crate::tls::Tls;
use crate::{Address, ClientOptions, Error, Receiver, USER_AGENT};

/// Received by a connection and not yet read by any stream. Windows of 16 MiB
/// and frames of 1 MiB keep the sender busy; HTTP/2's defaults of 64 KiB and
/// 16 KiB cut throughput to an eighth.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;

/// HTTP/2's most: of streams that are not read each has its own window and no more, and
/// those that are read do not wait for it.
const MOST_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// A peer that is silent for this long while a call waits is asked whether it
/// is there, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

impl Client {
    /// Connects to `http://HOST:PORT`, `https://HOST:PORT`, `unix:///PATH` or a bare absolute path,
    /// with the default options.
    ///
    /// # Errors
    /// [`Error::Address`] and [`Error::Connect`].
    pub async fn connect(address: &str) -> Result<Self, Error> {
        Self::connect_with(&address.parse()?, ClientOptions::default()).await
    }

    /// Connects with options of one's own.
    ///
    /// # Errors
    /// [`Error::Address`] and [`Error::Connect`].
    pub async fn connect_with(address: &Address, options: ClientOptions) -> Result<Self, Error> {
        let tls = match address {
            Address::Https(url) => Some(Tls::of(&options.tls, host(address), url)?),
            Address::Http(_) | Address::Unix(_) => None,
        };
        let endpoint = endpoint(address, tls.as_ref())?.connect_timeout(options.connect_timeout);
        // Streams that nobody reads for a while hold a connection's window, and with it all
        // calls on that connection: streams have one of their own, opened when it is used.
        let streams = endpoint.clone().initial_connection_window_size(MOST_WINDOW_BYTES);
        let streams = streams.connect_lazy();
        let failed = |reason: String| Error::Connect { address: address.to_string(), reason };
        let connecting = tokio::time::timeout(options.connect_timeout, endpoint.connect());
        let channel = match connecting.await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(failed(root(&error))),
            Err(_) => {
                let waited = options.connect_timeout.as_secs_f64();
                return Err(failed(format!("no answer within {waited} s")));
            }
        };
        let transport = match options.receiver {
            Receiver::Ordinary => Transport::Ordinary(streams),
            Receiver::Bulk => {
                let (most, patience) = (options.bulk_connections, options.connect_timeout);
                let bulk = Bulk::new(address, tls, most, patience, KEEP_ALIVE)?;
                Transport::Bulk(Arc::new(bulk), streams)
            }
        };
        Ok(Self {
            address: address.to_string().into(),
            channel,
            transport,
            buffers: Buffers::new(options.kept_bytes),
            options: Arc::new(options),
        })
    }
}

fn host(address: &Address) -> &str {
    let authority = address.authority().unwrap_or_default();
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

fn endpoint(address: &Address, tls: Option<&Tls>) -> Result<Endpoint, Error> {
    let wrong = |error: tonic::transport::Error| Error::Address {
        address: address.to_string(),
        reason: root(&error),
    };
    let mut endpoint = Endpoint::from_shared(address.to_string()).map_err(wrong)?;
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.ordinary()).map_err(wrong)?;
    }
    Ok(endpoint
        .user_agent(USER_AGENT)
        .map_err(wrong)?
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .tcp_nodelay(true))
}

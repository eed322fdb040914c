//! Heads of requests: what all calls of a connection say alike is said once.
//!
//! The daemon keeps such a field in its table and gives it an index (RFC 7541): it then
//! reads a byte in place of a name and a value.

use super::super::call::Request;
use super::super::header::{NO_TABLE, append, append_string};

/// What a table has room for unless the daemon says otherwise.
pub(super) const TABLE_BYTES: u32 = 4096;

/// What a field takes of it beside its bytes.
const ENTRY_OVERHEAD: usize = 32;

/// As many fields as an index of one byte tells apart.
const MOST_KEPT: usize = 32;

/// Marks a field by its index alone, and a literal that is to be kept.
const INDEXED: u8 = 0x80;
const KEPT_LITERAL: u8 = 0x40;

/// Indices that HPACK itself gives.
const METHOD_POST: u8 = 3;
const SCHEME_HTTP: u8 = 6;
const SCHEME_HTTPS: u8 = 7;
const FIRST_KEPT: u8 = 62;

/// What the daemon keeps of the heads that it was sent.
#[derive(Debug)]
pub(super) struct RequestHeads {
    /// Oldest first. Never so much that one would be lost again.
    kept: Vec<(&'static str, String)>,
    kept_bytes: usize,
    /// A daemon that has less room than usual keeps nothing of ours.
    no_table: bool,
}

impl RequestHeads {
    pub(super) fn new() -> Self {
        Self { kept: Vec::new(), kept_bytes: 0, no_table: false }
    }

    /// The daemon has room for `bytes` from now on.
    pub(super) fn resize(&mut self, bytes: u32) {
        if bytes < TABLE_BYTES {
            *self = Self { no_table: true, ..Self::new() };
        }
    }

    /// The header block of a request.
    pub(super) fn block(&mut self, request: &Request) -> Vec<u8> {
        let mut block = Vec::with_capacity(256);
        if self.no_table {
            // Said each time: whatever size it allows, this one is within it.
            block.push(NO_TABLE);
        }
        block.push(INDEXED | METHOD_POST);
        block.push(INDEXED | if request.secure { SCHEME_HTTPS } else { SCHEME_HTTP });
        self.field(&mut block, ":path", request.path);
        self.field(&mut block, ":authority", &request.authority);
        self.field(&mut block, "te", "trailers");
        self.field(&mut block, "content-type", "application/grpc");
        self.field(&mut block, "user-agent", crate::USER_AGENT);
        // Another one each time, mostly.
        if let Some(timeout) = &request.timeout {
            append(&mut block, "grpc-timeout", timeout);
        }
        block
    }

    fn field(&mut self, block: &mut Vec<u8>, name: &'static str, value: &str) {
        let known = self.kept.iter().rev().position(|kept| kept.0 == name && kept.1 == value);
        if let Some(newer) = known {
            // At most MOST_KEPT.
            block.push(INDEXED | (FIRST_KEPT + u8::try_from(newer).unwrap_or(0)));
            return;
        }
        let bytes = name.len() + value.len() + ENTRY_OVERHEAD;
        let fits = self.kept_bytes + bytes <= TABLE_BYTES as usize;
        if self.no_table || self.kept.len() >= MOST_KEPT || !fits {
            append(block, name, value);
            return;
        }
        block.push(KEPT_LITERAL);
        append_string(block, name);
        append_string(block, value);
        self.kept_bytes += bytes;
        self.kept.push((name, value.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use loona_hpack::Decoder;

    use super::*;

    fn request(path: &'static str, authority: &str) -> Request {
        Request {
            secure: false,
            authority: authority.to_owned(),
            path,
            timeout: Some("9S".to_owned()),
            body: Bytes::new(),
        }
    }

    /// What a server reads of it.
    fn read(decoder: &mut Decoder<'_>, block: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let fields = decoder.decode(block).expect("a header block");
        fields.into_iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    fn said(request: &Request) -> Vec<(String, String)> {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", request.path),
            (":authority", request.authority.as_str()),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", crate::USER_AGENT),
            ("grpc-timeout", "9S"),
        ];
        fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    #[test]
    fn later_heads_say_what_they_mean_in_a_few_bytes() {
        let (mut heads, mut decoder) = (RequestHeads::new(), Decoder::new());
        let (one, other) = (request("/a/B", "host:1"), request("/a/C", "host:2"));
        let mut lengths = Vec::new();
        for request in [&one, &one, &other, &one, &other] {
            let block = heads.block(request);
            assert_eq!(read(&mut decoder, &block), said(request));
            lengths.push(block.len());
        }
        assert_eq!(lengths[1], 7 + "_:grpc-timeout:9S".len(), "seven indices and a deadline");
        assert_eq!([lengths[3], lengths[4]], [lengths[1]; 2]);
    }

    #[test]
    fn a_table_never_loses_what_it_was_told_to_keep() {
        let (mut heads, mut decoder) = (RequestHeads::new(), Decoder::new());
        decoder.set_max_allowed_table_size(TABLE_BYTES as usize);
        let authorities: Vec<String> = (0..40).map(|n| format!("{n}{}", "h".repeat(300))).collect();
        for authority in authorities.iter().chain(&authorities) {
            let request = request("/a/B", authority);
            let block = heads.block(&request);
            assert_eq!(read(&mut decoder, &block), said(&request));
        }
        assert!(heads.kept_bytes <= TABLE_BYTES as usize);
    }

    #[test]
    fn a_daemon_with_a_smaller_table_is_told_to_keep_nothing() {
        let (mut heads, mut decoder) = (RequestHeads::new(), Decoder::new());
        let request = request("/a/B", "host:1");
        read(&mut decoder, &heads.block(&request));
        heads.resize(100);
        for _ in 0..2 {
            let block = heads.block(&request);
            assert_eq!(block[0], NO_TABLE);
            assert_eq!(read(&mut decoder, &block), said(&request));
        }
        let usual = &mut RequestHeads::new();
        usual.resize(TABLE_BYTES);
        assert_ne!(usual.block(&request)[0], NO_TABLE);
    }
}

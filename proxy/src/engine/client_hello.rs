//! Just enough of a ClientHello (RFC 8446 4.1.2, RFC 5246 7.4.1.2) to route by it: the server name it asks for.
//!
//! Nothing is decrypted and nothing changed. A hello may span several records and segments. What does not parse to
//! the letter is not called TLS, so that no lenient server reads another name out of it than we did.

use crate::limits;

/// What a ClientHello says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name (RFC 6066 3), lower case, without trailing dot; with ECH the outer, public one. None: none was sent.
    pub sni: Option<String>,
    /// Protocols offered (RFC 7301), in order; those that are not text are left out.
    pub alpn: Vec<String>,
    /// An `encrypted_client_hello` extension is there (real or GREASE: nobody but the server can tell).
    pub ech: bool,
}

/// What the bytes so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A beginning; more bytes are needed.
    Incomplete,
    /// Not a ClientHello, whatever follows.
    NotTls,
    Hello(ClientHello),
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// RFC 8446 5.1: a plaintext record holds at most 2^14 bytes.
const RECORD_MOST: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// Reads a ClientHello from the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // Every byte is checked as soon as it is there, so that what is not TLS is not waited for.
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE)
            || rest.get(1).is_some_and(|major| *major != 3)
            || rest.get(2).is_some_and(|minor| *minor > 4)
        {
            return Parsed::NotTls;
        }
        let [_, _, _, high, low, body @ ..] = rest else { return Parsed::Incomplete };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > RECORD_MOST {
            return Parsed::NotTls;
        }
        let (fragment, next) = body.split_at(length.min(body.len()));
        message.extend_from_slice(fragment);
        match whole(&message) {
            Whole::Yes(hello) => return hello_body(hello).map_or(Parsed::NotTls, Parsed::Hello),
            Whole::NotYet => {}
            Whole::Never => return Parsed::NotTls,
        }
        if fragment.len() < length {
            return Parsed::Incomplete;
        }
        rest = next;
    }
}

enum Whole<'a> {
    Yes(&'a [u8]),
    NotYet,
    Never,
}

/// The body of the handshake message, once all of it is there.
fn whole(message: &[u8]) -> Whole<'_> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Whole::Never;
    }
    let [_, a, b, c, body @ ..] = message else { return Whole::NotYet };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if length > limits::SNIFF_BYTES {
        return Whole::Never;
    }
    body.get(..length).map_or(Whole::NotYet, Whole::Yes)
}

/// Reads from the front of a slice; every step may find it too short.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// A vector with a length of one byte before it.
    fn short(&mut self) -> Option<Reader<'a>> {
        let length = self.u8()?;
        self.take(length.into()).map(Reader)
    }

    /// A vector with a length of two bytes before it.
    fn long(&mut self) -> Option<Reader<'a>> {
        let length = self.u16()?;
        self.take(length.into()).map(Reader)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn hello_body(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    let version = reader.u16()?;
    if version >> 8 != 3 {
        return None;
    }
    reader.take(32)?; // random
    if reader.short()?.0.len() > 32 {
        return None; // session id
    }
    let suites = reader.long()?;
    if suites.is_empty() || suites.0.len() % 2 != 0 || reader.short()?.is_empty() {
        return None; // cipher suites, compression methods
    }
    let mut hello = ClientHello::default();
    if reader.is_empty() {
        return Some(hello); // No extensions at all, as TLS 1.0 clients do.
    }
    let mut extensions = reader.long()?;
    if !reader.is_empty() {
        return None;
    }
    let mut seen = Vec::new();
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let mut value = extensions.long()?;
        if seen.contains(&kind) {
            return None;
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.sni = Some(server_name(&mut value)?),
            ALPN => hello.alpn = protocols(&mut value)?,
            ENCRYPTED_CLIENT_HELLO => hello.ech = true,
            _ => {}
        }
    }
    Some(hello)
}

/// The one host name of the list. Names of other types are skipped, as RFC 6066 has it; a second host name is not TLS.
fn server_name(value: &mut Reader<'_>) -> Option<String> {
    let mut list = value.long()?;
    let mut found = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        let name = list.long()?.0;
        if kind != 0 {
            continue;
        }
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        if found.is_some() || name.is_empty() || name.len() > limits::HOST_NAME_BYTES + 1 || !name.iter().all(allowed) {
            return None;
        }
        let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
        found = Some(name.strip_suffix('.').unwrap_or(&name).to_owned());
    }
    if value.is_empty() { found } else { None }
}

fn protocols(value: &mut Reader<'_>) -> Option<Vec<String>> {
    let mut list = value.long()?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let name = list.short()?.0;
        if let Ok(name) = std::str::from_utf8(name) {
            protocols.push(name.to_owned());
        }
    }
    value.is_empty().then_some(protocols)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use rand::{RngExt as _, SeedableRng, rngs::StdRng};

    use super::*;

    /// `openssl s_client` 3.0, names edition.cnn.com and offers h2.
    pub const OPENSSL: &[u8] = include_bytes!("testdata/openssl_s_client.bin");
    /// `openssl s_client -noservername -tls1_2`.
    const OPENSSL_NO_SNI: &[u8] = include_bytes!("testdata/openssl_no_sni_tls12.bin");
    /// curl 7.88 with OpenSSL 3.0, names www.example.com.
    const CURL: &[u8] = include_bytes!("testdata/curl.bin");

    /// A hello of rustls with X25519MLKEM768 (some 1.7 KiB, more than one segment) and, if asked, a GREASE ECH extension.
    pub fn post_quantum(name: &str, ech: bool) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = if ech {
            use rustls::crypto::aws_lc_rs::hpke::ALL_SUPPORTED_SUITES;
            let suite = ALL_SUPPORTED_SUITES[0];
            let (public, _) = suite.generate_key_pair().unwrap();
            builder
                .with_ech(rustls::client::EchMode::Grease(rustls::client::EchGreaseConfig::new(suite, public)))
                .unwrap()
        } else {
            builder.with_safe_default_protocol_versions().unwrap()
        };
        let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same hello cut into records of `size` bytes.
    pub fn in_records_of(hello: &[u8], size: usize) -> Vec<u8> {
        let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        let mut cut = Vec::new();
        for chunk in hello[5..5 + length].chunks(size) {
            cut.extend_from_slice(&hello[..3]);
            cut.extend_from_slice(&(chunk.len() as u16).to_be_bytes());
            cut.extend_from_slice(chunk);
        }
        cut
    }

    fn sni(bytes: &[u8]) -> Option<String> {
        match parse(bytes) {
            Parsed::Hello(hello) => hello.sni,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn recorded_hellos() {
        let Parsed::Hello(openssl) = parse(OPENSSL) else { panic!() };
        assert_eq!(openssl.sni.as_deref(), Some("edition.cnn.com"));
        assert_eq!(openssl.alpn, ["h2", "http/1.1"]);
        assert!(!openssl.ech);
        assert_eq!(sni(OPENSSL_NO_SNI), None);
        assert_eq!(sni(CURL).as_deref(), Some("www.example.com"));
    }

    #[test]
    fn post_quantum_and_ech() {
        let large = post_quantum("pq.example.org", false);
        assert!(large.len() > 1400, "no ML-KEM key share in it: {}", large.len());
        assert_eq!(sni(&large).as_deref(), Some("pq.example.org"));
        let Parsed::Hello(hello) = parse(&post_quantum("outer.example.org", true)) else { panic!() };
        assert_eq!(hello.sni.as_deref(), Some("outer.example.org"));
        assert!(hello.ech);
    }

    #[test]
    fn every_prefix_is_incomplete_whatever_the_records() {
        for hello in [OPENSSL.to_vec(), post_quantum("pq.example.org", true)] {
            for size in [1, 7, 64, 1000, RECORD_MOST] {
                let cut = in_records_of(&hello, size);
                for end in 0..cut.len() {
                    assert_eq!(parse(&cut[..end]), Parsed::Incomplete, "{end} bytes in records of {size}");
                }
                assert_eq!(parse(&cut), parse(&hello));
            }
        }
    }

    #[test]
    fn what_follows_the_hello_does_not_matter() {
        let mut bytes = OPENSSL.to_vec();
        bytes.extend_from_slice(b"\x17\x03\x03early data");
        assert_eq!(parse(&bytes), parse(OPENSSL));
    }

    /// A hello with the given extensions block.
    fn with_extensions(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend_from_slice(extensions);
        let mut message = vec![1, 0];
        message.extend_from_slice(&(body.len() as u16).to_be_bytes());
        message.extend_from_slice(&body);
        let mut record = vec![22, 3, 1];
        record.extend_from_slice(&(message.len() as u16).to_be_bytes());
        record.extend_from_slice(&message);
        record
    }

    fn named(names: &[&[u8]]) -> Vec<u8> {
        let mut list = Vec::new();
        for name in names {
            list.push(0);
            list.extend_from_slice(&(name.len() as u16).to_be_bytes());
            list.extend_from_slice(name);
        }
        let mut extension = vec![0, 0];
        extension.extend_from_slice(&(list.len() as u16 + 2).to_be_bytes());
        extension.extend_from_slice(&(list.len() as u16).to_be_bytes());
        extension.extend_from_slice(&list);
        extension
    }

    #[test]
    fn names_are_normalised_and_ambiguous_ones_refused() {
        assert_eq!(sni(&with_extensions(&named(&[b"EXAMPLE.org."]))).as_deref(), Some("example.org"));
        for bad in [&[b"a.example".as_slice(), b"b.example"][..], &[b""], &[b"a\0b"], &[b"caf\xc3\xa9"], &[]] {
            assert_eq!(parse(&with_extensions(&named(bad))), Parsed::NotTls, "{bad:?}");
        }
        let twice = [named(&[b"a.example"]), named(&[b"b.example"])].concat();
        assert_eq!(parse(&with_extensions(&twice)), Parsed::NotTls);
        // GREASE (RFC 8701) extensions are nothing to us.
        let grease = [vec![0x0a, 0x0a, 0, 1, 0], named(&[b"a.example"])].concat();
        assert_eq!(sni(&with_extensions(&grease)).as_deref(), Some("a.example"));
    }

    #[test]
    fn what_is_not_a_hello_is_known_at_once() {
        for bytes in
            [&b"\x15"[..], b"\x16\x02", b"\x16\x03\x09", b"\x16\x03\x01\0\0", b"\x16\x03\x01\0\x05\x02", b"GET / "]
        {
            assert_eq!(parse(bytes), Parsed::NotTls, "{bytes:?}");
        }
        // A server's hello, and a length beyond what is ever held.
        assert_eq!(parse(b"\x16\x03\x03\0\x40\x02\0\0\x3c"), Parsed::NotTls);
        assert_eq!(parse(b"\x16\x03\x03\0\x40\x01\xff\xff\xff"), Parsed::NotTls);
    }

    /// Seeded mutations of real hellos: no panic, and never a name that the bytes do not hold.
    #[test]
    fn mutated_hellos_do_no_harm() {
        let mut random = StdRng::seed_from_u64(0x0e61);
        let seeds = [OPENSSL.to_vec(), CURL.to_vec(), post_quantum("pq.example.org", true), in_records_of(OPENSSL, 50)];
        for round in 0..20_000 {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..bytes.len());
                match random.random_range(0..4) {
                    0 => bytes[at] = random.random(),
                    1 => bytes[at] ^= 1 << random.random_range(0..8),
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.random()),
                }
            }
            if let Parsed::Hello(ClientHello { sni: Some(name), .. }) = parse(&bytes) {
                assert!(!name.is_empty() && name.is_ascii() && name.len() <= bytes.len());
            }
        }
    }
}

//! The hosts of the outside: what every peer is configured for, and what nginx serves there.

/// Plain HTTP, without any TLS: for the floor "direct HTTP", and what a captured client dials.
pub const PLAIN: u16 = 80;
/// TLS, where the proxies originate it to.
pub const TLS: u16 = 443;

/// One host of the outside, on an address of its own.
#[derive(Clone, Debug)]
pub struct Host {
    /// The name that clients ask for, and that the server's certificate bears.
    pub name: String,
    pub address: &'static str,
    /// Name of its certificate in the stage's folder.
    pub certificate: &'static str,
    /// Hands out session tickets; without them every handshake is a full one.
    pub resumes: bool,
    /// Demands a client certificate.
    pub mutual: bool,
    /// Speaks HTTP/2, as gRPC wants it; the others speak HTTP/1.1.
    pub h2: bool,
}

/// RSA-2048, the host of most workloads.
pub const RSA: &str = "rsa.bench.test";
pub const P256: &str = "p256.bench.test";
pub const MUTUAL: &str = "mutual.bench.test";
pub const GRPC: &str = "grpc.bench.test";
pub const RSA_FULL: &str = "rsa-full.bench.test";
pub const P256_FULL: &str = "p256-full.bench.test";

/// The hosts that are always there.
#[must_use]
pub fn hosts() -> Vec<Host> {
    let host = |name: &str, address, certificate| Host {
        name: name.to_owned(),
        address,
        certificate,
        resumes: true,
        mutual: false,
        h2: false,
    };
    vec![
        host(RSA, "203.0.113.10", "rsa"),
        host(P256, "203.0.113.11", "p256"),
        Host { mutual: true, ..host(MUTUAL, "203.0.113.12", "p256") },
        Host { h2: true, ..host(GRPC, "203.0.113.13", "rsa") },
        Host { resumes: false, ..host(RSA_FULL, "203.0.113.14", "rsa") },
        Host { resumes: false, ..host(P256_FULL, "203.0.113.15", "p256") },
    ]
}

/// Those, and `more` others that are configured but lie on one server: `h00001.bench.test` and so on.
#[must_use]
pub fn with_more(more: usize) -> Vec<Host> {
    let mut all = hosts();
    let first = all[0].clone();
    all.extend((1..=more).map(|number| Host { name: format!("h{number:05}.bench.test"), ..first.clone() }));
    all
}

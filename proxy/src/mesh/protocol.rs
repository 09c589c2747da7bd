//! What a port speaks, from what its author declared.

use super::table::Protocol;

/// Ports whose protocols let the server speak first, so that waiting for the client's first byte would hang: SMTP,
/// DNS, MySQL, MongoDB (Istio's list).
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// A name that Istio knows (any case). None: unknown, or UDP.
pub fn named(name: &str) -> Option<Protocol> {
    Some(match name.to_ascii_lowercase().as_str() {
        "http" | "http_proxy" | "grpc-web" | "kubernetes.io/ws" => Protocol::Http,
        "http2" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" | "kubernetes.io/wss" => Protocol::Https,
        "tls" => Protocol::Tls,
        "tcp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
        _ => return None,
    })
}

/// The port of a Kubernetes Service: `appProtocol`, then the name's part before `-`; its `protocol` is only the transport.
pub fn of_service(app_protocol: Option<&str>, name: &str, number: u16) -> Protocol {
    app_protocol.and_then(named).or_else(|| prefix(name)).unwrap_or_else(|| open(number))
}

/// The port of a ServiceEntry: what it declares decides. The name counts only where nothing is declared: a port named
/// `https-port-for-tls-origination` with protocol HTTP is HTTP, as in Istio.
pub fn of_entry(declared: &str, name: &str, number: u16) -> Protocol {
    if declared.is_empty() {
        return prefix(name).unwrap_or_else(|| open(number));
    }
    named(declared).unwrap_or_else(|| open(number))
}

fn prefix(name: &str) -> Option<Protocol> {
    // `grpc-web` is a prefix with a dash of its own.
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        return Some(Protocol::Http);
    }
    named(name.split('-').next().unwrap_or(name))
}

fn open(number: u16) -> Protocol {
    if SERVER_FIRST.contains(&number) { Protocol::Tcp } else { Protocol::Auto }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(of_service(Some("http"), "tcp-x", 80), Protocol::Http);
        assert_eq!(of_service(None, "tcp-x", 80), Protocol::Tcp);
        assert_eq!(of_service(None, "web", 80), Protocol::Auto);
        assert_eq!(of_service(None, "web", 3306), Protocol::Tcp);
        assert_eq!(of_service(None, "grpc-web", 80), Protocol::Http);
        assert_eq!(of_entry("HTTP", "https-port-for-tls-origination", 443), Protocol::Http);
        assert_eq!(of_entry("", "https-x", 443), Protocol::Https);
        assert_eq!(of_entry("nonsense", "https-x", 8080), Protocol::Auto);
        assert_eq!(of_entry("TCP", "", 80), Protocol::Tcp);
    }
}

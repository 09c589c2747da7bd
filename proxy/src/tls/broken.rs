//! The alert for a client whose first bytes are TLS and no hello.

use rustls::{AlertDescription, server::Acceptor};

/// Alert record and reason (RFC 8446 section 6); None where the bytes are no TLS record at all, so that nobody would read one.
#[must_use]
pub fn alert(first: &[u8]) -> Option<(Vec<u8>, String)> {
    // change_cipher_spec to heartbeat (RFC 8446 section 5.1, RFC 6520), of any version 3.
    if !matches!(first, [20..=24, 3, ..]) {
        return None;
    }
    let mut acceptor = Acceptor::default();
    let mut rest = first;
    while !rest.is_empty() {
        let taken = acceptor.read_tls(&mut rest);
        match acceptor.accept() {
            Err((error, mut alert)) => {
                let mut record = Vec::new();
                if alert.write_all(&mut record).is_ok() && !record.is_empty() {
                    return Some((record, error.to_string()));
                }
                break;
            }
            // It is stricter here than there: what is not read here is not served.
            Ok(Some(_)) => break,
            Ok(None) if taken.unwrap_or_default() == 0 => break,
            Ok(None) => {}
        }
    }
    let code = u8::from(AlertDescription::DecodeError);
    Some((vec![21, 3, 3, 0, 2, 2, code], "the ClientHello is broken or cut off".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Level, description.
    fn told(first: &[u8]) -> Option<(u8, u8)> {
        let (record, why) = alert(first)?;
        assert!(!why.is_empty());
        assert_eq!(record[..5], [21, 3, record[2], 0, 2]);
        Some((record[5], record[6]))
    }

    #[test]
    fn what_is_tls_gets_an_alert() {
        assert_eq!(told(b"\x16\x03\x01\0\x40\x01\0\0\x3c\x03\x03"), Some((2, 50)), "cut off");
        assert_eq!(told(b"\x17\x03\x03\0\x05hello"), Some((2, 50)), "application data");
        assert_eq!(told(b"\x16\x03\x01\0\x04\x01\0\0\0"), Some((2, 50)), "an empty hello");
    }

    #[test]
    fn what_is_none_gets_nothing() {
        for first in [b"GET / HTTP/1.1".as_slice(), b"", b"\x16", b"\x80\x2e\x01", b"\x16\x09\x09\0\0"] {
            assert_eq!(alert(first), None, "{first:?}");
        }
    }
}

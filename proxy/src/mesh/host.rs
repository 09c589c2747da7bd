//! Matching of host names: exact, else the longest suffix wildcard, else `*`. Whatever a client may write (upper
//! case, a trailing dot, a port) means the same name.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr},
};

use smol_str::SmolStr;

use ipnet::IpNet;

use super::table::{AddressMap, HostMap};
use crate::limits::HOST_NAME_BYTES;

impl<T: Clone> HostMap<T> {
    /// Adds `value` under `pattern` (`name`, `*.suffix` or `*`); what was there is replaced and returned.
    pub fn insert(&mut self, pattern: &str, value: T) -> Option<T> {
        let pattern = canonical(pattern);
        if pattern == "*" {
            return self.any.replace(value);
        }
        match pattern.strip_prefix('*') {
            Some(suffix) => self.suffix.insert(suffix, value),
            None => self.exact.insert(&*pattern, value),
        }
    }

    /// The value under exactly this pattern, to change it.
    pub fn pattern_mut(&mut self, pattern: &str) -> Option<&mut T> {
        let pattern = canonical(pattern);
        if pattern == "*" {
            return self.any.as_mut();
        }
        match pattern.strip_prefix('*') {
            Some(suffix) => self.suffix.get_mut(suffix),
            None => self.exact.get_mut(&pattern),
        }
    }

    /// Adds `value` where `pattern` has none yet; false where it had.
    pub fn insert_new(&mut self, pattern: &str, value: T) -> bool {
        let free = self.pattern(pattern).is_none();
        if free {
            self.insert(pattern, value);
        }
        free
    }
}

impl<T> HostMap<T> {
    /// The value under exactly this pattern, without matching.
    #[must_use]
    pub fn pattern(&self, pattern: &str) -> Option<&T> {
        let pattern = canonical(pattern);
        if pattern == "*" {
            return self.any.as_ref();
        }
        match pattern.strip_prefix('*') {
            Some(suffix) => self.suffix.get(suffix),
            None => self.exact.get(&pattern),
        }
    }

    /// The value of the most specific pattern that `name` (a host without its port) matches. Allocates nothing for a
    /// name that is lower-case already.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&T> {
        self.matches(name).next().map(|(_, value)| value)
    }

    /// Every value whose pattern `name` matches, the most specific first, with a measure of that: more is more.
    pub fn matches<'s, 'n>(&'s self, name: &'n str) -> impl Iterator<Item = (usize, &'s T)> + use<'s, 'n, T> {
        let name = canonical(name);
        let exact = self.exact.get(&name).map(|value| (usize::MAX, value));
        // A name too long for DNS is compared by its end only, so that a header full of dots costs no quadratic time.
        let mut from = match name.len().checked_sub(HOST_NAME_BYTES) {
            Some(cut) => (cut..name.len()).find(|at| name.is_char_boundary(*at)).unwrap_or(name.len()),
            None => 0,
        };
        // A leading dot would be an empty label: `*.foo.com` needs something before the dot.
        from = from.max(name.chars().next().map_or(0, char::len_utf8));
        let mut next = if self.suffix.is_empty() { None } else { Some(from) };
        let suffixes = std::iter::from_fn(move || {
            while let Some(start) = next {
                let dot = start + name.get(start..)?.find('.')?;
                next = Some(dot + 1);
                if let Some(value) = self.suffix.get(&name[dot..]) {
                    return Some((name.len() - dot, value));
                }
            }
            None
        });
        exact.into_iter().chain(suffixes).chain(self.any.as_ref().map(|value| (0, value)))
    }

    /// Every value, whatever its pattern.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.suffix.values()).chain(&self.any)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.exact.len() + self.suffix.len() + usize::from(self.any.is_some())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every pattern with its value, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'_, str>, &T)> {
        let exact = self.exact.iter().map(|(name, value)| (Cow::Borrowed(&**name), value));
        let suffix = self.suffix.iter().map(|(name, value)| (Cow::Owned(format!("*{name}")), value));
        exact.chain(suffix).chain(self.any.iter().map(|value| (Cow::Borrowed("*"), value)))
    }
}

impl<T> AddressMap<T> {
    /// Adds `value` for `network` where that has none yet; false where it had.
    pub fn insert_new(&mut self, network: IpNet, value: T) -> bool {
        let network = network.trunc();
        if network.prefix_len() == network.max_prefix_len() {
            return match self.single.entry(network.addr()) {
                std::collections::hash_map::Entry::Occupied(_) => false,
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(value);
                    true
                }
            };
        }
        let at = self.networks.partition_point(|(other, _)| other.prefix_len() >= network.prefix_len());
        if self.networks[..at].iter().any(|(other, _)| *other == network) {
            return false;
        }
        self.networks.insert(at, (network, value));
        true
    }

    /// The value of exactly this network, to change it.
    pub fn network_mut(&mut self, network: IpNet) -> Option<&mut T> {
        let network = network.trunc();
        if network.prefix_len() == network.max_prefix_len() {
            return self.single.get_mut(&network.addr());
        }
        self.networks.iter_mut().find(|(other, _)| *other == network).map(|(_, value)| value)
    }

    /// The value of the longest prefix that holds `address`. A v4-mapped address counts as its IPv4 address.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<&T> {
        self.matches(address).next().map(|(_, value)| value)
    }

    /// Every value whose prefix holds `address`, the longest first, with the length of its prefix.
    pub fn matches(&self, address: IpAddr) -> impl Iterator<Item = (u8, &T)> {
        let address = address.to_canonical();
        let single = self.single.get(&address).map(|value| (u8::MAX, value));
        let networks = self.networks.iter().filter(move |(network, _)| network.contains(&address));
        single.into_iter().chain(networks.map(|(network, value)| (network.prefix_len(), value)))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.single.is_empty() && self.networks.is_empty()
    }

    /// Every network with its value, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        let single = self.single.iter().map(|(address, value)| (IpNet::from(*address), value));
        single.chain(self.networks.iter().map(|(network, value)| (*network, value)))
    }
}

/// [`canonical`] of a text that is shared where nothing in it changes.
#[must_use]
pub fn shared_canonical(name: &SmolStr) -> SmolStr {
    match canonical(name) {
        Cow::Borrowed(same) if same.len() == name.len() => name.clone(),
        other => other.into(),
    }
}

/// A name as tables keep it: lower case, without a trailing dot, an IPv6 address in its shortest form.
#[must_use]
pub fn canonical(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    // All bytes are looked at whatever they are, so that the compiler makes this many at a time.
    let odd = name.bytes().fold(false, |odd, byte| odd | byte.is_ascii_uppercase() | (byte == b':'));
    if !odd {
        return Cow::Borrowed(name);
    }
    if name.contains(':')
        && let Ok(address) = name.parse::<Ipv6Addr>()
    {
        return Cow::Owned(address.to_string());
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// The host of an authority (`host`, `host:port`, `[v6]`, `[v6]:port`, a bare IPv6 address), without port and brackets.
#[must_use]
pub fn authority_host(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        // No colon, or several without brackets: an IPv6 address as some clients write it.
        _ => authority,
    }
}

/// Whether `name` (or the narrower pattern `name`) falls under `pattern`: `*.b` covers `a.b` and `*.a.b`, `*` all.
#[must_use]
pub fn covers(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (canonical(pattern), canonical(name));
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => {
            let inner = name.strip_prefix('*').unwrap_or(&name);
            (name.starts_with('*') && inner == suffix) || (inner.len() > suffix.len() && inner.ends_with(suffix))
        }
        None => pattern == name,
    }
}

/// Whether a rule's text may stand as Host or `:authority`: a name or address, and maybe a port.
#[must_use]
pub fn is_authority(text: &str) -> bool {
    let stray = |byte: u8| !byte.is_ascii_graphic() || b"@/\\?#,%".contains(&byte);
    !text.is_empty() && !text.bytes().any(stray) && text.parse::<http::uri::Authority>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(patterns: &[&str]) -> HostMap<String> {
        let mut map = HostMap::default();
        for pattern in patterns {
            map.insert(pattern, (*pattern).to_owned());
        }
        map
    }

    #[test]
    fn the_most_specific_pattern_wins() {
        let map = map(&["*", "*.com", "*.foo.com", "a.foo.com", "foo.com", "FE80::0:1"]);
        for (name, want) in [
            ("a.foo.com", "a.foo.com"),
            ("A.FOO.com", "a.foo.com"),
            ("a.foo.com.", "a.foo.com"),
            ("b.foo.com", "*.foo.com"),
            ("x.a.foo.com", "*.foo.com"),
            ("foo.com", "foo.com"),
            ("bar.com", "*.com"),
            (".foo.com", "*.com"),
            ("com", "*"),
            ("", "*"),
            ("fe80::1", "FE80::0:1"),
        ] {
            assert_eq!(map.get(name).map(String::as_str), Some(want), "{name}");
        }
    }

    #[test]
    fn a_wildcard_does_not_match_its_own_suffix() {
        let map = map(&["*.foo.com"]);
        assert_eq!(map.get("foo.com"), None);
        assert_eq!(map.get(".foo.com"), None);
        assert_eq!(map.get("xfoo.com"), None);
        assert!(map.get("é.foo.com").is_some());
    }

    #[test]
    fn an_endless_name_still_meets_its_wildcard_and_costs_little() {
        let map = map(&["*.foo.com"]);
        let long = "a.".repeat(30_000) + "b.foo.com";
        let started = std::time::Instant::now();
        for _ in 0..100 {
            assert!(map.get(&long).is_some());
            assert!(map.get(&"é.".repeat(30_000)).is_none());
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn authorities() {
        for (authority, host) in [
            ("foo.com", "foo.com"),
            ("foo.com:80", "foo.com"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("[::1", "::1"),
            ("1.2.3.4:5", "1.2.3.4"),
            ("", ""),
            (":80", ""),
        ] {
            assert_eq!(authority_host(authority), host, "{authority}");
        }
    }

    #[test]
    fn cover() {
        for (pattern, name, want) in [
            ("*", "*.foo.com", true),
            ("*.foo.com", "*.foo.com", true),
            ("*.foo.com", "*.a.foo.com", true),
            ("*.foo.com", "foo.com", false),
            ("*.a.foo.com", "*.foo.com", false),
            ("foo.com", "FOO.com.", true),
            ("foo.com", "*.foo.com", false),
        ] {
            assert_eq!(covers(pattern, name), want, "{pattern} {name}");
        }
    }
}

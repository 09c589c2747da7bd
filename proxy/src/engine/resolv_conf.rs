//! resolv.conf(5) and hosts(5), read as the C library reads them: what cannot be understood is passed over.

use std::{collections::HashMap, net::IpAddr, time::Duration};

/// What a resolv.conf says, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    pub name_servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub ndots: usize,
    /// For one question to one server.
    pub timeout: Duration,
    pub attempts: usize,
    /// `use-vc`: TCP only.
    pub tcp: bool,
}

impl ResolvConf {
    pub fn parse(text: &str) -> Self {
        let mut conf = Self {
            name_servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            tcp: false,
        };
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                // The C library takes three (MAXNS). A zone (`fe80::1%eth0`) has no place in an IpAddr: passed over.
                Some("nameserver") if conf.name_servers.len() < 3 => {
                    conf.name_servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last of several counts.
                Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|word| conf.option(word)),
                _ => {}
            }
        }
        if conf.name_servers.is_empty() {
            conf.name_servers.push(IpAddr::from([127, 0, 0, 1]));
        }
        conf
    }

    fn option(&mut self, word: &str) {
        let (name, value) = word.split_once(':').unwrap_or((word, ""));
        let number = value.parse::<usize>().ok();
        match (name, number) {
            ("ndots", Some(number)) => self.ndots = number.min(15),
            ("timeout", Some(number)) => self.timeout = Duration::from_secs(number.clamp(1, 30) as u64),
            ("attempts", Some(number)) => self.attempts = number.clamp(1, 5),
            ("use-vc", _) => self.tcp = true,
            _ => {}
        }
    }
}

/// Names (lower case) and their addresses, in the file's order.
pub fn parse_hosts(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else { continue };
        for name in words {
            let addresses = hosts.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubernetes_resolv_conf() {
        let conf = ResolvConf::parse(
            "# made by kubelet\nnameserver 10.96.0.10\nsearch a.svc.cluster.local svc.cluster.local\n\
             search ns.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:2 attempts:99 edns0\n",
        );
        assert_eq!(conf.name_servers, [IpAddr::from([10, 96, 0, 10])]);
        assert_eq!(conf.search, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!((conf.ndots, conf.timeout, conf.attempts, conf.tcp), (5, Duration::from_secs(2), 5, false));
    }

    #[test]
    fn nonsense_is_passed_over() {
        let conf = ResolvConf::parse("nameserver\nnameserver x\noptions ndots:x :::\n\0\nnameserver ::1 ; mine\n");
        assert_eq!(conf.name_servers, ["::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(ResolvConf::parse("").name_servers, [IpAddr::from([127, 0, 0, 1])]);
        let many = "nameserver 1.1.1.1\n".repeat(9);
        assert_eq!(ResolvConf::parse(&many).name_servers.len(), 3);
    }

    #[test]
    fn hosts_of_both_families() {
        let hosts = parse_hosts("127.0.0.1 localhost\n::1 localhost # both\n192.0.2.7\tA.example a\nbad line\n");
        assert_eq!(hosts["localhost"].len(), 2);
        assert_eq!(hosts["a.example"], [IpAddr::from([192, 0, 2, 7])]);
        assert!(!hosts.contains_key("line"));
    }
}

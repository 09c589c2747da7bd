//! What holds for all policies, tried with random ones.

use rand::{RngExt as _, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;

/// Nothing panics, another DENY never allows what was denied, and another ALLOW beside one
/// never denies what was allowed.
#[test]
fn more_denies_never_allow_more() {
    let mut random = StdRng::seed_from_u64(11);
    let parts: &[&[&str]] = &[
        &[
            "from: [{source: {principals: ['*/sa/sleep']}}]",
            "from: [{source: {notPrincipals: ['*']}}, {source: {ipBlocks: [10.1.0.0/16]}}]",
            "from: [{source: {namespaces: ['d*']}}]",
            "from: [{source: {notRequestPrincipals: ['*']}}]",
        ],
        &[
            "to: [{operation: {paths: ['/a*', '/b/{*}'], methods: [GET]}}]",
            "to: [{operation: {notPaths: ['/a*']}}, {operation: {ports: ['8080']}}]",
            "to: [{operation: {notHosts: ['*.com']}}]",
        ],
        &[
            "when: [{key: 'request.headers[x]', notValues: [a]}]",
            "when: [{key: destination.ip, values: [10.0.0.0/8]}]",
            "when: [{key: connection.sni, values: ['*']}, {key: 'experimental.envoy.filters.x[y]', values: [z]}]",
        ],
    ];
    let mut both = [0; 2];
    for _ in 0..60 {
        let spec = |random: &mut StdRng, action: &str| {
            let rules: Vec<String> = (0..random.random_range(1..3))
                .map(|_| {
                    let chosen = parts.iter().filter(|_| random.random_bool(0.5)).copied().collect::<Vec<_>>();
                    let chosen: Vec<&str> = chosen.iter().filter_map(|list| list.choose(random).copied()).collect();
                    format!("{{{}}}", chosen.join(", "))
                })
                .collect();
            format!("{{action: {action}, rules: [{}]}}", rules.join(", "))
        };
        let allow = spec(&mut random, "ALLOW");
        let (deny, other) = (spec(&mut random, "DENY"), spec(&mut random, "ALLOW"));
        let one = policies(&[("a", &allow)]);
        let denied = policies(&[("a", &allow), ("d", &deny)]);
        let wider = policies(&[("a", &allow), ("b", &other)]);
        for _ in 0..100 {
            let mut pick = |list: &[&'static str]| list.choose(&mut random).copied().unwrap_or_default();
            let asked = Asked {
                principal: Some(pick(&["spiffe://cluster.local/ns/default/sa/sleep", "spiffe://x/ns/y", "", "//"]))
                    .filter(|id| !id.is_empty()),
                source: pick(&["10.1.0.1", "192.0.2.1", "::1"]),
                destination: pick(&["10.0.0.1:8080", "0.0.0.0:80", "[::1]:1"]),
                sni: Some(pick(&["", "a.com"])).filter(|sni| !sni.is_empty()),
                method: Some(pick(&["GET", "POST", ""])).filter(|method| !method.is_empty()),
                authority: pick(&["a.com", "a.com:80", "[::1]:80", "", ":", "a."]),
                path: pick(&["/a", "/b/c", "/b/../a", "*", "", "/%00", "/%61", "//", "/ä"]),
                headers: vec![("x", pick(&["a", "b", ""]))],
            };
            let allowed = |policies: &Policies| asked.of(policies) == "yes";
            both[usize::from(allowed(&one))] += 1;
            assert!(!allowed(&denied) || allowed(&one), "{allow} {deny}");
            assert!(allowed(&wider) || !allowed(&one), "{allow} {other}");
        }
    }
    assert!(both.iter().all(|count| *count > 200), "{both:?}");
}

//! `trafficPolicy` of a DestinationRule but for its TLS: balancing, pools, outliers.

use std::time::Duration;

use super::super::decode::{Field, Fields};
use crate::{
    api::istio::{
        ConnectionPool, ConsistentHash, HashKey, HashRing, Keepalive, LoadBalancer, LoadBalancing, LocalitySetting,
        OutlierDetection, Warmup,
    },
    limits,
};

const BALANCERS: &[(&str, LoadBalancer)] = &[
    ("UNSPECIFIED", LoadBalancer::LeastRequest),
    ("LEAST_REQUEST", LoadBalancer::LeastRequest),
    // Istio kept the old name and serves least-request for it.
    ("LEAST_CONN", LoadBalancer::LeastRequest),
    ("ROUND_ROBIN", LoadBalancer::RoundRobin),
    ("RANDOM", LoadBalancer::Random),
    ("PASSTHROUGH", LoadBalancer::Passthrough),
];

pub fn load_balancer(field: &Field<'_>) -> Option<LoadBalancing> {
    let read = &["simple", "consistentHash", "localityLbSetting", "warmupDurationSecs", "warmup"];
    let fields = field.fields(read, &[], &[])?;
    if fields.get("simple").is_some() && fields.get("consistentHash").is_some() {
        field.error("`simple` and `consistentHash` exclude each other");
    }
    let old = fields.get("warmupDurationSecs").and_then(|f| f.duration());
    let old = old.map(|duration| Warmup { duration, minimum_percent: 10, aggression_thousandths: 1000 });
    let simple = fields.get("simple").and_then(|f| f.choice(BALANCERS)).unwrap_or_default();
    let warmup = fields.get("warmup").and_then(|f| warmup(&f)).or(old);
    if warmup.is_some() && !matches!(simple, LoadBalancer::LeastRequest | LoadBalancer::RoundRobin) {
        field.error("warm-up goes with ROUND_ROBIN and LEAST_REQUEST only");
    }
    Some(LoadBalancing {
        simple,
        consistent_hash: fields.get("consistentHash").and_then(|f| consistent_hash(&f)),
        locality: fields.get("localityLbSetting").and_then(|f| locality(&f)),
        warmup,
    })
}

fn consistent_hash(field: &Field<'_>) -> Option<ConsistentHash> {
    let keys = ["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];
    let read = [&keys[..], &["ringHash", "maglev", "minimumRingSize"]].concat();
    let fields = field.fields(&read, &[], &[])?;
    let given: Vec<_> = keys.into_iter().filter(|name| fields.get(name).is_some()).collect();
    if given.len() != 1 {
        field.error(format!("wants exactly one of {}", keys.join(", ")));
        return None;
    }
    let key = match given[0] {
        "httpHeaderName" => {
            let field = fields.get("httpHeaderName")?;
            let name = field.string()?.to_ascii_lowercase();
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                field.error(format!("\"{}\" is not the name of a header", name.escape_debug()));
            }
            HashKey::Header(name)
        }
        "httpCookie" => {
            let cookie = fields.get("httpCookie")?.fields(&["name", "path", "ttl"], &[], &["attributes"])?;
            HashKey::Cookie {
                name: cookie.require("name")?.string()?,
                path: cookie.string("path"),
                ttl: cookie.get("ttl").and_then(|f| f.duration_or_zero()),
            }
        }
        "useSourceIp" => {
            let field = fields.get("useSourceIp")?;
            if !field.boolean()? {
                field.error("false hashes nothing: leave `consistentHash` out");
            }
            HashKey::SourceIp
        }
        _ => HashKey::Query(fields.get("httpQueryParameterName")?.string()?),
    };
    let size = |field: &Field<'_>| field.number(0, limits::HASH_TABLE_MOST).map(u64::from).filter(|size| *size > 0);
    let old = fields.get("minimumRingSize").and_then(|f| size(&f));
    let ring = fields.get("ringHash").and_then(|f| f.fields(&["minimumRingSize"], &[], &[]));
    let maglev = fields.get("maglev").and_then(|f| f.fields(&["tableSize"], &[], &[]));
    if ring.is_some() && maglev.is_some() {
        field.error("`ringHash` and `maglev` exclude each other");
    }
    let ring = match maglev {
        Some(maglev) => HashRing::Maglev { table: maglev.get("tableSize").and_then(|f| size(&f)).unwrap_or(65_537) },
        None => {
            let given = ring.and_then(|ring| ring.get("minimumRingSize").and_then(|f| size(&f)));
            HashRing::Ring { minimum: given.or(old).unwrap_or(1024) }
        }
    };
    Some(ConsistentHash { key, ring })
}

/// Reads a LocalityLoadBalancerSetting.
pub fn locality(field: &Field<'_>) -> Option<LocalitySetting> {
    let fields = field.fields(&["enabled", "distribute", "failover", "failoverPriority"], &[], &[])?;
    let mut distribute = Vec::new();
    for field in fields.items("distribute") {
        let Some(given) = field.fields(&["from", "to"], &[], &[]) else { continue };
        let Some(from) = given.require("from").and_then(|f| f.string()) else { continue };
        let to: Vec<_> = given
            .get("to")
            .map(|f| f.entries())
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, weight)| Some((name.to_owned(), weight.number(0, 100)?)))
            .collect();
        let total: u32 = to.iter().map(|(_, weight)| weight).sum();
        if total != 100 {
            given.field.error(format!("the weights of `to` are {total} together: they must be 100"));
        }
        distribute.push((from, to));
    }
    let failover: Vec<_> = fields
        .items("failover")
        .iter()
        .filter_map(|field| {
            let given = field.fields(&["from", "to"], &[], &[])?;
            let pair = (given.require("from")?.string()?, given.require("to")?.string()?);
            if pair.0 == pair.1 {
                field.error("leads to the same region");
            }
            Some(pair)
        })
        .collect();
    let failover_priority = fields.strings("failoverPriority");
    let fails_over = !failover.is_empty() || !failover_priority.is_empty();
    if fails_over && !distribute.is_empty() {
        field.error("`distribute` goes without `failover` and `failoverPriority`");
    }
    Some(LocalitySetting {
        enabled: fields.get("enabled").and_then(|f| f.boolean()),
        distribute,
        failover,
        failover_priority,
    })
}

fn warmup(field: &Field<'_>) -> Option<Warmup> {
    let fields = field.fields(&["duration", "minimumPercent", "aggression"], &[], &[])?;
    let aggression = fields.get("aggression").map_or(Some(1.0), |f| f.decimal(1.0, 1000.0))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 1000")]
    Some(Warmup {
        duration: fields.require("duration")?.duration()?,
        minimum_percent: fields.get("minimumPercent").map_or(Some(10), |f| f.decimal(0.0, 100.0).map(|n| n as u32))?,
        aggression_thousandths: (aggression * 1000.0).round() as u32,
    })
}

pub fn connection_pool(field: &Field<'_>) -> Option<ConnectionPool> {
    let fields = field.fields(&["tcp", "http"], &[], &[])?;
    let mut pool = ConnectionPool::default();
    if let Some(tcp) = fields.get("tcp").and_then(|f| {
        let read = &["maxConnections", "connectTimeout", "maxConnectionDuration", "idleTimeout", "tcpKeepalive"];
        f.fields(read, &[], &[])
    }) {
        pool.tcp_max_connections = limit(&tcp, "maxConnections");
        pool.tcp_connect_timeout = tcp.get("connectTimeout").and_then(|f| f.duration());
        pool.tcp_max_connection_duration = tcp.get("maxConnectionDuration").and_then(|f| f.duration());
        pool.tcp_idle_timeout = idle(&tcp);
        pool.tcp_keepalive = tcp.get("tcpKeepalive").and_then(|f| keepalive(&f));
    }
    if let Some(http) = fields.get("http").and_then(|f| {
        let read = &[
            "http1MaxPendingRequests",
            "http2MaxRequests",
            "maxRequestsPerConnection",
            "maxRetries",
            "idleTimeout",
            "h2UpgradePolicy",
            "useClientProtocol",
            "maxConcurrentStreams",
        ];
        f.fields(read, &[], &[])
    }) {
        pool.http1_max_pending_requests = limit(&http, "http1MaxPendingRequests");
        pool.http2_max_requests = limit(&http, "http2MaxRequests");
        pool.http_max_requests_per_connection = limit(&http, "maxRequestsPerConnection");
        pool.http_max_retries = limit(&http, "maxRetries");
        pool.http_idle_timeout = idle(&http);
        let policies = &[("DEFAULT", None), ("UPGRADE", Some(true)), ("DO_NOT_UPGRADE", Some(false))];
        pool.http_h2_upgrade = http.get("h2UpgradePolicy").and_then(|f| f.choice(policies)).flatten();
        pool.http_use_client_protocol = http.get("useClientProtocol").and_then(|f| f.boolean()).unwrap_or_default();
        pool.http_max_concurrent_streams = limit(&http, "maxConcurrentStreams");
        if let (Some(field), Some(true), true) =
            (http.get("useClientProtocol"), pool.http_h2_upgrade, pool.http_use_client_protocol)
        {
            field.error("`useClientProtocol` and `h2UpgradePolicy: UPGRADE` exclude each other");
        }
    }
    Some(pool)
}

fn keepalive(field: &Field<'_>) -> Option<Keepalive> {
    let fields = field.fields(&["probes", "time", "interval"], &[], &[])?;
    Some(Keepalive {
        probes: limit(&fields, "probes"),
        time: fields.get("time").and_then(|f| f.duration()),
        interval: fields.get("interval").and_then(|f| f.duration()),
    })
}

/// An int32 for which 0 means the default, as everywhere in protobuf.
fn limit(fields: &Fields<'_>, name: &str) -> Option<u32> {
    fields.get(name)?.number(0, i32::MAX.unsigned_abs()).filter(|n| *n != 0)
}

/// `idleTimeout`: zero means never.
fn idle(fields: &Fields<'_>) -> Option<Duration> {
    let timeout = fields.get("idleTimeout")?.duration_or_zero()?;
    Some(if timeout.is_zero() { limits::NEVER } else { timeout })
}

/// Reads an OutlierDetection; what is absent gets Istio's and Envoy's defaults.
pub fn outlier_detection(field: &Field<'_>) -> Option<OutlierDetection> {
    let read = &[
        "consecutiveErrors",
        "splitExternalLocalOriginErrors",
        "consecutiveLocalOriginFailures",
        "consecutiveGatewayErrors",
        "consecutive5xxErrors",
        "interval",
        "baseEjectionTime",
        "maxEjectionPercent",
        "minHealthPercent",
    ];
    let fields = field.fields(read, &[], &[])?;
    // These are wrapped numbers: zero is a value of its own and switches the check off.
    let count = |name: &str| fields.get(name).and_then(|f| f.number(0, u32::MAX));
    let some = |count: u32| (count > 0).then_some(count);
    if let Some(field) = fields.get("consecutiveErrors") {
        field.warn("is the old name of `consecutive5xxErrors`, which is honoured; Istio has taken it out");
    }
    let percent = |name: &str| fields.get(name).and_then(|f| f.number(0, 100));
    let split = fields.get("splitExternalLocalOriginErrors").and_then(|f| f.boolean()).unwrap_or_default();
    Some(OutlierDetection {
        consecutive_5xx: some(count("consecutive5xxErrors").or_else(|| count("consecutiveErrors")).unwrap_or(5)),
        consecutive_gateway: count("consecutiveGatewayErrors").and_then(some),
        consecutive_local_origin: if split { some(count("consecutiveLocalOriginFailures").unwrap_or(5)) } else { None },
        interval: fields.get("interval").and_then(|f| f.duration()).unwrap_or(Duration::from_secs(10)),
        base_ejection_time: fields
            .get("baseEjectionTime")
            .and_then(|f| f.duration())
            .unwrap_or(Duration::from_secs(30)),
        max_ejection_percent: percent("maxEjectionPercent").filter(|n| *n > 0).unwrap_or(10),
        min_health_percent: percent("minHealthPercent").unwrap_or_default(),
    })
}

//! Clusters, each made once however many workloads use it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{
    authorization::Authorization,
    findings::Findings,
    gateways, guard,
    origination::{Defaults, Holder, NO_LABELS, Upstream},
    registry::{Entry, EntryPort},
    routing::VirtualHost,
    rules::{Chosen, Merged, Policy, Rules, Tls, every_tls},
    table::{
        Cluster, Discovery, Endpoint, Guard, LoadBalancer, LocalitySetting, NamespaceGuards, OutlierDetection, Pool,
        TlsContextSettings, TlsSettings, UpstreamTls,
    },
    virtual_services::Spoken,
    volumes::Volumes,
};
use crate::{
    api::{
        Objects,
        istio::{ConnectionPool, DestinationRule, LoadBalancing, MeshConfig, TlsMode},
    },
    limits,
};

/// What all tables are made from, and what they share.
pub struct Workshop<'a> {
    pub objects: &'a Objects,
    pub rules: &'a Rules,
    pub defaults: Defaults,
    /// Mesh configuration `connectTimeout`.
    pub connect_timeout: Duration,
    /// Where no rule speaks of TLS, callers look for mesh mTLS themselves. False too where there is nobody to find.
    pub auto_mtls: bool,
    authorization: &'a Authorization<'a>,
    /// Mesh configuration `localityLbSetting`, which is on by default.
    locality: LocalitySetting,
    pub findings: &'a mut Findings,
    merged: HashMap<Chosen, MergedRule>,
    made: HashMap<Key, Made>,
    /// Endpoints of clusters that go by the address dialled, as far as objects list them.
    listed: HashMap<*const Cluster, Vec<Endpoint>>,
    at_gateways: HashMap<*const Cluster, Arc<Cluster>>,
    pools: HashSet<Arc<Pool>>,
    settings: HashSet<Arc<TlsSettings>>,
    tls_contexts: HashSet<Arc<TlsContextSettings>>,
    /// Of gateways' servers.
    pub server_settings: gateways::Shared,
    /// What the guards of other namespaces were found to be last: most namespaces see the same.
    others: Arc<Vec<NamespaceGuards>>,
    /// Routes, which namespaces share where they lead to the same clusters.
    pub spoken: Spoken,
}

/// A merged rule, and what tells it from others.
#[derive(Clone, Debug)]
pub struct MergedRule {
    pub id: usize,
    pub rule: Arc<Merged>,
    /// What it forbids.
    pub guard: Guard,
    /// It takes credentials of the workload's namespace or pod.
    pub personal: bool,
}

/// Workloads with the same credentials: namespace and how its volumes answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HolderId {
    pub namespace: usize,
    pub places: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct HolderOf<'a> {
    pub id: HolderId,
    pub namespace: &'a str,
    pub volumes: &'a Volumes,
}

/// A cluster, and the virtual host that leads to it where nothing else is said.
#[derive(Clone, Debug)]
pub struct Made {
    pub cluster: Arc<Cluster>,
    pub host: Arc<VirtualHost>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    entry: usize,
    port: usize,
    rule: Option<usize>,
    subset: Option<usize>,
    holder: Option<HolderId>,
}

impl<'a> Workshop<'a> {
    pub fn new(
        objects: &'a Objects,
        rules: &'a Rules,
        config: Option<&MeshConfig>,
        auto_mtls: bool,
        authorization: &'a Authorization<'a>,
        findings: &'a mut Findings,
    ) -> Self {
        Self {
            objects,
            rules,
            defaults: Defaults::new(config),
            connect_timeout: config.and_then(|config| config.connect_timeout).unwrap_or(limits::CONNECT_TIMEOUT),
            auto_mtls,
            authorization,
            locality: config.and_then(|config| config.locality.clone()).unwrap_or_default(),
            findings,
            merged: HashMap::new(),
            made: HashMap::new(),
            listed: HashMap::new(),
            at_gateways: HashMap::new(),
            pools: HashSet::new(),
            settings: HashSet::new(),
            tls_contexts: HashSet::new(),
            server_settings: HashSet::new(),
            others: Arc::default(),
            spoken: Spoken::default(),
        }
    }

    pub fn merged(&mut self, chosen: &Chosen) -> Option<MergedRule> {
        if let Some(known) = self.merged.get(chosen) {
            return Some(known.clone());
        }
        let rule = self.rules.merge(chosen, self.findings)?;
        let specs = chosen.iter().map(|index| &self.rules.all[*index].object.spec);
        let personal = specs.into_iter().any(takes_credentials);
        let guard = guard::guard(&rule);
        let made = MergedRule { id: self.merged.len(), rule: Arc::new(rule), guard, personal };
        self.merged.insert(chosen.clone(), made.clone());
        Some(made)
    }

    pub fn shared_guards(&mut self, others: Vec<NamespaceGuards>) -> Arc<Vec<NamespaceGuards>> {
        if *self.others != others {
            self.others = Arc::new(others);
        }
        self.others.clone()
    }

    /// The cluster of one port (by index) of an entry (with its index), or of one of its subsets.
    pub fn made(
        &mut self,
        (at, entry): (usize, &Entry),
        port: usize,
        rule: Option<&MergedRule>,
        subset: Option<usize>,
        holder: HolderOf<'_>,
    ) -> Made {
        let own = rule.filter(|rule| rule.personal).map(|_| holder.id);
        let key = Key { entry: at, port, rule: rule.map(|rule| rule.id), subset, holder: own };
        if let Some(known) = self.made.get(&key) {
            return known.clone();
        }
        let port = &entry.body.ports[port];
        let cluster = Arc::new(self.cluster(entry, port, rule.map(|rule| &*rule.rule), subset, holder));
        if matches!(cluster.discovery, Discovery::OriginalDestination { .. }) {
            let subset = subset.and_then(|at| rule?.rule.subsets().nth(at));
            let listed = entry.listed(port, subset.map_or(&NO_LABELS, |subset| &subset.labels));
            self.listed.insert(Arc::as_ptr(&cluster), listed);
        }
        let host = VirtualHost::of_cluster(format!("{}:{}", entry.host, port.number), cluster.clone());
        let made = Made { cluster, host: Arc::new(host) };
        self.made.insert(key, made.clone());
        made
    }

    /// A cluster as gateways use it, who have no address dialled to go by: theirs is the listener's own. Endpoints are those
    /// that objects list (Istio `convertResolution`); of a ServiceEntry with resolution NONE there are none.
    pub fn at_gateway(&mut self, cluster: &Arc<Cluster>) -> Arc<Cluster> {
        let by_address = matches!(cluster.discovery, Discovery::OriginalDestination { .. });
        if !by_address && cluster.load_balancer != LoadBalancer::Passthrough {
            return cluster.clone();
        }
        let listed = &self.listed;
        let made = self.at_gateways.entry(Arc::as_ptr(cluster)).or_insert_with(|| {
            let mut own = (**cluster).clone();
            if by_address {
                own.discovery = Discovery::Static(listed.get(&Arc::as_ptr(cluster)).cloned().unwrap_or_default());
            }
            if own.load_balancer == LoadBalancer::Passthrough {
                own.load_balancer = LoadBalancer::default();
            }
            Arc::new(own)
        });
        made.clone()
    }

    fn cluster(
        &mut self,
        entry: &Entry,
        port: &EntryPort,
        rule: Option<&Merged>,
        subset: Option<usize>,
        holder: HolderOf<'_>,
    ) -> Cluster {
        let policy = rule.map_or_else(Policy::default, |rule| rule.policy(port.number, subset));
        let subset = subset.and_then(|at| rule?.subsets().nth(at));
        let name = subset.map_or("", |subset| subset.name.as_str());
        let pool = self.pool(policy.pool);
        let locality = self.locality(policy.load_balancer, policy.outlier);
        let labels = subset.map_or(&NO_LABELS, |subset| &subset.labels);
        let discovery = match &locality {
            Some(setting) if !setting.failover_priority.is_empty() => entry.labelled_discovery(port, labels),
            _ => entry.discovery(port, labels),
        };
        let upstream = Upstream {
            protocol: port.protocol,
            h2_upgrade: pool.h2_upgrade,
            subject_alt_names: &entry.body.subject_alt_names,
            mesh_sni: &format!("outbound_.{}_.{name}_.{}", port.number, entry.host),
        };
        let tls = match &policy.tls {
            None if self.may_be_captured(entry, &discovery) => upstream.mesh(None),
            None => UpstreamTls::Plain,
            Some(tls) => self.originate(tls, upstream, holder),
        };
        Cluster {
            name: format!("outbound|{}|{name}|{}", port.number, entry.host),
            host: entry.host.clone(),
            port: port.number,
            subset: name.to_owned(),
            protocol: port.protocol,
            discovery,
            load_balancer: policy.load_balancer.map(|balancing| balancing.simple).unwrap_or_default(),
            hash: policy.load_balancer.and_then(|balancing| balancing.consistent_hash.clone()).map(Box::new),
            locality: locality.map(Box::new),
            warmup: policy.load_balancer.and_then(|balancing| balancing.warmup).map(Box::new),
            outlier: policy.outlier.copied().map(Box::new),
            pool,
            tls,
            mesh_external: entry.body.mesh_external,
            service: entry.object.clone(),
            destination_rule: rule.map(|rule| rule.object.id.clone()),
            policies: self.authorization.of_service(&entry.object),
        }
    }

    fn originate(&mut self, tls: &Tls<'_>, upstream: Upstream<'_>, holder: HolderOf<'_>) -> UpstreamTls {
        let holder = Holder {
            objects: self.objects,
            defaults: &self.defaults,
            namespace: holder.namespace,
            volumes: holder.volumes,
        };
        match holder.originate(tls, upstream, self.findings) {
            UpstreamTls::Originate(settings) => {
                let context = shared(&mut self.tls_contexts, settings.context.clone());
                let settings = TlsSettings { sni: settings.sni.clone(), context };
                UpstreamTls::Originate(shared(&mut self.settings, Arc::new(settings)))
            }
            other => other,
        }
    }

    /// Auto mTLS: some endpoint is a pod whose inbound is captured, or will turn out to be one when it is dialled.
    fn may_be_captured(&self, entry: &Entry, discovery: &Discovery) -> bool {
        self.auto_mtls
            && !entry.body.mesh_external
            && match discovery {
                Discovery::Static(list) => list.iter().any(|to| to.mtls_peer().is_some()),
                Discovery::OriginalDestination { .. } => true,
                Discovery::Dns { .. } | Discovery::Dynamic { .. } | Discovery::Application(_) => false,
            }
    }

    /// The rule's setting, else the mesh's. Weights by place (`distribute`) count as they are; failing over from place to
    /// place wants outlierDetection to tell when, as in Istio.
    fn locality(
        &self,
        balancing: Option<&LoadBalancing>,
        outlier: Option<&OutlierDetection>,
    ) -> Option<LocalitySetting> {
        let setting = balancing.and_then(|balancing| balancing.locality.as_ref()).unwrap_or(&self.locality);
        let counts = setting.enabled != Some(false) && (outlier.is_some() || !setting.distribute.is_empty());
        counts.then(|| setting.clone())
    }

    /// `connectionPool`, with the mesh's defaults where it says nothing.
    pub fn pool(&mut self, pool: Option<&ConnectionPool>) -> Arc<Pool> {
        let none = ConnectionPool::default();
        let pool = pool.unwrap_or(&none);
        let made = Pool {
            connect_timeout: pool.tcp_connect_timeout.unwrap_or(self.connect_timeout),
            max_connections: pool.tcp_max_connections,
            max_pending_requests: pool.http1_max_pending_requests,
            max_requests: pool.http2_max_requests,
            // 0 is unlimited, as in Istio.
            max_requests_per_connection: pool.http_max_requests_per_connection.filter(|most| *most > 0),
            max_retries: pool.http_max_retries,
            max_connection_duration: pool.tcp_max_connection_duration,
            http_idle_timeout: pool.http_idle_timeout.unwrap_or(limits::IDLE_TIMEOUT),
            tcp_idle_timeout: pool.tcp_idle_timeout.unwrap_or(limits::IDLE_TIMEOUT),
            h2_upgrade: pool.http_h2_upgrade == Some(true),
            use_client_protocol: pool.http_use_client_protocol,
            max_concurrent_streams: pool.http_max_concurrent_streams,
            tcp_keepalive: pool.tcp_keepalive,
        };
        shared(&mut self.pools, Arc::new(made))
    }
}

/// The one of those that are equal to `new`.
fn shared<T: Eq + std::hash::Hash>(all: &mut HashSet<Arc<T>>, new: Arc<T>) -> Arc<T> {
    if let Some(known) = all.get(&new) {
        return known.clone();
    }
    all.insert(new.clone());
    new
}

/// It names a Secret or files, which each namespace or pod has its own of; with neither, settings are the same for all.
pub fn takes_credentials(rule: &DestinationRule) -> bool {
    let given = |field: &Option<String>| field.as_ref().is_some_and(|value| !value.is_empty());
    every_tls(rule).iter().filter(|(_, tls)| tls.originates()).any(|(_, tls)| {
        let trust = given(&tls.ca_certificates) && tls.ca_certificates.as_deref() != Some("system");
        tls.mode == TlsMode::Mutual || given(&tls.credential_name) || given(&tls.ca_crl) || trust
    })
}

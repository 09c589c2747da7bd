//! Which DestinationRule applies: the first namespace with any match (the client's, the service's, the root), the most
//! specific host within it, and there the rules merged into one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use smol_str::SmolStr;

use super::{
    findings::Findings,
    names::{CLUSTER_DOMAIN, Visibility, object_order, rule_host, selects},
    table::HostMap,
};
use crate::api::{
    Object, Objects,
    istio::{
        ClientTls, ConnectionPool, DestinationRule, LoadBalancing, OutlierDetection, Subset, TlsMode, TrafficPolicy,
    },
};

/// Index of a rule in [`Rules::all`].
pub type RuleIndex = usize;

/// Every DestinationRule, in object order.
#[derive(Debug, Default)]
pub struct Rules {
    pub all: Vec<Rule>,
    by_namespace: BTreeMap<SmolStr, HostMap<Vec<RuleIndex>>>,
}

#[derive(Debug)]
pub struct Rule {
    pub object: Arc<Object<DestinationRule>>,
    /// The full name that `host` means.
    pub host: String,
    visibility: Visibility,
}

/// The rules that make up the one that applies, in the order in which they merge; never empty.
pub type Chosen = Vec<RuleIndex>;

/// One DestinationRule as it applies: the policy of the first that has one, the subsets of all.
#[derive(Debug)]
pub struct Merged {
    pub object: Arc<Object<DestinationRule>>,
    policy: Option<Arc<Object<DestinationRule>>>,
    /// Subset `.1` of the rule `.0`.
    subsets: Vec<(Arc<Object<DestinationRule>>, usize)>,
}

/// The settings of one port of one subset.
#[derive(Debug, Default)]
pub struct Policy<'a> {
    pub load_balancer: Option<&'a LoadBalancing>,
    pub pool: Option<&'a ConnectionPool>,
    pub outlier: Option<&'a OutlierDetection>,
    /// With the rule that has it and the field path, for messages.
    pub tls: Option<Tls<'a>>,
}

#[derive(Clone, Debug)]
pub struct Tls<'a> {
    pub settings: &'a ClientTls,
    pub object: &'a Arc<Object<DestinationRule>>,
    pub field: String,
}

/// What decides which rules a client sees: its namespace, and which rules with a workloadSelector match it.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub namespace: &'a str,
    /// Sorted.
    pub selected: &'a [RuleIndex],
}

impl Rules {
    pub fn new(objects: &Objects) -> Self {
        let mut sorted: Vec<_> = objects.destination_rules.values().collect();
        sorted.sort_by(|a, b| object_order(&a.meta, &b.meta));
        let mut rules = Self::default();
        for object in sorted {
            let namespace = &object.meta.namespace;
            let host = rule_host(&object.spec.host, namespace);
            let visibility = Visibility::new(object.spec.export_to.iter().map(String::as_str), namespace);
            let hosts = rules.by_namespace.entry(namespace.clone()).or_default();
            let index = rules.all.len();
            match hosts.pattern_mut(&host) {
                Some(same) => same.push(index),
                None => {
                    hosts.insert(&host, vec![index]);
                }
            }
            rules.all.push(Rule { object: object.clone(), host, visibility });
        }
        rules
    }

    /// The rules with a workloadSelector that match a workload of `namespace` with these labels.
    pub fn selected(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<RuleIndex> {
        let hosts = self.by_namespace.get(namespace);
        let rules = hosts.into_iter().flat_map(HostMap::iter).flat_map(|(_, rules)| rules);
        let matching = rules.filter(|rule| {
            self.all[**rule].object.spec.workload_selector.as_ref().is_some_and(|selector| selects(selector, labels))
        });
        let mut selected: Vec<_> = matching.copied().collect();
        selected.sort_unstable();
        selected
    }

    /// The rules that apply to a service of `namespace` called `host`, for this client; and whether that depends on
    /// which workload of its namespace the client is.
    pub fn choose(&self, client: Client<'_>, host: &str, namespace: &str, root: &str) -> (Option<Chosen>, bool) {
        let places = [client.namespace, namespace, root];
        for (at, place) in places.iter().enumerate() {
            if places[..at].contains(place) {
                continue;
            }
            let Some(hosts) = self.by_namespace.get(*place) else { continue };
            let visible = hosts.matches(host).map(|(_, rules)| self.visible(client, place, rules));
            if let Some(rules) = visible.into_iter().find(|rules| !rules.is_empty()) {
                return self.select(client, place, &rules);
            }
        }
        (None, false)
    }

    /// Each host that rules of `namespace` speak of to this client, with the rules that apply.
    pub fn hosts<'a>(
        &'a self,
        client: Client<'a>,
        namespace: &'a str,
    ) -> impl Iterator<Item = (String, Option<Chosen>)> + 'a {
        let hosts = self.by_namespace.get(namespace);
        hosts.into_iter().flat_map(HostMap::iter).filter_map(move |(host, rules)| {
            let visible = self.visible(client, namespace, rules);
            (!visible.is_empty()).then(|| (host.into_owned(), self.select(client, namespace, &visible).0))
        })
    }

    /// The same for the hosts of those rules of the client's own namespace that select it.
    pub fn hosts_selected<'a>(&'a self, client: Client<'a>) -> impl Iterator<Item = (String, Option<Chosen>)> + 'a {
        let hosts = self.by_namespace.get(client.namespace);
        let rules = client.selected.iter().filter_map(move |at| {
            let host = &self.all[*at].host;
            Some((host, hosts?.pattern(host)?))
        });
        rules.map(move |(host, rules)| (host.clone(), self.select(client, client.namespace, rules).0))
    }

    /// Every rule whose host covers `host`, of namespaces that see the service.
    pub fn naming<'a>(
        &'a self,
        host: &'a str,
        sees: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = RuleIndex> + 'a {
        let places = self.by_namespace.iter().filter(move |(namespace, _)| sees(namespace));
        places.flat_map(|(_, hosts)| hosts.matches(host)).flat_map(|(_, rules)| rules).copied()
    }

    /// Whether clients of `namespace` are under rules that clients of other namespaces may not be under.
    pub fn treat_specially(&self, namespace: &str) -> bool {
        let own_service = format!(".{namespace}.svc.{CLUSTER_DOMAIN}");
        self.by_namespace.contains_key(namespace)
            || self
                .all
                .iter()
                .any(|rule| rule.visibility != Visibility::Everywhere || rule.host.ends_with(&own_service))
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.by_namespace.keys().map(SmolStr::as_str)
    }

    /// A rule counts in its own namespace whatever it exports; with a workloadSelector it counts only there.
    fn visible(&self, client: Client<'_>, namespace: &str, rules: &[RuleIndex]) -> Vec<RuleIndex> {
        let counts = |index: &&RuleIndex| {
            let rule = &self.all[**index];
            namespace == client.namespace
                || (rule.object.spec.workload_selector.is_none() && rule.visibility.holds(client.namespace))
        };
        rules.iter().filter(counts).copied().collect()
    }

    /// Of rules for one host: those whose selector matches before those without selector.
    fn select(&self, client: Client<'_>, namespace: &str, rules: &[RuleIndex]) -> (Option<Chosen>, bool) {
        let selector = |index: RuleIndex| self.all[index].object.spec.workload_selector.as_ref();
        let varies = rules.iter().any(|rule| selector(*rule).is_some());
        if varies && namespace == client.namespace {
            let first = rules.iter().find(|rule| client.selected.binary_search(rule).is_ok());
            if let Some(first) = first {
                // Only rules with the same selector merge.
                let same = rules.iter().filter(|rule| selector(**rule) == selector(*first));
                return (Some(same.copied().collect()), true);
            }
        }
        let plain: Vec<_> = rules.iter().filter(|rule| selector(**rule).is_none()).copied().collect();
        ((!plain.is_empty()).then_some(plain), varies)
    }

    /// Makes one rule of those chosen: unique subsets appended, the top policy where none came before.
    pub fn merge(&self, chosen: &[RuleIndex], findings: &mut Findings) -> Option<Merged> {
        let objects = chosen.iter().map(|index| &self.all[*index].object);
        let first = objects.clone().next()?.clone();
        let mut merged = Merged { object: first, policy: None, subsets: Vec::new() };
        let mut names: HashMap<&str, &Arc<Object<DestinationRule>>> = HashMap::new();
        for object in objects {
            if object.spec.traffic_policy.is_some() {
                match &merged.policy {
                    None => merged.policy = Some(object.clone()),
                    Some(first) => {
                        let message =
                            format!("{} has a trafficPolicy for the same host already: that one is used", first.id);
                        findings.warn(object, "spec.trafficPolicy", message);
                    }
                }
            }
            for (index, subset) in object.spec.subsets.iter().enumerate() {
                if let Some(first) = names.get(subset.name.as_str()) {
                    let message = format!("{} has a subset of this name already: this one is dropped", first.id);
                    findings.warn(object, &format!("spec.subsets[{index}].name"), message);
                    continue;
                }
                names.insert(&subset.name, object);
                merged.subsets.push((object.clone(), index));
            }
        }
        Some(merged)
    }
}

impl Merged {
    pub fn subsets(&self) -> impl Iterator<Item = &Subset> {
        self.subsets.iter().map(|(object, index)| &object.spec.subsets[*index])
    }

    /// The settings for `port`, of the subset at `subset` of [`Self::subsets`] where given. A port level replaces all
    /// of them, and a subset's port levels replace the rule's.
    pub fn policy(&self, port: u16, subset: Option<usize>) -> Policy<'_> {
        let top = self.policy.as_ref().and_then(|object| {
            Some(Scope { policy: object.spec.traffic_policy.as_ref()?, object, field: "spec.trafficPolicy".to_owned() })
        });
        let subset = subset.and_then(|at| self.subsets.get(at)).and_then(|(object, index)| {
            let policy = object.spec.subsets[*index].traffic_policy.as_ref()?;
            Some(Scope { policy, object, field: format!("spec.subsets[{index}].trafficPolicy") })
        });
        let with_ports = subset.as_ref().filter(|scope| !scope.policy.port_level_settings.is_empty());
        if let Some(levels) = with_ports.or(top.as_ref())
            && let Some(level) = levels.port(port)
        {
            return level.settings();
        }
        let above = top.map(|scope| scope.settings()).unwrap_or_default();
        let Some(below) = subset.map(|scope| scope.settings()) else { return above };
        Policy {
            load_balancer: below.load_balancer.or(above.load_balancer),
            pool: below.pool.or(above.pool),
            outlier: below.outlier.or(above.outlier),
            tls: below.tls.or(above.tls),
        }
    }

    /// What the rule says for whole hosts, without a port: None, or the ports that its port levels single out.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let policy = self.policy.as_ref().and_then(|object| object.spec.traffic_policy.as_ref());
        policy.into_iter().flat_map(|policy| policy.port_level_settings.iter().map(|(port, _)| *port))
    }

    /// TLS of the top policy, for ports without a level of their own.
    pub fn top_tls(&self) -> Option<&ClientTls> {
        self.policy.as_ref()?.spec.traffic_policy.as_ref()?.tls.as_deref()
    }
}

impl ClientTls {
    pub(super) fn encrypts(&self) -> bool {
        self.mode != TlsMode::Disable
    }

    /// With certificates and CAs of the workload's own; ISTIO_MUTUAL is the mesh's affair.
    pub(super) fn originates(&self) -> bool {
        matches!(self.mode, TlsMode::Simple | TlsMode::Mutual)
    }
}

struct Scope<'a> {
    policy: &'a TrafficPolicy,
    object: &'a Arc<Object<DestinationRule>>,
    field: String,
}

impl<'a> Scope<'a> {
    fn settings(&self) -> Policy<'a> {
        let tls = self.policy.tls.as_deref().map(|settings| Tls {
            settings,
            object: self.object,
            field: format!("{}.tls", self.field),
        });
        Policy {
            load_balancer: self.policy.load_balancer.as_deref(),
            pool: self.policy.connection_pool.as_deref(),
            outlier: self.policy.outlier_detection.as_deref(),
            tls,
        }
    }

    fn port(&self, port: u16) -> Option<Scope<'a>> {
        let mut levels = self.policy.port_level_settings.iter().enumerate();
        let (index, (_, policy)) = levels.find(|(_, (number, _))| *number == port)?;
        let field = format!("{}.portLevelSettings[{index}]", self.field);
        Some(Scope { policy, object: self.object, field })
    }
}

/// Every TLS setting that a rule has anywhere, with its field path.
pub fn every_tls(rule: &DestinationRule) -> Vec<(String, &ClientTls)> {
    let top = rule.traffic_policy.as_ref().map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    let subsets = rule.subsets.iter().enumerate().filter_map(|(index, subset)| {
        Some((format!("spec.subsets[{index}].trafficPolicy"), subset.traffic_policy.as_ref()?))
    });
    let mut found = Vec::new();
    for (field, policy) in top.into_iter().chain(subsets) {
        found.extend(policy.tls.as_deref().map(|tls| (format!("{field}.tls"), tls)));
        for (index, (_, level)) in policy.port_level_settings.iter().enumerate() {
            found.extend(level.tls.as_deref().map(|tls| (format!("{field}.portLevelSettings[{index}].tls"), tls)));
        }
    }
    found
}

/// The files that a rule names anywhere: where it does, it depends on the workload's volumes.
pub fn files(rule: &DestinationRule) -> impl Iterator<Item = String> {
    every_tls(rule).into_iter().filter(|(_, tls)| tls.originates()).flat_map(|(_, tls)| {
        let paths = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates, &tls.ca_crl];
        paths.into_iter().flatten().cloned().collect::<Vec<_>>()
    })
}

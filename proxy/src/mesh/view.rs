//! The table of one kind of client: every service it sees, in the places where connections look for it.

mod builder;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use self::builder::Builder;
use super::{
    clusters::{HolderOf, MergedRule, Workshop},
    guard::{self, guards},
    imports::Narrowed,
    registry::{Entry, Registry},
    rules::Client,
    table::{AddressMap, Guard, Outbound, OutboundPolicy},
    virtual_services::{Caller, Heard, MESH, Plan, View, VirtualServices},
};
use crate::api::{Object, ObjectId, sidecar::Sidecar};

/// Mesh-wide facts that every view needs.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub registry: &'a Registry,
    pub services: &'a VirtualServices,
    pub root: &'a str,
    pub policy: OutboundPolicy,
}

/// What a client sees: each service with the rule that applies, in the order in which one of equal names wins.
#[derive(Debug, Default)]
pub struct Selection {
    pub entries: Vec<Selected>,
    pub heard: Heard,
}

#[derive(Clone, Debug)]
pub struct Selected {
    /// Index in the registry.
    pub entry: usize,
    pub rule: Option<MergedRule>,
    /// Another workload of the same namespace may have another rule or other credentials.
    pub varies: bool,
    pub reach: Reach,
}

/// How much of a service a client sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reach {
    #[default]
    All,
    /// A Sidecar lets in these ports (by index): to be called by name, or only as destinations of routes. Those it lets in
    /// neither way have none.
    Ports { placed: bool, ports: Vec<usize> },
}

/// What two selections must have in common to share a table.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    policy: OutboundPolicy,
    entries: Vec<(usize, Option<usize>)>,
    heard: Heard,
    /// The Sidecar that narrows the view, and how much of each entry it leaves.
    sidecar: Option<(ObjectId, Vec<Reach>)>,
    /// Set where the table depends on the client's namespace in other ways.
    namespace: Option<String>,
}

impl Selection {
    pub fn new(workshop: &mut Workshop<'_>, scope: Scope<'_>, client: Client<'_>) -> Self {
        let all = scope.registry.entries.iter().enumerate();
        let visible = all.filter(|(_, entry)| entry.body.visibility.holds(client.namespace));
        let (own, others): (Vec<_>, Vec<_>) = visible.partition(|(_, entry)| entry.namespace == client.namespace);
        let chain = own.into_iter().chain(others);
        Self {
            entries: chain.map(|found| select(workshop, scope, client, found)).collect(),
            heard: Heard::everything(scope.services.bound(MESH, client.namespace)),
        }
    }

    /// Only what may differ from the selection of the client's namespace at large.
    pub fn varying(&self, workshop: &mut Workshop<'_>, scope: Scope<'_>, client: Client<'_>) -> Self {
        let varying = self.entries.iter().filter(|selected| selected.varies);
        let entries = varying.map(|selected| {
            let found = (selected.entry, &scope.registry.entries[selected.entry]);
            Selected { reach: selected.reach.clone(), ..select(workshop, scope, client, found) }
        });
        Self { entries: entries.collect(), heard: Heard::default() }
    }

    pub fn signature(
        &self,
        workshop: &Workshop<'_>,
        scope: Scope<'_>,
        client: Client<'_>,
        sidecar: Option<&ObjectId>,
    ) -> Signature {
        let own_services = self.entries.iter().any(|selected| {
            let entry = &scope.registry.entries[selected.entry];
            entry.kubernetes && entry.namespace == client.namespace
        });
        let personal = self.entries.iter().any(|selected| selected.rule.as_ref().is_some_and(|rule| rule.personal));
        // Rules guard by namespace, whether or not a service is left that they apply to.
        let asked = self.heard.all.iter().map(|at| &scope.services.all[*at]).any(|service| {
            service.asks_namespace || (service.is_gateway_api() && service.object.meta.namespace == client.namespace)
        });
        let bound = own_services || personal || asked || workshop.rules.treat_specially(client.namespace);
        Signature {
            policy: scope.policy,
            entries: self.entries.iter().map(|s| (s.entry, s.rule.as_ref().map(|rule| rule.id))).collect(),
            heard: self.heard.clone(),
            sidecar: sidecar.map(|id| (id.clone(), self.entries.iter().map(|s| s.reach.clone()).collect())),
            namespace: bound.then(|| client.namespace.to_owned()),
        }
    }

    /// The full table for a client with these labels, and what VirtualServices had to do with it. `narrowed`: this is what
    /// a Sidecar leaves.
    pub fn table(
        &self,
        workshop: &mut Workshop<'_>,
        scope: Scope<'_>,
        (client, labels): (Client<'_>, &BTreeMap<String, String>),
        holder: HolderOf<'_>,
        narrowed: Option<&Narrowed>,
    ) -> (Outbound, Plan) {
        let mut serving: HashMap<&str, &str> = HashMap::new();
        let mut taken = HashSet::new();
        let mut builder = Builder::new(scope.policy, client.namespace, None);
        for selected in &self.entries {
            let entry = &scope.registry.entries[selected.entry];
            if !selected.is_hidden() {
                serving.entry(&entry.host).or_insert(&entry.namespace);
            }
            builder.add(workshop, scope, selected, holder, |port| taken.insert((&entry.host, port)));
        }
        let (mut table, placed) = builder.finish(workshop);
        let everything = narrowed.map(|narrowed| &*narrowed.everything);
        let others = guard::others(workshop, client, scope.root, |host, namespace| {
            let beyond = everything.and_then(|everything| everything.home(scope, host));
            let mut homes = serving.get(host).copied().into_iter().chain(beyond).peekable();
            homes.peek().is_none() || homes.any(|home| home == namespace)
        });
        table.guards.others = workshop.shared_guards(others);
        match everything {
            None => {
                table.guards.own = Arc::new(guard::own(workshop, client));
                table.guards.addresses = Arc::new(guard::addresses(scope.registry, &self.entries));
            }
            Some(everything) => {
                table.guards.own = everything.own_guards.clone();
                table.guards.names = everything.names.clone();
                table.guards.addresses = everything.addresses.clone();
                table.guards.raw = everything.raw.clone();
            }
        }
        table.unimported = narrowed.map(|narrowed| narrowed.unimported.clone());
        let said = (&mut workshop.spoken, &mut *workshop.findings);
        let plan = Plan::new((scope.view(client, labels), &self.heard), &placed, &mut table, said);
        // Of a service that nothing leads to.
        table.ports.retain(|_, port| !port.is_empty());
        (table, plan)
    }

    /// A table of what differs for a workload with these labels, over that of its namespace. None where nothing does.
    pub fn layer(
        &self,
        workshop: &mut Workshop<'_>,
        scope: Scope<'_>,
        (client, labels): (Client<'_>, &BTreeMap<String, String>),
        holder: HolderOf<'_>,
        (base, plan): (&Arc<Outbound>, &Plan),
    ) -> Option<Outbound> {
        let mut builder = Builder::new(scope.policy, client.namespace, Some(base));
        let (mut addresses, mut raw) = (AddressMap::default(), AddressMap::default());
        for selected in &self.entries {
            let entry = &scope.registry.entries[selected.entry];
            // Where another service took the name in the shared table, it takes it here.
            builder.add(workshop, scope, selected, holder, |port| {
                let there = base.clusters.get(&format!("outbound|{port}||{}", entry.host));
                there.is_some_and(|cluster| cluster.service == entry.object)
            });
            // A layer says of every service of its own what holds, be it nothing: else what lies beneath would count.
            let rule = selected.rule.as_ref();
            let guard = rule.map(|rule| rule.guard.clone()).filter(guards).unwrap_or_else(Guard::nothing);
            guard::guard_addresses(&mut addresses, (selected.entry, entry), &guard);
            if base.unimported.is_some() {
                guard::guard_raw(&mut raw, (selected.entry, entry), rule, true);
            }
        }
        let (mut table, _) = builder.finish(workshop);
        table.guards.addresses = Arc::new(addresses);
        table.guards.raw = Arc::new(raw);
        table.unimported = base.unimported.clone();
        table.guards.own = base.guards.own.clone();
        table.guards.selected = guard::selected(workshop, client, &base.guards.own);
        table.guards.others = base.guards.others.clone();
        table.guards.names = base.guards.names.clone();
        // Most layers replace few services or none: the shared table is not looked through for those.
        let whole = table.clusters.values().filter(|cluster| cluster.subset.is_empty());
        let whole: HashSet<(u16, &str)> = whole.map(|cluster| (cluster.port, cluster.host.as_str())).collect();
        if !whole.is_empty() {
            let subsets = base.clusters.values().filter(|cluster| !cluster.subset.is_empty());
            let hidden = subsets.filter(|cluster| {
                whole.contains(&(cluster.port, cluster.host.as_str())) && !table.clusters.contains_key(&cluster.name)
            });
            table.hidden = hidden.map(|cluster| cluster.name.clone()).collect();
        }
        table.base = Some(base.clone());
        let said = (&mut workshop.spoken, &mut *workshop.findings);
        let routes = plan.layer(scope.view(client, labels), &scope.services.holding(labels), &mut table, said);
        let same = table
            .clusters
            .iter()
            .all(|(name, cluster)| base.clusters.get(name).is_some_and(|there| Arc::ptr_eq(there, cluster)));
        let hidden = self.entries.iter().any(Selected::is_hidden);
        if same && !routes && !hidden && table.guards.selected.is_empty() {
            return None;
        }
        Some(table)
    }
}

impl<'a> Scope<'a> {
    /// The same for a workload to which this Sidecar applies.
    pub fn under(self, sidecar: Option<&Arc<Object<Sidecar>>>) -> Self {
        let policy = match sidecar.and_then(|sidecar| sidecar.spec.registry_only) {
            Some(true) => OutboundPolicy::RegistryOnly,
            Some(false) => OutboundPolicy::AllowAny,
            None => self.policy,
        };
        Self { policy, ..self }
    }

    fn view(self, client: Client<'a>, labels: &'a BTreeMap<String, String>) -> View<'a> {
        let caller = Caller { namespace: client.namespace, labels, gateway: MESH };
        View { services: self.services, registry: self.registry, caller }
    }
}

fn select(workshop: &mut Workshop<'_>, scope: Scope<'_>, client: Client<'_>, (at, entry): (usize, &Entry)) -> Selected {
    let (chosen, varies) = workshop.rules.choose(client, &entry.host, &entry.namespace, scope.root);
    let rule = chosen.and_then(|chosen| workshop.merged(&chosen));
    let varies = varies || rule.as_ref().is_some_and(|rule| rule.personal);
    Selected { entry: at, rule, varies, reach: Reach::All }
}

impl Selected {
    /// What a Sidecar leaves of it.
    pub fn narrowed(&self, placed: bool, ports: Vec<usize>) -> Self {
        Self { reach: Reach::Ports { placed, ports }, ..self.clone() }
    }

    /// Not imported at all; only its guards count.
    fn is_hidden(&self) -> bool {
        matches!(&self.reach, Reach::Ports { ports, .. } if ports.is_empty())
    }
}

//! The mesh's CA, and the ConfigMap of its roots.
//!
//! The CA is the operator's (Secret `cacerts` of the root namespace, in Istio's form or in that of `kubernetes.io/tls`), else
//! one that was made here once and is kept in the Secret `egret-ca`. They are looked at again and again rather than watched:
//! they change once a year, and looking costs four small requests.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use rustls_pki_types::UnixTime;
use tokio::{sync::watch, time::sleep};

use super::{
    error::{ControllerError, asked},
    health::{AUTHORITY, Health},
    metrics,
};
use crate::{
    identity::{
        AuthorityPem, IdentityError, PLUG_IN_PARTS, PLUG_IN_SECRET, TRUST_BUNDLE, TRUST_BUNDLE_KEY,
        authority::{Authority, new_root},
        roots::TrustedRoots,
    },
    limits::{AUTHORITY_CHECK, TRUST_SPREAD},
    mesh::{self, PodAddresses, Settings},
    source::{FileChange, Store, kubernetes::MESH_CONFIG, store::Content},
    tls::inspect,
};

/// The Secret of the CA that was made here.
const OWN_SECRET: &str = "egret-ca";
/// Which roots are in force and until when former ones are trusted, beside the bundle.
const RECORD_KEY: &str = "trusted-roots.json";

/// What certificates are issued by, and for whom.
#[derive(Debug)]
pub struct Issuing {
    pub authority: Arc<Authority>,
    pub trust_domain: String,
    /// Before this the agents may not have heard of its root.
    pub from: Instant,
}

/// Keeps `issuing` up to date. What is wrong is told, and the CA in force stays.
pub async fn keep(client: Client, namespace: &str, health: &Health, issuing: watch::Sender<Option<Arc<Issuing>>>) {
    let keeper = Keeper { client, namespace: namespace.to_owned() };
    loop {
        let before = issuing.borrow().clone();
        let looked = keeper.look(before.as_deref()).await;
        health.metrics.reconciled(metrics::AUTHORITY, &looked);
        match looked {
            Ok((new, warning)) => {
                health.awaits(AUTHORITY, None);
                if let Some(warning) = warning {
                    log::warn!("{warning}");
                }
                issuing.send_replace(Some(Arc::new(new)));
            }
            // The next look starts from what is there then.
            Err(ControllerError::Conflict { name }) => log::debug!("{name}: changed meanwhile"),
            Err(error) => health.awaits(AUTHORITY, Some(error.to_string())),
        }
        sleep(AUTHORITY_CHECK).await;
    }
}

struct Keeper {
    client: Client,
    namespace: String,
}

impl Keeper {
    async fn look(&self, before: Option<&Issuing>) -> Result<(Issuing, Option<IdentityError>), ControllerError> {
        let now = UnixTime::now();
        let settings = self.settings().await?;
        let pem = match self.plug_in(&settings.root_namespace).await? {
            Some(pem) => pem,
            None => self.built_in(now).await?,
        };
        let authority = match before.filter(|before| before.authority.pem == pem) {
            Some(before) => before.authority.clone(),
            None => {
                let new = Authority::new(pem, now)?;
                log::info!("mesh certificates are issued by {} from {}", new.summary.subject, new.pem.from);
                Arc::new(new)
            }
        };
        let spread = self.publish(&authority, now).await?;
        let from = match before {
            Some(before) if !spread => before.from,
            _ if spread => Instant::now() + TRUST_SPREAD,
            _ => Instant::now(),
        };
        let warning = authority.expiring(now).filter(|_| before.is_none_or(|b| !Arc::ptr_eq(&b.authority, &authority)));
        Ok((Issuing { authority, trust_domain: settings.trust_domain, from }, warning))
    }

    /// The mesh's settings as the agents read them, by the same reader.
    async fn settings(&self) -> Result<Settings, ControllerError> {
        let (namespace, name) = (&Settings::default().root_namespace, MESH_CONFIG);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let object = asked("read the mesh configuration", api.get_opt(name)).await?;
        let mut store = Store::default();
        if let Some(object) = object {
            let text = serde_json::to_vec(&object).map_err(|error| IdentityError::Unreadable {
                from: format!("ConfigMap {namespace}/{name}"),
                why: error.to_string(),
            })?;
            store.apply(vec![FileChange { path: "mesh-config.json".into(), content: Some(Content::Object(text)) }]);
        }
        Ok(mesh::compile(store.objects(), &PodAddresses::default()).settings)
    }

    async fn plug_in(&self, namespace: &str) -> Result<Option<AuthorityPem>, ControllerError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = asked("read the Secret cacerts", api.get_opt(PLUG_IN_SECRET)).await?;
        let from = format!("Secret {namespace}/{PLUG_IN_SECRET}");
        Ok(secret.map(|secret| pem(&secret, from)).transpose()?)
    }

    /// The CA that was made here, or is made now. Where two make one at the same time, the first to be kept counts.
    async fn built_in(&self, now: UnixTime) -> Result<AuthorityPem, ControllerError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let from = format!("Secret {}/{OWN_SECRET}", self.namespace);
        if let Some(secret) = asked("read the Secret egret-ca", api.get_opt(OWN_SECRET)).await? {
            return Ok(pem(&secret, from)?);
        }
        let new = new_root(from, now)?;
        let parts = [&new.certificate, &new.key, &new.roots, &new.chain];
        let data = PLUG_IN_PARTS.iter().zip(parts).filter(|(_, bytes)| !bytes.is_empty());
        let secret = Secret {
            metadata: named(OWN_SECRET),
            type_: Some("istio.io/ca-root".to_owned()),
            data: Some(data.map(|(name, bytes)| ((*name).to_owned(), ByteString(bytes.clone()))).collect()),
            ..Secret::default()
        };
        asked("keep the new mesh CA", api.create(&PostParams::default(), &secret)).await?;
        log::info!("made the mesh CA in {}", new.from);
        Ok(new)
    }

    /// Writes the trust bundle where it is not as it should be. True where the agents trusted other roots before, and must
    /// hear of a new one.
    async fn publish(&self, authority: &Authority, now: UnixTime) -> Result<bool, ControllerError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let what = format!("write the ConfigMap {TRUST_BUNDLE}");
        let object = asked("read the trust bundle", api.get_opt(TRUST_BUNDLE)).await?;
        let before = object.as_ref().map(recall).unwrap_or_default();
        let after = before.follow(&authority.roots, now);
        let data = BTreeMap::from([
            (TRUST_BUNDLE_KEY.to_owned(), inspect::to_pem(after.all())),
            (RECORD_KEY.to_owned(), after.to_json()),
        ]);
        let params = PostParams::default();
        match object {
            Some(object) if object.data.as_ref() == Some(&data) => return Ok(false),
            Some(object) => {
                let object = ConfigMap { data: Some(data), ..object };
                asked(&what, api.replace(TRUST_BUNDLE, &params, &object)).await?;
            }
            None => {
                let object = ConfigMap { metadata: named(TRUST_BUNDLE), data: Some(data), ..ConfigMap::default() };
                asked(&what, api.create(&params, &object)).await?;
            }
        }
        log::info!("published {} trusted roots, {} of them former ones", after.all().count(), after.former().count());
        Ok(before.all().next().is_some() && authority.roots.iter().any(|root| before.all().all(|old| old != root)))
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// What the bundle says was trusted. Its record is the controller's own; where somebody damaged it, its certificates count as
/// in force until now, so that they are trusted for the overlap.
fn recall(object: &ConfigMap) -> TrustedRoots {
    let text = |key| object.data.as_ref().and_then(|data| data.get(key)).map_or("", String::as_str);
    TrustedRoots::from_json(text(RECORD_KEY).as_bytes()).unwrap_or_else(|why| {
        log::warn!("the record of trusted roots in ConfigMap {TRUST_BUNDLE} cannot be read ({why}): it is made anew");
        let roots = inspect::certificates(text(TRUST_BUNDLE_KEY).as_bytes()).unwrap_or_default();
        TrustedRoots::default().follow(&roots, UnixTime::now())
    })
}

/// The CA in a Secret: `ca-cert.pem` and so on, or `tls.crt`, `tls.key` and `ca.crt`.
pub(super) fn pem(secret: &Secret, from: String) -> Result<AuthorityPem, IdentityError> {
    let part = |name: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name)).map(|bytes| bytes.0.clone());
        bytes.filter(|bytes| !bytes.is_empty())
    };
    let need = |name: &'static str| {
        part(name).ok_or_else(|| IdentityError::Missing { from: from.clone(), missing: name, other: "" })
    };
    let [certificate, key, roots, chain] = PLUG_IN_PARTS;
    if part(certificate).is_none() && part("tls.crt").is_some() {
        let chain = need("tls.crt")?;
        let (key, roots) = (need("tls.key")?, need("ca.crt")?);
        return Ok(AuthorityPem { certificate: chain.clone(), key, roots, chain, from });
    }
    Ok(AuthorityPem {
        certificate: need(certificate)?,
        key: need(key)?,
        roots: need(roots)?,
        chain: part(chain).unwrap_or_default(),
        from,
    })
}

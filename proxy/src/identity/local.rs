//! A CA on this host, which issues at once.
//!
//! It is Istio's plug-in CA where one is given (Secret `cacerts` of the root namespace, else files of those names in
//! `<state folder>/cacerts`), else one that was made here once.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls_pki_types::UnixTime;

use super::{
    Anchors, IdentityError, Look, Wanted,
    authority::{Authority, AuthorityPem},
    leaf::Leaf,
    state::{PLUG_IN_PARTS, State},
};

#[derive(Debug)]
pub(super) struct Local {
    state: State,
    authority: Option<Arc<Authority>>,
    /// Each with what issued it.
    issued: HashMap<Arc<str>, (Arc<Leaf>, Arc<Authority>)>,
}

impl Local {
    pub fn new(state_folder: &Path) -> Self {
        Self { state: State::new(state_folder), authority: None, issued: HashMap::new() }
    }

    /// Host paths that a plug-in CA may be in.
    pub fn files(&self) -> Vec<PathBuf> {
        PLUG_IN_PARTS.iter().map(|part| self.state.plug_in_folder().join(part)).collect()
    }

    /// Takes the CA on that is wanted, and issues what is missing or due. None: there is nothing to do yet.
    pub fn look(&mut self, wanted: &Wanted, now: UnixTime) -> Option<Look> {
        let plug_in = wanted.plug_in.clone().or_else(|| self.state.plug_in().transpose());
        // Without pods there is nobody to have an identity, and no CA is made.
        if self.authority.is_none() && wanted.identities.is_empty() && plug_in.is_none() {
            return None;
        }
        let mut complaints = Vec::new();
        match self.new_authority(plug_in, now) {
            Ok(Some(new)) => {
                log::info!("mesh certificates are issued by {} from {}", new.summary.subject, new.pem.from);
                self.authority = Some(Arc::new(new));
            }
            Ok(None) => {}
            Err(error) => complaints.push(error),
        }
        let Some(authority) = self.authority.clone() else {
            let why = complaints.first().cloned().unwrap_or(IdentityError::NotYet);
            return Some(Look { anchors: Err(why), leaves: HashMap::new(), missing: HashMap::new(), complaints });
        };
        complaints.extend(authority.expiring(now));
        let (former, fault) = self.state.remember(&authority.roots, now);
        complaints.extend(fault);
        self.issue(wanted, &authority, now, &mut complaints);
        Some(Look {
            anchors: Ok(Anchors {
                roots: authority.roots.iter().cloned().chain(former).collect(),
                issuer: Some(authority.certificate.clone()),
            }),
            leaves: self.issued.iter().map(|(identity, (leaf, _))| (identity.clone(), leaf.clone())).collect(),
            missing: HashMap::new(),
            complaints,
        })
    }

    /// The CA that is wanted, where it is not the one in force.
    fn new_authority(
        &self,
        plug_in: Option<Result<AuthorityPem, IdentityError>>,
        now: UnixTime,
    ) -> Result<Option<Authority>, IdentityError> {
        let pem = match plug_in {
            Some(plug_in) => plug_in?,
            // Read at each look, not only at start: its loss is told while there is still time.
            None => self.state.built_in(now)?,
        };
        match &self.authority {
            Some(authority) if authority.pem == pem => Ok(None),
            _ => Authority::new(pem, now).map(Some),
        }
    }

    /// What cannot be issued anew stays as it was.
    fn issue(
        &mut self,
        wanted: &Wanted,
        authority: &Arc<Authority>,
        now: UnixTime,
        complaints: &mut Vec<IdentityError>,
    ) {
        self.issued.retain(|identity, _| wanted.identities.contains(identity));
        for identity in &wanted.identities {
            let fresh = |(leaf, by): &(Arc<Leaf>, _)| Arc::ptr_eq(by, authority) && leaf.is_fresh(now);
            if self.issued.get(identity).is_some_and(fresh) {
                continue;
            }
            match authority.issue(identity, now) {
                Ok(leaf) => {
                    log::debug!("issued a mesh certificate for {identity}, serial {}", leaf.summary.serial);
                    self.issued.insert(identity.clone(), (Arc::new(leaf), authority.clone()));
                }
                Err(error) if complaints.contains(&error) => {}
                Err(error) => complaints.push(error),
            }
        }
    }
}

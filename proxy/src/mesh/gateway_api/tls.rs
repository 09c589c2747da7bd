//! `tls` of a listener to that of a server (Istio `buildTLS`).

use super::{
    backends::Grants,
    credentials::{authority, certificate},
    status::{Fault, joined},
};
use crate::api::{
    Objects,
    gateway::{ServerTls, ServerTlsMode},
    gateway_api::{CIPHER_SUITES, ListenerTls, TERMINATE_MODE},
};

/// `credentialName` that means the pod's own SPIFFE certificate (Istio `BuiltinGatewaySecretTypeURI`).
const BUILTIN: &str = "builtin://";

/// What a listener's `tls` comes to.
#[derive(Debug, Default)]
pub struct Made {
    pub tls: ServerTls,
    /// What is wrong with its references, with the field of each below the listener (or of the Gateway, from `spec`).
    pub faults: Vec<(String, Fault)>,
    /// There is no CA to check clients with.
    pub no_ca: Option<Fault>,
}

/// What a listener may refer to.
#[derive(Clone, Copy)]
pub struct References<'a> {
    pub objects: &'a Objects,
    pub grants: &'a Grants<'a>,
    /// Of the Gateway.
    pub namespace: &'a str,
    /// Pods of this node are served by it, or go by it. The credentials of others are not looked at, and taken to be there.
    pub here: bool,
}

/// The settings of a server; `multi_network`: it is the listener by which other networks come in.
pub fn server_tls(tls: &ListenerTls, multi_network: bool, references: References<'_>) -> Made {
    let mut made = Made::default();
    if tls.passthrough {
        let mode = if multi_network { ServerTlsMode::AutoPassthrough } else { ServerTlsMode::Passthrough };
        made.tls.mode = Some(mode);
        return made;
    }
    let option = tls.options.get(TERMINATE_MODE).map(String::as_str);
    let mode = match option {
        Some("MUTUAL") => ServerTlsMode::Mutual,
        Some("OPTIONAL_MUTUAL") => ServerTlsMode::OptionalMutual,
        Some("ISTIO_MUTUAL") => ServerTlsMode::IstioMutual,
        _ => ServerTlsMode::Simple,
    };
    made.tls.mode = Some(mode);
    if mode == ServerTlsMode::IstioMutual {
        return made;
    }
    let suites = tls.options.get(CIPHER_SUITES).into_iter().flat_map(|list| list.split(','));
    made.tls.cipher_suites = suites.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
    if option == Some("ISTIO_SIMPLE") {
        made.tls.credential_names.push(BUILTIN.to_owned());
    } else {
        made.certificates(tls, references);
    }
    made.clients(tls, references);
    made
}

impl Made {
    /// Those that there are serve; where there is none, nothing does.
    fn certificates(&mut self, tls: &ListenerTls, references: References<'_>) {
        let mut faults = Vec::new();
        for (at, reference) in tls.certificates.iter().enumerate() {
            match certificate(reference, references) {
                Ok(name) => self.tls.credential_names.push(name),
                Err(fault) => faults.push((format!("tls.certificateRefs[{at}]"), fault)),
            }
        }
        if self.tls.credential_names.is_empty() {
            self.refuse(joined(faults.iter().map(|(_, fault)| fault)));
        }
        self.faults.extend(faults);
    }

    /// As in Istio, the first CA counts.
    fn clients(&mut self, tls: &ListenerTls, references: References<'_>) {
        let Some(clients) = &tls.clients else { return };
        self.tls.mode = Some(if clients.optional { ServerTlsMode::OptionalMutual } else { ServerTlsMode::Mutual });
        let Some(reference) = clients.cas.first() else { return };
        match authority(reference, "Gateway", references) {
            Ok(ca) => self.tls.ca_credential = Some(ca.to_string()),
            Err(fault) => {
                self.no_ca = Some(Fault::new("NoValidCACertificate", &*fault.message));
                self.refuse(Some(fault.clone()));
                self.faults.push((format!("{}[0]", clients.field), fault));
            }
        }
    }

    fn refuse(&mut self, fault: Option<Fault>) {
        let why = fault.map_or_else(|| "no certificate is given".to_owned(), |fault| fault.message);
        self.tls.refused.get_or_insert(why);
    }
}

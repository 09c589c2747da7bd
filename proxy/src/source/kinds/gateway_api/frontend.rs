//! `tls` of a Gateway as a whole (Gateway API 1.4) and `frontendValidation` of a listener (before): which certificates
//! clients must show.

use std::collections::BTreeMap;

use super::{
    super::super::decode::{Field, Fields},
    CONFIG_MAP, object_ref,
};
use crate::api::gateway_api::{FrontendValidation, Listener, ListenerProtocol};

/// What `tls.frontend` says, by port and for all others.
#[derive(Default)]
pub struct Frontend {
    default: Option<FrontendValidation>,
    /// None: nothing is asked for on this port, whatever the default is.
    ports: BTreeMap<u16, Option<FrontendValidation>>,
}

/// Reads `tls` of a Gateway.
pub fn frontend(field: &Field<'_>) -> Option<Frontend> {
    let fields = field.fields(&["frontend"], &[], &["backend"])?;
    let Some(fields) = fields.get("frontend").and_then(|f| f.fields(&["default", "perPort"], &[], &[])) else {
        return Some(Frontend::default());
    };
    let mut frontend = Frontend { default: fields.require("default").and_then(|f| of_port(&f)), ..Frontend::default() };
    for field in fields.items("perPort") {
        let Some(given) = field.fields(&["port", "tls"], &[], &[]) else { continue };
        let port = given.require("port").and_then(|field| field.port());
        let validation = given.require("tls").and_then(|field| of_port(&field));
        if let Some(port) = port
            && frontend.ports.insert(port, validation).is_some()
        {
            field.error(format!("port {port} is given twice"));
        }
    }
    Some(frontend)
}

fn of_port(field: &Field<'_>) -> Option<FrontendValidation> {
    let fields = field.fields(&["validation"], &[], &[])?;
    fields.get("validation").and_then(|field| validation(&field))
}

/// Reads `frontendValidation` or `validation`.
pub fn validation(field: &Field<'_>) -> Option<FrontendValidation> {
    let fields = field.fields(&["caCertificateRefs", "mode"], &[], &[])?;
    let references = fields.require("caCertificateRefs")?;
    let cas = fields.each("caCertificateRefs", |field| {
        let given = field.fields(&["group", "kind", "namespace", "name"], &[], &[])?;
        object_ref(&given, CONFIG_MAP)
    });
    if fields.items("caCertificateRefs").is_empty() {
        references.error("must have at least one entry");
    }
    let modes = &[("AllowValidOnly", false), ("AllowInsecureFallback", true)];
    let optional = fields.get("mode").map_or(Some(false), |field| field.choice(modes))?;
    if let (Some(field), true) = (fields.get("mode"), optional) {
        field.warn("a client may show no certificate, but one that it shows must be good: a bad one is refused here");
    }
    Some(FrontendValidation { field: references.path, cas, optional })
}

impl Frontend {
    /// Enters what is said for the port of each listener that terminates HTTPS and has nothing of its own.
    pub fn enter(&self, listeners: &mut [Listener]) {
        for listener in listeners.iter_mut().filter(|listener| listener.protocol == ListenerProtocol::Https) {
            let own = self.ports.get(&listener.port).unwrap_or(&self.default);
            if let Some(tls) = &mut listener.tls
                && tls.clients.is_none()
            {
                tls.clients.clone_from(own);
            }
        }
    }
}

/// `backendTLS`, as it was called before 1.4.
pub fn backend(fields: &Fields<'_>) {
    if let Some(field) = fields.get("backendTLS") {
        field.fields(&[], &[], &["clientCertificateRef"]);
    }
}

//! Ports that a Sidecar declares.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    super::{
        clusters::Workshop,
        gateways,
        inbound::{Application, MtlsMode},
        listeners::DownstreamTls,
        origination::Holder,
        protocol,
        table::{Pool, Protocol},
    },
    Declared, Site,
};
use crate::api::{
    Object,
    sidecar::{DefaultEndpoint, IngressListener, Sidecar},
};

pub fn declared(workshop: &mut Workshop<'_>, site: Site<'_>, sidecar: &Object<Sidecar>) -> BTreeMap<u16, Declared> {
    let mut declared = BTreeMap::new();
    for (index, listener) in sidecar.spec.ingress.iter().enumerate() {
        let field = format!("spec.ingress[{index}]");
        let port = &listener.port;
        if port.protocol.eq_ignore_ascii_case("udp") {
            workshop.findings.warn(
                sidecar,
                &format!("{field}.port.protocol"),
                "UDP is not captured: this port is left alone",
            );
            continue;
        }
        if let Some(bind) = listener.bind.filter(|bind| elsewhere(*bind, site.addresses)) {
            let message = format!("{bind} is no address of {}: the port is served on all that it has", site.pod.id);
            workshop.findings.warn(sidecar, &format!("{field}.bind"), message);
        }
        let spoken = spoken(listener);
        let made = Declared {
            by: sidecar.id.clone(),
            host: String::new(),
            protocol: spoken,
            application: match &listener.default_endpoint {
                None => Application::Dialled,
                Some(DefaultEndpoint::Own(port)) => Application::Own(*port),
                Some(DefaultEndpoint::Loopback(address)) => Application::Loopback(*address),
                Some(DefaultEndpoint::Unix(path)) => Application::Unix(path.clone()),
            },
            // As a port level does, its own replaces that of all ports as a whole.
            pool: pool(workshop, listener, sidecar),
            tls: tls(workshop, site, sidecar, &field, spoken, listener),
        };
        declared.insert(port.number, made);
    }
    declared
}

fn elsewhere(bind: IpAddr, addresses: &[IpAddr]) -> bool {
    !addresses.is_empty() && !addresses.iter().any(|own| own.to_canonical() == bind.to_canonical())
}

/// What is inside TLS where that ends here.
fn spoken(listener: &IngressListener) -> Protocol {
    let port = &listener.port;
    match protocol::of_entry(&port.protocol, &port.name, port.number) {
        Protocol::Https if listener.tls.is_some() => Protocol::Http,
        Protocol::Tls if listener.tls.is_some() => Protocol::Tcp,
        protocol => protocol,
    }
}

fn pool(workshop: &mut Workshop<'_>, listener: &IngressListener, sidecar: &Object<Sidecar>) -> Arc<Pool> {
    workshop.pool(listener.connection_pool.as_ref().or(sidecar.spec.inbound_pool.as_ref()))
}

/// `tls` counts only where mesh mTLS is not spoken: it could not be told from what clients of the mesh send.
fn tls(
    workshop: &mut Workshop<'_>,
    site: Site<'_>,
    sidecar: &Object<Sidecar>,
    field: &str,
    spoken: Protocol,
    listener: &IngressListener,
) -> Option<DownstreamTls> {
    let (tls, port) = (listener.tls.as_ref()?, listener.port.number);
    if site.modes.of(port) != MtlsMode::Disable {
        let mode = site.modes.of(port).name();
        let message = format!(
            "does nothing: mesh mTLS is {mode} on port {port} of {}, and counts. A PeerAuthentication with `portLevelMtls` {port}: DISABLE lets this one count",
            site.pod.id
        );
        workshop.findings.warn(sidecar, &format!("{field}.tls"), message);
        return None;
    }
    let holder = Holder {
        objects: workshop.objects,
        defaults: &workshop.defaults,
        namespace: &site.pod.meta.namespace,
        volumes: site.volumes,
    };
    let alpn: &[&str] = if matches!(spoken, Protocol::Tcp) { &[] } else { &["h2", "http/1.1"] };
    match holder.terminate(tls, alpn, false) {
        Ok(settings) => Some(DownstreamTls::Terminate(gateways::share(settings, &mut workshop.server_settings))),
        Err((name, why)) => {
            let field = format!("{field}.tls.{name}");
            let whose = format!("{why}: connections to port {port} of pods in {} are refused", site.pod.meta.namespace);
            workshop.findings.error(sidecar, &field, whose);
            Some(DownstreamTls::Refuse(Arc::from(format!("{}: {field}: {why}", sidecar.id))))
        }
    }
}

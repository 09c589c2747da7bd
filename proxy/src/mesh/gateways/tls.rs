//! What a Gateway server's `tls` means: how TLS is taken off, or where it is passed on to by its server name.

use std::{collections::HashSet, sync::Arc};

use super::{
    super::{
        findings::Findings,
        listeners::{Behind, DownstreamTls, TlsServer},
        origination::{Holder, Refusal},
        routing::{ClusterRef, TunnelRoute},
        server_tls::ServerTlsSettings,
        virtual_services::gateway_tls,
    },
    listeners::{Site, server},
    placement::Placed,
};
use crate::api::gateway::{ServerProtocol, ServerTls, ServerTlsMode};

/// Every setting made so far: pods with equal ones share them.
pub type Shared = HashSet<Arc<ServerTlsSettings>>;

/// As in protobuf, no mode is the first one.
pub fn mode(tls: &ServerTls) -> ServerTlsMode {
    tls.mode.unwrap_or(ServerTlsMode::Passthrough)
}

pub fn passes_through(placed: &Placed<'_>) -> bool {
    let mode = placed.server.tls.as_ref().map(mode);
    matches!(mode, Some(ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough))
}

/// How a server takes TLS off.
pub fn downstream(holder: Holder<'_>, placed: &Placed<'_>, shared: &mut Shared, said: &mut Findings) -> DownstreamTls {
    let Some(tls) = &placed.server.tls else { return DownstreamTls::Refuse(Arc::from("no `tls`")) };
    if let Some(why) = &tls.refused {
        // Said where the references are written.
        return DownstreamTls::Refuse(Arc::from(format!("{}: {why}", placed.gateway.id)));
    }
    ignored(placed, tls, said);
    let made = match mode(tls) {
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => return DownstreamTls::Passthrough,
        ServerTlsMode::IstioMutual => match mesh_refusal(tls) {
            None => return DownstreamTls::IstioMutual,
            Some(refusal) => Err(refusal),
        },
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            let http = placed.server.port.protocol == ServerProtocol::Https;
            let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &[] };
            holder.terminate(tls, alpn, placed.gateway.spec.pods_of.is_some())
        }
    };
    match made {
        Ok(settings) => DownstreamTls::Terminate(share(settings, shared)),
        Err((field, why)) => {
            let field = placed.field(&format!("tls.{field}"));
            said.error(placed.gateway, &field, format!("{why}: connections to this server are refused"));
            DownstreamTls::Refuse(Arc::from(format!("{}: {field}: {why}", placed.gateway.id)))
        }
    }
}

/// The one that all with equal settings use.
pub fn share(settings: ServerTlsSettings, shared: &mut Shared) -> Arc<ServerTlsSettings> {
    let settings = Arc::new(settings);
    if let Some(known) = shared.get(&settings) {
        return known.clone();
    }
    shared.insert(settings.clone());
    settings
}

/// What would let in whom the author of an ISTIO_MUTUAL server keeps out, were it ignored.
fn mesh_refusal(tls: &ServerTls) -> Option<Refusal> {
    let restrictions = [
        ("subjectAltNames", &tls.subject_alt_names),
        ("verifyCertificateSpki", &tls.verify_certificate_spki),
        ("verifyCertificateHash", &tls.verify_certificate_hash),
    ];
    let given = restrictions.iter().find(|(_, list)| !list.is_empty());
    given.map(|(name, _)| (*name, "is not honoured with ISTIO_MUTUAL yet".to_owned()))
}

/// Says what is written and means nothing in the server's mode.
fn ignored(placed: &Placed<'_>, tls: &ServerTls, said: &mut Findings) {
    let named = !tls.credential_names.is_empty();
    let credentials = [
        ("credentialName", named),
        ("serverCertificate", tls.server_certificate.is_some()),
        ("privateKey", tls.private_key.is_some()),
    ];
    let authority = [("caCertificates", tls.ca_certificates.is_some())];
    let clients = [
        ("caCertCredentialName", tls.ca_credential.is_some()),
        ("subjectAltNames", !tls.subject_alt_names.is_empty()),
        ("verifyCertificateSpki", !tls.verify_certificate_spki.is_empty()),
        ("verifyCertificateHash", !tls.verify_certificate_hash.is_empty()),
    ];
    let handshake = [
        ("caCrl", tls.ca_crl.is_some()),
        ("minProtocolVersion", tls.min_version.is_some()),
        ("maxProtocolVersion", tls.max_version.is_some()),
        ("cipherSuites", !tls.cipher_suites.is_empty()),
    ];
    let (why, fields): (_, Vec<&[(&str, bool)]>) = match mode(tls) {
        ServerTlsMode::IstioMutual => ("with ISTIO_MUTUAL the mesh's own settings count", vec![&handshake]),
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            ("TLS is passed through untouched", vec![&credentials, &authority, &clients, &handshake])
        }
        ServerTlsMode::Simple => ("with SIMPLE no client is asked for a certificate", vec![&authority, &clients]),
        ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual if named => {
            ("with credentialName the CA is that of the Secret", vec![&authority])
        }
        ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => return,
    };
    for (name, _) in fields.into_iter().flatten().filter(|(_, given)| *given) {
        said.warn(placed.gateway, &placed.field(&format!("tls.{name}")), format!("{why}: this field is ignored"));
    }
}

impl Site<'_> {
    /// Server names (or patterns of them) whose TLS a server passes on, in order of precedence.
    pub fn passed_on(&self, placed: &Placed<'_>, said: &mut Findings) -> Vec<(String, Arc<TunnelRoute>)> {
        let tls = placed.server.tls.as_ref();
        if tls.map(mode) == Some(ServerTlsMode::AutoPassthrough) {
            return self.mesh_names(placed);
        }
        let name = placed.gateway_name();
        let routes = gateway_tls(self.services, server(placed, &name), self.caller(), self.destinations);
        // A listener of the Gateway API has conditions that say it.
        if routes.is_empty() && placed.gateway.spec.pods_of.is_none() {
            let message = "no `tls` route of a VirtualService of this Gateway names a server name among these hosts: every connection to this server is reset";
            said.warn(placed.gateway, &placed.field("hosts"), message);
        }
        routes
    }

    /// AUTO_PASSTHROUGH: services by the names that mesh mTLS calls them by (Istio's SNI-DNAT); it ends where they are.
    fn mesh_names(&self, placed: &Placed<'_>) -> Vec<(String, Arc<TunnelRoute>)> {
        let clusters = self.destinations.by_mesh_name(&placed.hosts);
        let route = |cluster| TunnelRoute { source: None, destinations: vec![(ClusterRef::Known(cluster), 1)] };
        clusters.map(|cluster| (cluster.name.clone(), Arc::new(route(cluster)))).collect()
    }

    /// A server of its own for a server name that `placed` passes on.
    pub fn passing(&self, placed: &Placed<'_>, name: &str, sni: &str, route: Arc<TunnelRoute>) -> TlsServer {
        TlsServer {
            name: Arc::from(format!("{name} {sni}")),
            source: placed.gateway.id.clone(),
            hosts: vec![sni.to_owned()],
            protocol: placed.server.port.protocol,
            tls: DownstreamTls::Passthrough,
            serves: Behind::Tunnel(Some(route)),
        }
    }
}

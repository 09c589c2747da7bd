//! The documents that most tests need, in the fewest words.

/// A ServiceEntry for one host with resolution DNS; each port is `NUMBER PROTOCOL [TARGET]`.
#[must_use]
pub fn entry(host: &str, ports: &[&str]) -> String {
    entry_with(host, ports, "  resolution: DNS\n")
}

/// The same, with the rest of the spec given.
#[must_use]
pub fn entry_with(host: &str, ports: &[&str], rest: &str) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {}}}\nspec:\n  hosts: [\"{host}\"]\n  ports:\n",
        object_name(host)
    );
    for port in ports {
        let words: Vec<_> = port.split_whitespace().collect();
        let (number, protocol) = (words[0], words[1]);
        let name = format!("{}-{number}", protocol.to_lowercase());
        text.push_str(&format!("  - {{number: {number}, name: {name}, protocol: {protocol}"));
        if let Some(target) = words.get(2) {
            text.push_str(&format!(", targetPort: {target}"));
        }
        text.push_str("}\n");
    }
    text + rest
}

/// A DestinationRule for one host, with `tls` as an inline map (`mode: SIMPLE`) for all ports.
#[must_use]
pub fn rule(host: &str, tls: &str) -> String {
    rule_with(host, &format!("  trafficPolicy: {{tls: {{{tls}}}}}\n"))
}

/// The same, with the rest of the spec given.
#[must_use]
pub fn rule_with(host: &str, rest: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {}}}\nspec:\n  host: \"{host}\"\n{rest}",
        object_name(host)
    )
}

/// The rule for one port only.
#[must_use]
pub fn port_rule(host: &str, port: u16, tls: &str) -> String {
    rule_with(
        host,
        &format!("  trafficPolicy:\n    portLevelSettings:\n    - {{port: {{number: {port}}}, tls: {{{tls}}}}}\n"),
    )
}

/// The mesh's settings, as lines of `mesh`.
#[must_use]
pub fn mesh(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n{lines}"
    )
}

/// A document of any kind in `default`, with the spec as an inline map or as lines of its own.
#[must_use]
pub fn object(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Service" => "v1",
        "HTTPRoute" => "gateway.networking.k8s.io/v1",
        "ReferenceGrant" => "gateway.networking.k8s.io/v1beta1",
        _ => "networking.istio.io/v1",
    };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {}\n", spec.trim_end())
}

/// The document in another namespace than `default`.
#[must_use]
pub fn in_namespace(document: &str, namespace: &str) -> String {
    if document.contains("metadata: {") {
        return document.replacen("metadata: {", &format!("metadata: {{namespace: {namespace}, "), 1);
    }
    document.replacen("metadata:\n", &format!("metadata:\n  namespace: {namespace}\n"), 1)
}

/// Port 80 of `host` through the gateway pods `istio: egress` over mesh mTLS, and from there to `port` of the host: what
/// Istio's egress gateway task has its readers apply, but for ServiceEntry and the rule of TLS origination.
#[must_use]
pub fn through_the_gateway(host: &str, port: u16) -> String {
    let to = |host: &str, port: u16| format!("route: [{{destination: {{host: {host}, port: {{number: {port}}}}}}}]");
    documents(&[
        object("Service", "egress", "{selector: {istio: egress}, ports: [{name: https, port: 443, targetPort: 8443}]}"),
        object(
            "Gateway",
            "egress",
            &format!(
                "{{selector: {{istio: egress}}, servers: [{{port: {{number: 443, name: https, protocol: HTTPS}}, \
                 hosts: [{host}], tls: {{mode: ISTIO_MUTUAL}}}}]}}"
            ),
        ),
        object(
            "DestinationRule",
            "egress",
            &format!("{{host: egress, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL, sni: {host}}}}}}}"),
        ),
        object(
            "VirtualService",
            "egress",
            &format!(
                "{{hosts: [{host}], gateways: [mesh, egress], http: [{{match: [{{gateways: [mesh], port: 80}}], {}}}, \
                 {{match: [{{gateways: [egress]}}], {}}}]}}",
                to("egress", 443),
                to(host, port)
            ),
        ),
    ])
}

/// Several documents as one text.
#[must_use]
pub fn documents(documents: &[String]) -> String {
    documents.join("---\n")
}

fn object_name(host: &str) -> String {
    host.replace('*', "any").replace('.', "-")
}

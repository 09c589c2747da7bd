//! Files of projected volumes: which of the sources a path leads to, and that no other is asked for.

use super::*;
use crate::api::CredentialRef;

const RULE: &str = "{host: x.com, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /etc/tls/ca.crt}}}";

/// What becomes of the CA's path, and the objects that were asked for.
fn ca(pod: &str, others: &str) -> (Result<Place, String>, Vec<String>) {
    let service = "{hosts: [x.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}";
    let objects = objects(&format!("{pod}{}{}{others}", entry("a", "e", service), rule("a", "r", RULE)));
    let mesh = compile(&objects, &PodAddresses::new());
    let found = match &mesh.of("a", "p").http(dst("9.9.9.9:80"), "x.com").cluster().tls {
        UpstreamTls::Originate(tls) => match &tls.trust {
            TrustSource::File(material) => Ok(material.place.clone()),
            other => panic!("{other:?}"),
        },
        UpstreamTls::Refuse(why) => Err(why.to_string()),
        other => panic!("{other:?}"),
    };
    let asked = objects.asked.take().into_iter();
    let named = |CredentialRef { is_secret, namespace, name }| {
        format!("{} {namespace}/{name}", if is_secret { "secret" } else { "configmap" })
    };
    (found, asked.map(named).collect())
}

/// A pod with these sources in the volume under /etc/tls: in its spec, or in the annotations.
fn pod_with(sources: &str, annotated: bool) -> String {
    let (more, spec) = if annotated {
        let volume = format!("[{{\"name\": \"v\", \"projected\": {{\"sources\": {sources}}}}}]");
        let mount = "{\"v\": {\"mountPath\": \"/etc/tls\"}}";
        (format!(", sidecar.istio.io/userVolume: '{volume}', sidecar.istio.io/userVolumeMount: '{mount}'"), "{}".into())
    } else {
        let mounts = "[{name: main, volumeMounts: [{name: v, mountPath: /etc/tls}]}]";
        let volumes = format!("[{{name: v, projected: {{sources: {sources}}}}}]");
        (String::new(), format!("{{containers: {mounts}, volumes: {volumes}}}"))
    };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: a, annotations: {{egret.dev/netns: p{more}}}}}\nspec: {spec}\n"
    )
}

#[test]
fn the_last_source_that_shows_a_file_counts() {
    let in_secret = |name: &str, key: &str| Place::Secret { namespace: "a".into(), name: name.into(), key: key.into() };
    let in_map = |name: &str, key: &str| Place::ConfigMap { namespace: "a".into(), name: name.into(), key: key.into() };
    let s = |keys: &[&str]| secret("a", "s", keys);
    let t = |keys: &[&str]| secret("a", "t", keys);
    let token = r#"{"serviceAccountToken": {"path": "token"}}"#;
    let by_item =
        r#"[{"secret": {"name": "s", "items": [{"key": "root", "path": "ca.crt"}]}}, {"secret": {"name": "t"}}]"#;
    let item_last =
        r#"[{"secret": {"name": "t"}}, {"secret": {"name": "s", "items": [{"key": "root", "path": "ca.crt"}]}}]"#;
    let elsewhere =
        r#"[{"secret": {"name": "t"}}, {"secret": {"name": "s", "items": [{"key": "root", "path": "other"}]}}]"#;
    let may_lack = r#"[{"secret": {"name": "t"}}, {"secret": {"name": "s", "optional": true, "items": [{"key": "root", "path": "ca.crt"}]}}]"#;
    let with_map = &*format!(r#"[{{"secret": {{"name": "s"}}}}, {{"configMap": {{"name": "cm"}}}}, {token}]"#);
    let down = r#"[{"secret": {"name": "s"}}, {"downwardAPI": {"items": [{"path": "ca.crt", "fieldRef": {"fieldPath": "metadata.name"}}]}}]"#;
    let below = r#"[{"downwardAPI": {"items": [{"path": "ca.crt"}]}}, {"secret": {"name": "s"}}]"#;
    let maps = config_map("a", "cm", "ca.crt");
    let settings = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm, namespace: a}\ndata: {log: 'debug'}\n";
    let hides = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm, namespace: a}\ndata: {ca.crt: ''}\n";
    for (what, sources, others, want, asked) in [
        ("one", r#"[{"secret": {"name": "s"}}]"#, s(&["ca.crt"]), Ok(in_secret("s", "ca.crt")), "secret a/s"),
        ("nobody's", r#"[{"secret": {"name": "s"}}]"#, String::new(), Err("Secret a/s does not exist"), "secret a/s"),
        ("the last", by_item, s(&["root"]) + &t(&["ca.crt"]), Ok(in_secret("t", "ca.crt")), "secret a/t"),
        ("it lacks the key", by_item, s(&["root"]) + &t(&["b"]), Ok(in_secret("s", "root")), "secret a/s, secret a/t"),
        ("it is not there", by_item, s(&["root"]), Err("Secret a/t does not exist"), "secret a/t"),
        ("named last", item_last, s(&["root"]) + &t(&["ca.crt"]), Ok(in_secret("s", "root")), "secret a/s"),
        ("named, no key", item_last, s(&["b"]) + &t(&["ca.crt"]), Err("Secret a/s has no key root"), "secret a/s"),
        ("named elsewhere", elsewhere, s(&["root"]) + &t(&["ca.crt"]), Ok(in_secret("t", "ca.crt")), "secret a/t"),
        ("optional, absent", may_lack, t(&["ca.crt"]), Ok(in_secret("t", "ca.crt")), "secret a/s, secret a/t"),
        (
            "optional, no key",
            may_lack,
            s(&["b"]) + &t(&["ca.crt"]),
            Ok(in_secret("t", "ca.crt")),
            "secret a/s, secret a/t",
        ),
        ("optional, there", may_lack, s(&["root"]) + &t(&["ca.crt"]), Ok(in_secret("s", "root")), "secret a/s"),
        ("of a ConfigMap", with_map, s(&["ca.crt"]) + &maps, Ok(in_map("cm", "ca.crt")), "configmap a/cm"),
        ("settings", with_map, s(&["ca.crt"]) + settings, Ok(in_secret("s", "ca.crt")), "configmap a/cm, secret a/s"),
        (
            "hidden",
            with_map,
            s(&["ca.crt"]) + hides,
            Err("ConfigMap a/cm has no PEM under the key ca.crt"),
            "configmap a/cm",
        ),
        ("of the pod", down, s(&["ca.crt"]), Err("in the volume v it is a downwardAPI, neither"), ""),
        ("over the pod's", below, s(&["ca.crt"]), Ok(in_secret("s", "ca.crt")), "secret a/s"),
        ("under the pod's", below, s(&["b"]), Err("in the volume v it is a downwardAPI, neither"), "secret a/s"),
        ("a token", &*format!("[{token}]"), String::new(), Err("the volume v does not show this file"), ""),
    ] {
        for annotated in [false, true] {
            let (found, names) = ca(&pod_with(sources, annotated), &others);
            match (&found, want.clone()) {
                (Ok(found), Ok(want)) => assert_eq!(*found, want, "{what}, annotated: {annotated}"),
                (Err(why), Err(want)) => assert!(why.contains(want), "{what}, annotated: {annotated}: {why}"),
                (found, want) => panic!("{what}, annotated: {annotated}: {found:?} instead of {want:?}"),
            }
            assert_eq!(names.join(", "), asked, "{what}, annotated: {annotated}");
        }
    }
}

#[test]
fn what_the_annotations_get_wrong_is_said_with_its_field() {
    let sources = r#"[{"secret": {"items": []}}]"#;
    let objects = objects(&pod_with(sources, true));
    let said = compile(&objects, &PodAddresses::new()).said(Severity::Error);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("userVolume") && said[0].contains("projected.sources[0].secret: `name` is missing"),
        "{said:?}"
    );
}

//! Bundles of CAs in `proxy-config secret`: one row for each certificate.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use super::*;

fn authority(name: &str, is_ca: bool) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

#[test]
fn every_certificate_of_a_bundle_has_a_row() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority("one", true) + &authority("two", true) + &authority("own", false)).unwrap();
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, annotations: {{egret.dev/netns: p}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e}}\nspec: {{hosts: [x.com], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r}}\nspec: {{host: x.com, trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {}}}}}}}\n",
        file.path().display()
    );
    let parsed = crate::source::documents::parse_file(std::path::Path::new("t.yaml").into(), &yaml);
    let mut objects = crate::api::Objects::default();
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    let fake = Fake::of(crate::mesh::compile(&objects, &Default::default()));
    let rows = tables::secrets(&fake.snapshot, None);
    let shown: Vec<_> = rows.iter().map(|row| (&*row.subject, &*row.kind, row.valid)).collect();
    assert_eq!(shown, [("CN=one", "CA", true), ("CN=two", "CA", true), ("CN=own", "Cert Chain", true)]);
    let name = format!("file-root:{}", file.path().display());
    assert!(rows.iter().all(|row| row.name == name), "{rows:?}");
    let serials: std::collections::BTreeSet<_> = rows.iter().map(|row| &row.serial).collect();
    assert_eq!(serials.len(), 3);
}

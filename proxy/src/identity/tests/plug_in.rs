//! Istio's plug-in CA: taken on, changed, refused.

use super::{lab::openssl, *};

const SLEEP: &str = "spiffe://cluster.local/ns/default/sa/sleep";

#[test]
fn a_ca_as_istio_s_makefile_makes_it_issues() {
    let (plug_in, mesh) = (PlugIn::rsa("cluster1", "730"), Mesh::new(&[]));
    let mesh = Mesh { names: [Arc::from(SLEEP)].into(), ..mesh };
    mesh.update(Some(&plug_in.secret()));
    assert_eq!(mesh.complaints(), "");
    let leaf = mesh.identities.leaf(SLEEP).unwrap();
    // The intermediate comes with it, the root does not.
    assert_eq!(leaf.key.cert.len(), 2);
    plug_in.write("leaf.pem", &lab::pem(&leaf.key.cert[..1]));
    plug_in.write("sent.pem", &lab::pem(&leaf.key.cert[1..]));
    openssl(
        plug_in.folder.path(),
        &["verify", "-x509_strict", "-CAfile", "root-cert.pem", "-untrusted", "sent.pem", "leaf.pem"],
    );
    // No CA was made where one was given.
    assert!(!mesh.folder.path().join("ca").exists());
}

#[test]
fn the_name_of_a_ca_is_used_as_it_is() {
    // As Active Directory names its CAs, in another string type than one would choose, and with two values in one part.
    let plug_in = PlugIn::new("one", "730");
    let corporate = "[req]\ndistinguished_name=dn\nreq_extensions=ext\nprompt=no\nstring_mask=nombstr\n[dn]\n0.DC=example\n\
                     1.DC=corp\nOU=first\n+CN=Mesh\n[ext]\nbasicConstraints=critical,CA:true,pathlen:0\n";
    plug_in.write("ca.conf", corporate);
    plug_in.sign_intermediate("730");
    let mesh = Mesh::new(&[SLEEP]);
    mesh.update(Some(&plug_in.secret()));
    assert_eq!(mesh.complaints(), "");
    let leaf = mesh.identities.leaf(SLEEP).unwrap();
    assert!(leaf.summary.issuer.ends_with("DC=corp,DC=example"), "{}", leaf.summary.issuer);
    plug_in.write("leaf.pem", &lab::pem(&leaf.key.cert[..1]));
    plug_in.openssl(&["verify", "-CAfile", "root-cert.pem", "-untrusted", "ca-cert.pem", "leaf.pem"]);
}

#[test]
fn files_of_the_state_folder_do_where_there_is_no_secret() {
    let (files, secret) = (PlugIn::new("files", "730"), PlugIn::new("secret", "730"));
    let mesh = Mesh::new(&[SLEEP]);
    let folder = mesh.folder.path().join("cacerts");
    std::fs::create_dir(&folder).unwrap();
    mesh.update(None);
    assert_eq!(mesh.complaints(), "");
    for part in PLUG_IN_PARTS {
        std::fs::write(folder.join(part), files.read(part)).unwrap();
    }
    assert!(mesh.identities.files().contains(&folder.join("ca-key.pem")));
    mesh.update(None);
    assert_eq!(mesh.complaints(), "");
    assert_eq!(mesh.roots()[0], files.root());
    mesh.update(Some(&secret.secret()));
    assert_eq!(mesh.roots()[0], secret.root());
    std::fs::remove_file(folder.join("root-cert.pem")).unwrap();
    mesh.update(None);
    assert!(mesh.complaints().contains("lacks root-cert.pem"), "{}", mesh.complaints());
    assert_eq!(mesh.roots()[0], secret.root());
}

#[test]
fn another_ca_issues_at_once_and_the_former_root_is_trusted_for_a_while() {
    let (one, two) = (PlugIn::new("one", "730"), PlugIn::new("two", "730"));
    let mut mesh = Mesh::new(&[SLEEP]);
    let built_in = mesh.roots();
    mesh.update(Some(&one.secret()));
    assert_eq!(mesh.roots(), [one.root(), built_in[0].clone()]);
    let first = mesh.identities.leaf(SLEEP).unwrap();
    mesh.clock.advance(FORMER_ROOT_TRUST / 2);
    // The change happened while the agent was away.
    mesh.restart(Some(&two.secret()));
    assert_eq!(mesh.roots(), [two.root(), one.root(), built_in[0].clone()]);
    assert_ne!(mesh.identities.leaf(SLEEP).unwrap().key.cert[1], first.key.cert[1]);
    mesh.clock.advance(FORMER_ROOT_TRUST / 2);
    assert!(mesh.identities.renew(), "the end of a root's trust wants new contexts");
    assert_eq!(mesh.roots(), [two.root(), one.root()]);
    mesh.clock.advance(FORMER_ROOT_TRUST / 2);
    assert!(mesh.identities.renew());
    assert_eq!(mesh.roots(), [two.root()]);
    // Back again: in force for good.
    mesh.update(Some(&one.secret()));
    mesh.clock.advance(FORMER_ROOT_TRUST);
    mesh.identities.renew();
    assert_eq!(mesh.roots(), [one.root()]);
}

#[test]
fn a_new_intermediate_issues_at_once_under_the_same_root() {
    let (plug_in, mesh) = (PlugIn::new("one", "730"), Mesh::new(&[SLEEP]));
    mesh.update(Some(&plug_in.secret()));
    let (roots, leaf) = (mesh.roots(), mesh.identities.leaf(SLEEP).unwrap());
    plug_in.intermediate("two", "730");
    mesh.update(Some(&plug_in.secret()));
    assert_eq!(mesh.roots(), roots);
    assert_ne!(mesh.identities.leaf(SLEEP).unwrap().key.cert[1], leaf.key.cert[1]);
}

#[test]
fn a_ca_that_is_not_fit_is_told_and_the_last_good_one_stays() {
    let good = PlugIn::new("good", "730");
    let mut mesh = Mesh::new(&[SLEEP]);
    mesh.update(Some(&good.secret()));
    let trust = mesh.identities.trust().unwrap();
    let other = PlugIn::new("other", "730");
    let changed = |change: &dyn Fn(&mut Secret)| {
        let mut secret = good.secret();
        change(&mut secret);
        secret
    };
    let put = |secret: &mut Secret, name: &str, bytes: Vec<u8>| drop(secret.data.insert(name.to_owned(), bytes));
    other.openssl(&[
        "req",
        "-x509",
        "-nodes",
        "-newkey",
        "rsa:2048",
        "-days",
        "30",
        "-subj",
        "/CN=no CA",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        "leaf-key.pem",
        "-out",
        "leaf-cert.pem",
    ]);
    let bad = [
        ("does not belong to", changed(&|secret| put(secret, "ca-key.pem", other.read("ca-key.pem")))),
        ("does not lead to its root", changed(&|secret| put(secret, "root-cert.pem", other.read("root-cert.pem")))),
        (
            "its END line is missing",
            changed(&|secret| put(secret, "ca-key.pem", good.read("ca-key.pem")[..200].to_vec())),
        ),
        ("lacks ca-key.pem", changed(&|secret| drop(secret.data.remove("ca-key.pem")))),
        ("root-cert.pem", changed(&|secret| put(secret, "root-cert.pem", b"nonsense".to_vec()))),
        (
            "is no CA certificate",
            changed(&|secret| {
                put(secret, "ca-cert.pem", other.read("leaf-cert.pem"));
                put(secret, "ca-key.pem", other.read("leaf-key.pem"));
            }),
        ),
    ];
    for (text, secret) in &bad {
        mesh.update(Some(secret));
        let complaints = mesh.complaints();
        assert!(complaints.contains(text), "{text}: {complaints}");
        assert_eq!(mesh.identities.trust().unwrap(), trust);
        assert!(mesh.identities.leaf(SLEEP).is_some());
    }
    // At start there is no last good one: the reason stands for it, and nothing else is put in its place.
    mesh.restart(Some(&bad[0].1));
    assert!(mesh.identities.trust().unwrap_err().to_string().contains("does not belong to"));
    mesh.update(Some(&good.secret()));
    assert_eq!(*mesh.identities.trust().unwrap(), *trust);
}

#[test]
fn no_leaf_outlives_its_ca_and_an_expired_ca_is_told() {
    let (plug_in, mesh) = (PlugIn::new("short", "1"), Mesh::new(&[SLEEP]));
    mesh.update(Some(&plug_in.secret()));
    assert!(mesh.complaints().contains("expires at"), "{}", mesh.complaints());
    mesh.clock.advance(Duration::from_secs(20 * 3600));
    assert!(!mesh.identities.renew());
    let leaf = mesh.identities.leaf(SLEEP).unwrap();
    let ca = crate::tls::inspect::chain(&plug_in.read("ca-cert.pem")).unwrap().remove(0);
    assert_eq!(leaf.summary.not_after, ca.not_after);
    mesh.clock.advance(Duration::from_secs(5 * 3600));
    assert!(mesh.identities.renew());
    assert!(mesh.complaints().contains("expired at"), "{}", mesh.complaints());
    mesh.restart_refused(&plug_in);
}

impl Mesh {
    fn restart_refused(mut self, plug_in: &PlugIn) {
        self.restart(Some(&plug_in.secret()));
        assert!(self.identities.trust().unwrap_err().to_string().contains("expired at"));
    }
}

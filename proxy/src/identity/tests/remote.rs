//! What the cluster's controller issued, looked at before it is used.

use super::{
    authority::{Authority, new_root},
    leaf::new_key,
    *,
};

const SLEEP: &str = "spiffe://cluster.local/ns/shop/sa/sleep";

fn authority() -> Authority {
    let now = UnixTime::now();
    Authority::new(new_root("a test".to_owned(), now).unwrap(), now).unwrap()
}

#[test]
fn a_certificate_is_taken_only_if_it_is_what_was_asked_for() {
    let (ours, other, now) = (authority(), authority(), UnixTime::now());
    let day = Duration::from_secs(24 * 3600);
    let take = |by: &Authority, identity: &str, lifetime: Duration, same_key: bool| {
        let key = new_key(SLEEP).unwrap();
        let chain = match same_key {
            true => by.certify(identity, &key, lifetime, now),
            false => by.certify(identity, &new_key(SLEEP).unwrap(), lifetime, now),
        };
        request::accept(SLEEP, key, chain.unwrap(), &ours.roots, now)
    };
    let leaf = take(&ours, SLEEP, day, true).unwrap();
    assert_eq!(leaf.summary.subject_alt_names, [SLEEP]);
    assert!(leaf.is_fresh(now));
    let refused = |taken: Result<Leaf, IdentityError>, why: &str| {
        let error = taken.unwrap_err();
        assert!(matches!(&error, IdentityError::Unfit { identity, .. } if identity == SLEEP), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(take(&other, SLEEP, day, true), "UnknownIssuer");
    refused(take(&ours, "spiffe://cluster.local/ns/shop/sa/cart", day, true), "ns/shop/sa/cart");
    refused(take(&ours, SLEEP, day, false), "KeyMismatch");
    refused(take(&ours, SLEEP, Duration::from_secs(10), true), "runs out");
    refused(request::accept(SLEEP, new_key(SLEEP).unwrap(), Vec::new(), &ours.roots, now), "no certificate");
    refused(
        request::accept(SLEEP, new_key(SLEEP).unwrap(), vec![ours.certificate.clone()], &ours.roots, now),
        "CaUsedAsEndEntity",
    );
}

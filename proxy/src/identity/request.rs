//! One certificate asked of the cluster, through its CertificateSigningRequest API (certificates.k8s.io/v1).

use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{PostParams, WatchEvent, WatchParams},
};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::{sleep, timeout};

use super::{
    IdentityError,
    leaf::{Leaf, new_key, verify},
};
use crate::{
    limits::{API_TIME, CERTIFICATE_PAUSE, CERTIFICATE_WAIT, LEAF_LIFETIME},
    tls::inspect,
};

/// The name of the controller's part that signs (`spec.signerName`).
pub const SIGNER: &str = "egret.dev/workload";

/// What a workload's certificate is for (`spec.usages`).
pub(crate) const USAGES: [&str; 4] = ["digital signature", "key encipherment", "server auth", "client auth"];

type Chain = Vec<CertificateDer<'static>>;

/// A new key, and what was signed for it. The request's object stays: the controller removes it, so that agents need not be
/// allowed to remove those of others.
pub(super) async fn certificate(client: &Client, identity: &str) -> Result<(KeyPair, Chain), IdentityError> {
    let failed = |why: String| IdentityError::Issue { identity: identity.to_owned(), why };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let key = new_key(identity)?;
    let request = pkcs10(identity, &key).map_err(|error| failed(error.to_string()))?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("egret-workload-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: SIGNER.to_owned(),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            expiration_seconds: i32::try_from(LEAF_LIFETIME.as_secs()).ok(),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let unavailable = |why: String| IdentityError::Api { what: "ask for a mesh certificate".to_owned(), why };
    let created = match timeout(API_TIME, api.create(&PostParams::default(), &object)).await {
        Ok(Ok(created)) => created,
        Ok(Err(error)) => return Err(unavailable(error.to_string())),
        Err(_) => return Err(unavailable(format!("no answer within {} s", API_TIME.as_secs()))),
    };
    log::debug!("asked for a mesh certificate for {identity}: {}", created.metadata.name.as_deref().unwrap_or("?"));
    let unanswered =
        |_| IdentityError::Unanswered { identity: identity.to_owned(), seconds: CERTIFICATE_WAIT.as_secs() };
    let pem = timeout(CERTIFICATE_WAIT, answer(&api, created, identity)).await.map_err(unanswered)??;
    let chain = inspect::certificates(&pem).map_err(failed)?;
    Ok((key, chain))
}

/// PEM of a PKCS #10 request with the identity as its one name.
pub(crate) fn pkcs10(identity: &str, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity)?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serialize_request(key)?.pem()
}

/// Waits until the request is answered, however long that takes.
async fn answer(
    api: &Api<CertificateSigningRequest>,
    created: CertificateSigningRequest,
    identity: &str,
) -> Result<Vec<u8>, IdentityError> {
    let name = created.metadata.name.clone().unwrap_or_default();
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut seen = created;
    loop {
        if let Some(answer) = answered(&seen, identity) {
            return answer;
        }
        let version = seen.metadata.resource_version.clone().unwrap_or_default();
        if let Ok(events) = api.watch(&only, &version).await {
            pin_mut!(events);
            while let Some(Ok(event)) = events.next().await {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        if let Some(answer) = answered(&object, identity) {
                            return answer;
                        }
                        seen = object;
                    }
                    WatchEvent::Deleted(_) => return Err(gone(identity)),
                    WatchEvent::Bookmark(_) => {}
                    WatchEvent::Error(_) => break,
                }
            }
        }
        // The watch ended, or there was none: ask, and take it up from there.
        sleep(CERTIFICATE_PAUSE).await;
        match timeout(API_TIME, api.get_opt(&name)).await {
            Ok(Ok(Some(object))) => seen = object,
            Ok(Ok(None)) => return Err(gone(identity)),
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

fn gone(identity: &str) -> IdentityError {
    IdentityError::Refused { identity: identity.to_owned(), why: "somebody removed the request".to_owned() }
}

/// None: neither signed nor refused yet.
fn answered(request: &CertificateSigningRequest, identity: &str) -> Option<Result<Vec<u8>, IdentityError>> {
    let status = request.status.as_ref()?;
    if let Some(certificate) = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty()) {
        return Some(Ok(certificate.0.clone()));
    }
    let mut conditions = status.conditions.iter().flatten();
    let refused = conditions.find(|condition| ["Denied", "Failed"].contains(&&*condition.type_))?;
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let why = format!("{}: {}", part(&refused.reason), part(&refused.message));
    Some(Err(IdentityError::Refused { identity: identity.to_owned(), why }))
}

/// Takes what came, if it is what was asked for and peers would take it, too.
pub(super) fn accept(
    identity: &str,
    key: KeyPair,
    chain: Chain,
    roots: &[CertificateDer<'static>],
    now: UnixTime,
) -> Result<Leaf, IdentityError> {
    let unfit = |why: String| IdentityError::Unfit { identity: identity.to_owned(), why };
    verify(&chain, roots, now).map_err(unfit)?;
    let leaf = Leaf::new(identity, key, chain, now).map_err(|error| unfit(error.to_string()))?;
    if leaf.summary.subject_alt_names != [identity] || leaf.summary.is_ca {
        return Err(unfit(format!("it is for {:?}", leaf.summary.subject_alt_names)));
    }
    // One that is due again at once would be asked for without end.
    let least = CERTIFICATE_PAUSE.max(Duration::from_secs(60));
    if leaf.summary.not_after - super::authority::seconds(now) < super::authority::lasting(least) {
        return Err(unfit(format!("it runs out at {}", inspect::timestamp(leaf.summary.not_after))));
    }
    Ok(leaf)
}

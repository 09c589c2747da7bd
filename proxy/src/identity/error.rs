//! Why a mesh identity cannot be had: each a sentence that says what to do.

/// Told in the agent's log, in refusals of mesh mTLS and by `proxy-config secret`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("no mesh identity was made yet: try again in a moment")]
    NotYet,
    #[error("the mesh CA in {from} lacks {missing}: put it there{other}")]
    Missing { from: String, missing: &'static str, other: &'static str },
    #[error("{from} cannot be read ({why}): make it a readable PEM file")]
    Unreadable { from: String, why: String },
    #[error("{from} cannot be written ({why}): the built-in mesh CA is kept there")]
    Unwritable { from: String, why: String },
    #[error("the mesh CA's certificate in {from} cannot be used ({why}): give it a CA certificate in PEM")]
    BadCertificate { from: String, why: String },
    #[error("the mesh CA's private key in {from} cannot be used ({why}): give it an unencrypted key in PEM")]
    BadKey { from: String, why: String },
    #[error("the private key {key} does not belong to the mesh CA's certificate {certificate} ({subject}){other}")]
    KeyMismatch { key: String, certificate: String, subject: String, other: &'static str },
    #[error(
        "the mesh CA's certificate {subject} from {from} is no CA certificate: it must say CA:TRUE and keyCertSign"
    )]
    NotCa { from: String, subject: String },
    #[error("the mesh CA's certificate {subject} from {from} expired at {when}: renew it")]
    Expired { from: String, subject: String, when: String },
    #[error("the mesh CA's certificate {subject} from {from} is valid only from {when}: check the clock")]
    NotYetValid { from: String, subject: String, when: String },
    #[error("the mesh CA's certificate {subject} from {from} expires at {when}: put a new CA in its place before")]
    Expiring { from: String, subject: String, when: String },
    #[error(
        "what the mesh CA in {from} issues does not lead to its root ({why}): correct cert-chain.pem and root-cert.pem"
    )]
    NoPath { from: String, why: String },
    #[error("it was asked for, and the answer is awaited")]
    Awaited,
    #[error("the ConfigMap {name} with the mesh's roots is not there: `egret controller` writes it")]
    NoBundle { name: String },
    #[error("the API server does not let us {what} ({why})")]
    Api { what: String, why: String },
    #[error(
        "the request for the certificate of {identity} was not answered within {seconds} s: see to `egret controller`"
    )]
    Unanswered { identity: String, seconds: u64 },
    #[error("the certificate of {identity} was refused: {why}")]
    Refused { identity: String, why: String },
    #[error("the certificate that came for {identity} is of no use ({why})")]
    Unfit { identity: String, why: String },
    #[error("no certificate could be made for {identity} ({why})")]
    Issue { identity: String, why: String },
    #[error("{from} can be read by others than its owner (mode {mode:o}): chmod 600 it, and make a new CA if they did")]
    Exposed { from: String, mode: u32 },
}

impl IdentityError {
    /// Nothing is refused for it yet.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::Expiring { .. })
    }
}

//! Key exchange over P-521, which rustls does not bring.
//!
//! In TLS 1.2 a server may show an ECDSA certificate only if its curve is among the groups that the client offers
//! (RFC 8422 section 5.1), so without this group a server with a P-521 certificate refuses every TLS 1.2 handshake. It is
//! offered last, and never guessed as a key share.

use aws_lc_rs::{agreement, error::Unspecified, rand::SystemRandom};
use rustls::{
    Error, NamedGroup, PeerMisbehaved,
    crypto::{ActiveKeyExchange, GetRandomFailed, SharedSecret, SupportedKxGroup},
};

/// secp521r1 as rustls's providers have their other groups.
pub(super) static SECP521R1: &dyn SupportedKxGroup = &Group;

#[derive(Debug)]
struct Group;

struct Exchange {
    private: agreement::EphemeralPrivateKey,
    public: agreement::PublicKey,
}

impl SupportedKxGroup for Group {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let failed = |_: Unspecified| GetRandomFailed;
        let private =
            agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P521, &SystemRandom::new()).map_err(failed)?;
        let public = private.compute_public_key().map_err(failed)?;
        Ok(Box::new(Exchange { private, public }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        // aws-lc-rs reads compressed points too, TLS knows only uncompressed ones (RFC 8446 section 4.2.8.2).
        if peer.first() != Some(&4) {
            return Err(PeerMisbehaved::InvalidKeyShare.into());
        }
        let peer = agreement::UnparsedPublicKey::new(&agreement::ECDH_P521, peer);
        let invalid = Error::from(PeerMisbehaved::InvalidKeyShare);
        agreement::agree_ephemeral(self.private, peer, invalid, |secret| Ok(SharedSecret::from(secret)))
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_ref()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

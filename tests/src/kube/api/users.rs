//! Who asks: bearer tokens and the users that they stand for.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    /// The pod and node that a service account's token is bound to, as `authentication.kubernetes.io/node-name` and so on.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Somebody with a kubeconfig; `admin` may do everything.
    pub fn person(name: &str) -> Self {
        let mut groups = vec!["system:authenticated".to_owned()];
        if name == "admin" {
            groups.push("system:masters".to_owned());
        }
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid: uid.to_owned(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".into(),
            ],
            extra: BTreeMap::new(),
        }
    }

    /// The same, with a token that belongs to a pod on a node (KEP-4193).
    pub fn bound(mut self, pod: &str, pod_uid: &str, node: &str) -> Self {
        for (key, value) in [("pod-name", pod), ("pod-uid", pod_uid), ("node-name", node)] {
            self.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
        self
    }

    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
    }

    /// The fields of a CertificateSigningRequest or a SelfSubjectReview that tell who asked.
    pub fn told(&self) -> Value {
        json!({"username": self.name, "uid": self.uid, "groups": self.groups, "extra": self.extra})
    }
}

/// Tokens and whose they are.
#[derive(Default)]
pub struct Tokens(HashMap<String, User>);

impl Tokens {
    pub fn mint(&mut self, user: User) -> String {
        let token = format!("{}-{}", user.name.replace(':', "-"), super::random_hex(16));
        self.0.insert(token.clone(), user);
        token
    }

    /// None for a token that nobody has.
    pub fn user(&self, authorization: &str) -> Option<User> {
        match authorization.strip_prefix("Bearer ") {
            Some(token) => self.0.get(token.trim()).cloned(),
            None => Some(User::anonymous()),
        }
    }

    /// From now on nobody has it.
    pub fn revoke(&mut self, token: &str) {
        self.0.remove(token);
    }
}

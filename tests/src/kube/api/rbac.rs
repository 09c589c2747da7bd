//! Role-based access control, evaluated from the objects in the store as the real authorizer does.

use serde_json::Value;

use super::{failure::Failure, request::Target, store::Store, users::User};

const GROUP: &str = "rbac.authorization.k8s.io";

/// One question to the authorizer.
pub struct Question<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// With the subresource: `pods/status`.
    pub resource: String,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Question<'a> {
    /// What a request asks. A list or watch of one name (`metadata.name=…`) counts as naming the object.
    pub fn of(verb: &'a str, target: &'a Target, field_selector: &'a str) -> Self {
        let resource = match &target.subresource {
            Some(sub) => format!("{}/{sub}", target.plural),
            None => target.plural.clone(),
        };
        Self {
            verb,
            group: &target.group,
            resource,
            namespace: target.namespace.as_deref().unwrap_or_default(),
            name: target.name.as_deref().unwrap_or_else(|| {
                let mut names = field_selector.split(',').filter_map(|part| part.strip_prefix("metadata.name="));
                names.next_back().map_or("", |name| name.trim_start_matches('='))
            }),
        }
    }
}

/// Whether `user` may.
pub fn allowed(store: &Store, user: &User, question: &Question<'_>) -> bool {
    if user.is_master() {
        return true;
    }
    let cluster_wide = store.all(GROUP, "clusterrolebindings");
    let here = store
        .all(GROUP, "rolebindings")
        .filter(|(key, _)| !question.namespace.is_empty() && key.0 == question.namespace);
    cluster_wide.chain(here).any(|(key, binding)| {
        names_user(binding, user, &key.0)
            && rules(store, binding, &key.0).is_some_and(|rules| rules.iter().any(|rule| permits(rule, question)))
    })
}

/// The refusal, in the real server's words.
pub fn forbidden(user: &User, question: &Question<'_>) -> Failure {
    let (verb, resource) = (question.verb, &question.resource);
    let what = if question.group.is_empty() { resource.clone() } else { format!("{resource}.{}", question.group) };
    let subject = if question.name.is_empty() { what } else { format!("{what} \"{}\"", question.name) };
    let place = if question.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", question.namespace)
    };
    let message = format!(
        "{subject} is forbidden: User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {place}",
        user.name, question.group
    );
    let mut failure = Failure::new(403, "Forbidden", message);
    failure.details = serde_json::json!({"name": question.name, "group": question.group, "kind": resource});
    failure
}

fn names_user(binding: &Value, user: &User, namespace: &str) -> bool {
    binding["subjects"].as_array().into_iter().flatten().any(|subject| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str() {
            Some("User") => name == user.name,
            Some("Group") => user.groups.iter().any(|group| group == name),
            Some("ServiceAccount") => {
                let of = subject["namespace"].as_str().unwrap_or(namespace);
                user.name == format!("system:serviceaccount:{of}:{name}")
            }
            _ => false,
        }
    })
}

fn rules<'a>(store: &'a Store, binding: &Value, namespace: &str) -> Option<&'a Vec<Value>> {
    let name = binding["roleRef"]["name"].as_str()?.to_owned();
    let (plural, namespace) = match binding["roleRef"]["kind"].as_str()? {
        "ClusterRole" => ("clusterroles", String::new()),
        _ => ("roles", namespace.to_owned()),
    };
    store.get(&(GROUP.to_owned(), plural.to_owned()), &(namespace, name))?["rules"].as_array()
}

fn permits(rule: &Value, question: &Question<'_>) -> bool {
    let holds = |field: &str, wanted: &str| {
        rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).any(|word| word == "*" || word == wanted)
    };
    let resource = holds("resources", &question.resource)
        || question.resource.split_once('/').is_some_and(|(_, sub)| holds("resources", &format!("*/{sub}")));
    let named = rule["resourceNames"].as_array().is_none_or(|names| {
        names.is_empty() || names.iter().filter_map(Value::as_str).any(|name| !name.is_empty() && name == question.name)
    });
    holds("verbs", question.verb) && holds("apiGroups", question.group) && resource && named
}

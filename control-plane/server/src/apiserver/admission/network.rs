//! Ingresses that name no class get the default one. What annotations of Ingresses and NetworkPolicies
//! say in vain is answered with a warning: nodes would pass over it in silence.

use serde_json::json;
use wherry_resources::{Object, meta};

use super::{Context, Operation};

/// The annotation of the class that Ingresses without one get.
pub const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// Names the class as it was done before there was a field.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";
const REDIRECT: &str = "wherry.dev/ssl-redirect";
const BODY_MAX: &str = "wherry.dev/body-bytes-max";
const MODE: &str = "wherry.dev/policy-mode";
const HOSTS: &str = "wherry.dev/egress-hosts";

/// Gives a new Ingress the default class.
pub fn ingress(context: &Context<'_>, new: &mut Object) -> Vec<String> {
    let named = new["spec"].get("ingressClassName").is_some_and(|class| !class.is_null());
    let named = named || meta::annotation(new, OLD_CLASS).is_some();
    if context.operation == Operation::Create
        && !named
        && let Some(class) = &context.facts.default_ingress_class
    {
        new["spec"]["ingressClassName"] = json!(class);
    }
    let redirect = meta::annotation(new, REDIRECT).filter(|it| !["true", "false"].contains(it));
    let redirect =
        redirect.map(|it| vain(REDIRECT, it, "is neither true nor false: nothing is redirected"));
    let max = meta::annotation(new, BODY_MAX).filter(|it| it.parse::<u64>().is_err());
    let max = max.map(|it| vain(BODY_MAX, it, "is no number of bytes: the limit is 1073741824"));
    redirect.into_iter().chain(max).collect()
}

/// Looks at the annotations of a NetworkPolicy.
pub fn policy(new: &Object) -> Vec<String> {
    let mode = meta::annotation(new, MODE).filter(|it| *it != "audit");
    let mode = mode.map(|it| vain(MODE, it, "is not audit: the policy is enforced"));
    let hosts = meta::annotation(new, HOSTS).unwrap_or("").split(',').map(str::trim);
    let wrong = hosts.filter(|host| !host.is_empty() && !is_host(host));
    let wrong =
        wrong.map(|it| vain(HOSTS, it, "is no name with or without a port: it opens nothing"));
    mode.into_iter().chain(wrong).collect()
}

fn vain(annotation: &str, value: &str, why: &str) -> String {
    format!("metadata.annotations[{annotation}]: {value:?} {why}")
}

/// `api.example.com`, `*.example.com`, each with a port or without.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let name = name.strip_prefix('*').unwrap_or(name);
    let is_part = |one: char| one.is_ascii_alphanumeric() || "-._".contains(one);
    let fits = port.is_none_or(|port| port.parse::<u16>().is_ok());
    !name.is_empty() && name.chars().all(is_part) && fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::Facts;
    use crate::apiserver::auth::User;
    use crate::apiserver::verbs::Part;

    /// The class of an Ingress where `mine` is the default, and the warnings.
    fn admitted(operation: Operation, mut new: Object) -> (Object, Vec<String>) {
        let facts = Facts { default_ingress_class: Some("mine".to_owned()), ..Facts::default() };
        let context = Context {
            operation,
            user: &User::new("ann", &[]),
            kind: wherry_resources::kind("networking.k8s.io", "v1", "ingresses").expect("built in"),
            part: Part::Main,
            namespace: "n",
            facts: &facts,
        };
        let warnings = ingress(&context, &mut new);
        (new["spec"]["ingressClassName"].take(), warnings)
    }

    #[test]
    fn an_ingress_gets_the_default_class() {
        let class = |operation, new: Object| admitted(operation, new).0;
        let none = || json!({"metadata": {"name": "i"}, "spec": {"rules": []}});
        assert_eq!(class(Operation::Create, none()), "mine");
        assert_eq!(class(Operation::Update, none()), Object::Null);
        let named = json!({"metadata": {}, "spec": {"ingressClassName": "other"}});
        assert_eq!(class(Operation::Create, named), "other");
        let old = json!({"metadata": {"annotations": {OLD_CLASS: "other"}}, "spec": {}});
        assert_eq!(class(Operation::Create, old), Object::Null);
    }

    #[test]
    fn what_is_said_in_vain_is_warned_of() {
        let annotations = |all: Object| json!({"metadata": {"annotations": all}, "spec": {}});
        let warned = |all| admitted(Operation::Update, annotations(all)).1;
        assert!(warned(json!({REDIRECT: "true", BODY_MAX: "1048576"})).is_empty());
        let warnings = warned(json!({REDIRECT: "yes", BODY_MAX: "10m"}));
        assert_eq!(
            warnings,
            [
                "metadata.annotations[wherry.dev/ssl-redirect]: \"yes\" is neither true nor false: \
                 nothing is redirected",
                "metadata.annotations[wherry.dev/body-bytes-max]: \"10m\" is no number of bytes: the \
                 limit is 1073741824",
            ]
        );
        let fine = json!({MODE: "audit", HOSTS: "api.example.com, *.example.org:8443"});
        assert!(policy(&annotations(fine)).is_empty());
        let wrong = json!({MODE: "dry-run", HOSTS: "a.example, http://b.example, c:99999"});
        let warnings = policy(&annotations(wrong));
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].ends_with("\"dry-run\" is not audit: the policy is enforced"));
        assert!(warnings[1].contains("\"http://b.example\""), "{warnings:?}");
    }
}

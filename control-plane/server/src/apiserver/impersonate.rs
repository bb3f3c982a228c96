//! Acting as somebody else: the headers `Impersonate-User`, `-Group`, `-Uid` and `-Extra-*`.
//!
//! Pure: [`wanted`] reads the headers, [`Wanted::asked`] says what the real user must be allowed
//! to do (each part is a request with the verb `impersonate`), [`Wanted::user`] is who they then
//! are.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};

use super::{
    auth::{self, User},
    errors::ApiError,
    rbac::service_account_of,
    request::Attributes,
};

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const PREFIX: &str = "impersonate-";
const EXTRA: &str = "impersonate-extra-";
/// Where extra attributes and uids are, as resources.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Who a request wants to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// Takes the headers off, so that nothing behind the guard acts on them again.
pub fn hide(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Reads the headers; None when the request is nobody but itself.
pub fn wanted(headers: &HeaderMap) -> Result<Option<Wanted>, ApiError> {
    // Nearly every request: nothing to read.
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return Ok(None);
    }
    let text = |name: &HeaderName| -> Result<Vec<String>, ApiError> {
        headers.get_all(name).iter().map(|value| readable(name, value)).collect()
    };
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy();
            extra.entry(key.to_lowercase()).or_default().push(readable(name, value)?);
        }
    }
    let first = |name: &HeaderName| -> Result<String, ApiError> {
        Ok(text(name)?.into_iter().next().unwrap_or_default())
    };
    let wanted = Wanted { name: first(&USER)?, uid: first(&UID)?, groups: text(&GROUP)?, extra };
    if wanted.name.is_empty() {
        let asks = !wanted.groups.is_empty() || !wanted.uid.is_empty() || !wanted.extra.is_empty();
        if asks {
            return Err(ApiError::BadRequest(
                "impersonating groups, a uid or extra attributes needs the header Impersonate-User \
                 too"
                    .to_owned(),
            ));
        }
        return Ok(None);
    }
    Ok(Some(wanted))
}

fn readable(name: &HeaderName, value: &http::HeaderValue) -> Result<String, ApiError> {
    let text = std::str::from_utf8(value.as_bytes());
    text.map(str::to_owned)
        .map_err(|_| ApiError::BadRequest(format!("the header {name} is not UTF-8")))
}

impl Wanted {
    /// What must be allowed, in the order in which Kubernetes asks.
    pub fn asked(&self) -> Vec<Attributes> {
        let one = |group: &str, resource: &str, namespace: &str, name: &str| Attributes {
            verb: "impersonate".to_owned(),
            is_resource: true,
            group: group.to_owned(),
            version: "v1".to_owned(),
            namespace: namespace.to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            named: true,
            ..Attributes::default()
        };
        let mut all = vec![match service_account_of(&self.name) {
            Some((namespace, name)) => one("", "serviceaccounts", namespace, name),
            None => one("", "users", "", &self.name),
        }];
        all.extend(self.groups.iter().map(|group| one("", "groups", "", group)));
        for (key, values) in &self.extra {
            all.extend(values.iter().map(|value| Attributes {
                subresource: key.clone(),
                ..one(AUTHENTICATION, "userextras", "", value)
            }));
        }
        if !self.uid.is_empty() {
            all.push(one(AUTHENTICATION, "uids", "", &self.uid));
        }
        all
    }

    /// The user that the request then has.
    pub fn user(self) -> User {
        let mut groups = self.groups;
        if groups.is_empty()
            && let Some((namespace, _)) = service_account_of(&self.name)
        {
            groups = auth::service_account_groups(namespace);
        }
        let everybody = match self.name == auth::ANONYMOUS {
            true => auth::UNAUTHENTICATED,
            false => auth::AUTHENTICATED,
        };
        let known = [auth::AUTHENTICATED, auth::UNAUTHENTICATED];
        if !groups.iter().any(|group| known.contains(&group.as_str())) {
            groups.push(everybody.to_owned());
        }
        User { name: self.name, groups, uid: self.uid, extra: self.extra }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Wanted>, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        wanted(&headers)
    }

    #[test]
    fn what_must_be_allowed_and_who_it_becomes() {
        let wanted = read(&[
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "dev"),
            ("Impersonate-Group", "ops"),
            ("Impersonate-Extra-Example.org%2Fteam", "blue"),
            ("Impersonate-Uid", "7"),
        ]);
        let wanted = wanted.expect("good headers").expect("somebody");
        let asked: Vec<String> = wanted
            .asked()
            .iter()
            .map(|one| format!("{}/{}/{} {}", one.group, one.resource, one.subresource, one.name))
            .collect();
        let extra = "authentication.k8s.io/userextras/example.org/team blue";
        let uid = "authentication.k8s.io/uids/ 7";
        assert_eq!(asked, ["/users/ jane", "/groups/ dev", "/groups/ ops", extra, uid]);
        let user = wanted.user();
        assert_eq!(user.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(user.extra["example.org/team"], ["blue"]);
    }

    #[test]
    fn a_service_account_brings_its_groups() {
        let wanted = read(&[("impersonate-user", "system:serviceaccount:shop:bot")]);
        let wanted = wanted.expect("good headers").expect("somebody");
        assert_eq!(wanted.asked()[0].resource, "serviceaccounts");
        assert_eq!(wanted.asked()[0].namespace, "shop");
        let groups =
            ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"];
        assert_eq!(wanted.user().groups, groups);
        assert!(read(&[("impersonate-group", "system:masters")]).is_err());
        assert!(read(&[("accept", "*/*")]).expect("good").is_none());
    }
}

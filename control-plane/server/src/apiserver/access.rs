//! Who asks and whether they may, answered for this member: the pure parts (`auth`, `tokens`,
//! `authorize`, `rbac`) put together with the state of the store.

use std::sync::Arc;

use jiff::Timestamp;
use wherry_resources::Object;

use super::{
    ApiServer, auth,
    auth::User,
    authorize::{self, Decision, World},
    errors::ApiError,
    rbac::Index,
    request::Attributes,
    stored,
    tokens::ISSUER,
};

/// Whose a token is, and which of the asked audiences it is for.
pub struct Bearer {
    pub user: User,
    pub audiences: Vec<String>,
}

impl ApiServer {
    /// An object of the core group as this member sees it now.
    pub(crate) fn core_object(&self, plural: &str, namespace: &str, name: &str) -> Option<Object> {
        let kind = wherry_resources::kind("", "v1", plural).expect("a kind of the core group");
        let entry = self.store().current().get(&stored::key(kind, namespace, name))?;
        Some(stored::decode(kind, &entry))
    }

    /// The roles and bindings as of now.
    pub(crate) fn roles(&self) -> Arc<Index> {
        self.shared.roles.get(self.store())
    }

    /// The user of a request, by its own credentials.
    pub(crate) fn authenticate(
        &self,
        extensions: &http::Extensions,
        headers: &http::HeaderMap,
    ) -> Result<User, ApiError> {
        auth::authenticate(extensions, headers, |token| self.bearer(token))
    }

    /// Whether there may be a state in which a request's token is good: it is signed by this
    /// cluster, or has the form of a bootstrap token.
    pub(crate) fn could_be_known(&self, headers: &http::HeaderMap) -> bool {
        let could = |token: &str| {
            let known = self.shared.service_account_tokens.read(token).is_some();
            (known || auth::is_bootstrap(token)).then(|| User::new("somebody", &[]))
        };
        let found = auth::authenticate(&http::Extensions::new(), headers, could);
        found.is_ok_and(|user| !user.is_in(auth::UNAUTHENTICATED))
    }

    /// The user whose token for this API server it is.
    pub(crate) fn bearer(&self, token: &str) -> Option<User> {
        self.bearer_for(token, &[ISSUER.to_owned()]).map(|bearer| bearer.user)
    }

    /// The user whose token for at least one of these audiences it is.
    pub(crate) fn bearer_for(&self, token: &str, wanted: &[String]) -> Option<Bearer> {
        let now = Timestamp::now();
        if let Some(claims) = self.shared.service_account_tokens.read(token) {
            let audiences = claims.audiences_among(wanted);
            let find = |plural: &str, ns: &str, name: &str| self.core_object(plural, ns, name);
            let user = claims.user(find, now).filter(|_| !audiences.is_empty())?;
            return Some(Bearer { user, audiences });
        }
        // Other tokens know no audience: they are for the API server.
        let audiences: Vec<String> = wanted.iter().filter(|one| *one == ISSUER).cloned().collect();
        let secret = |name: &str| self.core_object("secrets", "kube-system", name);
        let user = auth::bootstrap(token, secret, now).filter(|_| !audiences.is_empty())?;
        Some(Bearer { user, audiences })
    }

    /// Whether a user may do something.
    pub(crate) fn decide(&self, user: &User, asked: &Attributes) -> Decision {
        let state = self.store().current();
        let roles = self.roles();
        let refers = |node: &str, asked: &Attributes| {
            let Attributes { namespace, resource, name, .. } = asked;
            let graph = &self.shared.graph;
            let (gates, gateways) = (&self.shared.gates, &self.shared.gateways);
            graph.read(self.store(), |graph| graph.refers(node, namespace, resource, name))
                || gates.read(self.store(), |gates| gates.refers(namespace, resource, name))
                || gateways.read(self.store(), |all| all.refers(namespace, resource, name))
        };
        authorize::decide(user, asked, World { state: &state, roles: &roles, refers: &refers })
    }

    /// The same as a bare answer.
    pub(crate) fn may(&self, user: &User, asked: &Attributes) -> bool {
        self.decide(user, asked) == Decision::Allowed
    }

    /// Refuses what a user may not do, in Kubernetes' own words.
    pub(crate) fn authorize(&self, user: &User, asked: &Attributes) -> Result<(), ApiError> {
        match self.decide(user, asked) {
            Decision::Allowed => Ok(()),
            Decision::Denied(reason) => Err(authorize::forbidden(user, asked, &reason)),
        }
    }
}

//! `/ui/past`: one object as it was at some time of the last day, also if it is gone since.
//!
//! A read like any other: it needs the right to get the object. Of a Secret the values stay out:
//! they may have been changed because somebody had seen them.

use super::{
    super::{ApiServer, custom, errors::ApiError, request::Attributes, stored, verbs::read},
    past::PastError,
    question::Question,
};
use axum::{Json, extract::State};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Answers `GET /ui/past?group=apps&version=v1&resource=deployments&namespace=shop&name=cart&at=…`,
/// the time in seconds since 1970; without a name it says since when the past is known.
pub async fn object(
    State(api): State<ApiServer>,
    Question { user, query }: Question,
) -> Result<Json<Value>, ApiError> {
    let text = |name: &str| query.get(name).unwrap_or("").to_owned();
    read::in_touch(&api).await?;
    if query.get("name").is_none() {
        let since = api.past().since(api.store());
        let told = json!({ "since": since.at.to_string(), "limit": since.limit.word() });
        return Ok(Json(told));
    }
    let asked = Attributes {
        verb: "get".to_owned(),
        is_resource: true,
        group: text("group"),
        version: text("version"),
        namespace: text("namespace"),
        resource: text("resource"),
        name: text("name"),
        named: true,
        path: "/ui/past".to_owned(),
        ..Attributes::default()
    };
    api.authorize(&user, &asked)?;
    let kind = api.catalog().kind(&asked.group, &asked.version, &asked.resource);
    let kind = kind.filter(|kind| kind.stored_as().is_some()).ok_or(ApiError::NoSuchPath)?;
    let at = query.number("at")?.ok_or_else(|| {
        ApiError::BadRequest("the query must say at which time, in seconds since 1970".to_owned())
    })?;
    let at = moment(at)?;
    let key = stored::key(kind, &asked.namespace, &asked.name);
    let then = api.past().state_at(api.store(), &key, at).map_err(refused)?;
    let entry = then.get(&key).ok_or_else(|| ApiError::not_found(kind, asked.name.as_str()))?;
    let objects = custom::into_version(&api, kind, vec![stored::decode(kind, entry)]).await?;
    let mut object = objects.into_iter().next().ok_or(ApiError::NoSuchPath)?;
    if (kind.group, kind.plural) == ("", "secrets")
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("data");
    }
    Ok(Json(object))
}

/// A time that somebody names.
pub fn moment(seconds: i64) -> Result<Timestamp, ApiError> {
    Timestamp::from_second(seconds)
        .map_err(|_| ApiError::BadRequest(format!("{seconds} is no time in seconds since 1970")))
}

pub fn refused(error: PastError) -> ApiError {
    ApiError::BadRequest(error.to_string())
}

#[cfg(test)]
mod tests {
    use crate::apiserver::{
        User,
        tests::script::{Server, admin, text},
    };

    #[tokio::test]
    async fn an_object_is_there_as_it_was() {
        let server = Server::start().await;
        server.api.past().catch_up(server.api.store());
        let maps = "/api/v1/namespaces/default/configmaps";
        server.ok("POST", maps, r#"{"metadata":{"name":"m"},"data":{"a":"1"}}"#).await;
        server.ok("DELETE", &format!("{maps}/m"), "").await;
        let ask = async |user: User, path: String| {
            let response = server.response(&user, "GET", &path, "", "").await;
            (response.status().as_u16(), text(response).await)
        };
        let now = jiff::Timestamp::now().as_second();
        let of = |name: &str, at: i64| {
            format!("/ui/past?version=v1&resource=configmaps&namespace=default&name={name}&at={at}")
        };
        let (code, told) = ask(admin(), of("m", now + 60)).await;
        assert!(code == 404 && told.contains("not found"), "{code} {told}");
        let (code, told) = ask(admin(), of("m", now - 90_000)).await;
        assert!(code == 400 && told.contains("and not before"), "{code} {told}");
        let (code, told) = ask(User::new("anna", &[]), of("m", now)).await;
        assert!(code == 403 && told.contains("configmaps"), "{code} {told}");
        let (code, told) = ask(admin(), "/ui/past".to_owned()).await;
        assert!(code == 200 && told.contains(r#""limit":"start""#), "{code} {told}");
        let events = "/ui/past?version=v1&resource=events&namespace=default&name=e&at=";
        let (code, told) = ask(admin(), format!("{events}{now}")).await;
        assert!(code == 400 && told.contains("are not kept"), "{code} {told}");
        server.api.store().shutdown().await.expect("it stops");
        for path in [of("m", now), "/ui/past".to_owned(), "/ui/history".to_owned()] {
            let (code, told) = ask(admin(), path).await;
            assert_eq!(code, 503, "a member that is not in touch tells nothing old: {told}");
        }
    }
}

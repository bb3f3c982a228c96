//! The members of the control plane, as operators see and change them, and the door for new ones.
//!
//! ```text
//! GET    /wherry/v1/members        who there is, and how far
//! POST   /wherry/v1/members        a new one asks to be taken in (with a token made for that)
//! DELETE /wherry/v1/members/{id}   it is one no more
//! POST   /wherry/v1/leader         {"member": ID or null}: that one, or another, leads from now on
//! ```
//!
//! Any member answers; what changes the membership the store brings to the leader.

use super::{ApiServer, errors::ApiError};
use crate::member::join::{Answer, Question};
use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use wherry_store::{MemberId, MemberStatus, MembershipError, Peer};

/// A member's name: what may stand in a table's cell and in a file's name.
const NAME_BYTES_MAX: usize = 63;

/// A row of `wherry member list`.
#[derive(Serialize)]
struct Row {
    name: String,
    id: MemberId,
    role: String,
    address: String,
    /// None while it does not answer.
    applied: Option<u64>,
    /// In hex: JSON's numbers are too small.
    hash: Option<String>,
    quarantined: Option<String>,
    /// Its disk is nearly full; with a majority of them, creates and updates are refused.
    disk_full: bool,
}

impl From<MemberStatus> for Row {
    fn from(member: MemberStatus) -> Row {
        Row {
            name: member.name,
            id: member.id,
            role: member.role.to_string(),
            address: member.address,
            applied: member.applied,
            hash: member.hash.map(|hash| format!("{hash:032x}")),
            quarantined: member.quarantined,
            disk_full: member.disk_full,
        }
    }
}

#[derive(Serialize)]
pub struct List {
    members: Vec<Row>,
}

/// `GET /wherry/v1/members`.
pub async fn list(State(api): State<ApiServer>) -> Json<List> {
    let members = api.store().members().await;
    Json(List { members: members.into_iter().map(Row::from).collect() })
}

/// `POST /wherry/v1/members`: authorisation has let only tokens for members and administrators
/// through.
pub async fn join(
    State(api): State<ApiServer>,
    question: Result<Json<Question>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(question) = question.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    check(&question)?;
    check_own(&api).await?;
    let address = question.address.to_string();
    let id = api.store().add_learner(&question.name, &address).await.map_err(failed)?;
    let shared = api.pki().shared();
    let authorities = shared.map_err(|error| ApiError::Internal(error.to_string()))?;
    tracing::info!(member = question.name, id, address, "a new member was taken in");
    let cluster = format!("{:032x}", api.store().cluster_id());
    let keyring = api.store().keyring().map(|keyring| keyring.text());
    let answer = Answer { cluster, id, authorities, keyring };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// One that has moved could not be found by the new member, which then would never get to vote: the
/// cluster must know the new address first.
async fn check_own(api: &ApiServer) -> Result<(), ApiError> {
    let members = api.store().members().await;
    let own = members.iter().find(|member| member.id == api.store().member_id());
    let here = api.advertise().to_string();
    let Some(own) = own.filter(|own| own.address != here) else {
        return Ok(());
    };
    let settled = api.store().settle_at(&own.name, &here).await;
    let (name, known) = (own.name.clone(), own.address.clone());
    settled.map_err(|error| ApiError::Moved { name, known, here, why: error.to_string() })
}

fn check(question: &Question) -> Result<(), ApiError> {
    let name = question.name.as_str();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(ApiError::BadRequest(format!(
            "{name:?} is no name for a member: 1 to {NAME_BYTES_MAX} letters, digits, and -._ are \
             allowed; give one with --name"
        )));
    }
    if question.address.ip().is_unspecified() || question.address.port() == 0 {
        return Err(ApiError::BadRequest(format!(
            "other members cannot reach {}; say where they can with --advertise ADDRESS:PORT",
            question.address
        )));
    }
    Ok(())
}

/// `DELETE /wherry/v1/members/{id}`.
pub async fn remove(
    State(api): State<ApiServer>,
    Path(id): Path<MemberId>,
) -> Result<Response, ApiError> {
    let members = api.store().members().await;
    api.store().remove(id).await.map_err(failed)?;
    tracing::info!(member = id, "a member was removed");
    let gone = members.into_iter().find(|member| member.id == id);
    if let (Some(others), Some(gone)) = (api.others(), gone) {
        others.peers.tell_removed(&Peer { id, address: gone.address }).await;
    }
    Ok(Json(serde_json::json!({ "removed": id })).into_response())
}

#[derive(Deserialize)]
pub struct Transfer {
    member: Option<MemberId>,
}

/// `POST /wherry/v1/leader`.
pub async fn transfer(
    State(api): State<ApiServer>,
    to: Result<Json<Transfer>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(to) = to.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let leader = api.store().transfer(to.member).await.map_err(failed)?;
    Ok(Json(serde_json::json!({ "leader": leader })).into_response())
}

fn failed(error: MembershipError) -> ApiError {
    ApiError::Membership(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        let of = |name: &str, address: &str| {
            let address = address.parse().expect("an address");
            let checked = check(&Question { name: name.to_owned(), address });
            checked.map_or_else(|error| error.to_string(), |()| "ok".to_owned())
        };
        assert_eq!(of("m-1.b", "10.0.0.1:6443"), "ok");
        assert!(of("a b", "10.0.0.1:6443").starts_with("\"a b\" is no name for a member: 1 to 63"));
        assert!(of("", "10.0.0.1:6443").contains("--name"));
        assert!(of("m", "0.0.0.0:6443").contains("--advertise"));
        assert!(of("m", "10.0.0.1:0").contains("cannot reach 10.0.0.1:0"));
    }
}

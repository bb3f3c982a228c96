//! Who may see, change and become members, and what a new one is told.

use super::script::{Server, admin, text};
use crate::apiserver::User;
use serde_json::{Value, json};

const MEMBERS: &str = "/wherry/v1/members";

async fn as_user(
    server: &Server,
    user: &User,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, Value) {
    let response = server.response(user, method, path, "application/json", body).await;
    let code = response.status().as_u16();
    (code, serde_json::from_str(&text(response).await).unwrap_or_default())
}

#[tokio::test]
async fn a_server_joins_with_a_token_for_members_only() {
    let server = Server::start().await;
    let question = json!({"name": "b", "address": "127.0.0.1:7"}).to_string();
    let bootstrappers =
        |more: &str| User::new("system:bootstrap:abcdef", &["system:bootstrappers", more]);
    let node = bootstrappers("system:bootstrappers:wherry:node");
    let (code, _) = as_user(&server, &node, "POST", MEMBERS, &question).await;
    assert_eq!(code, 403, "a node's token is not enough");

    let member = bootstrappers("system:bootstrappers:wherry:member");
    let (code, answer) = as_user(&server, &member, "POST", MEMBERS, &question).await;
    assert_eq!(code, 201, "{answer}");
    let first = answer["id"].as_u64().expect("an id");
    assert_eq!(answer["cluster"].as_str().map(str::len), Some(32));
    for name in ["ca.key", "traffic-ca.key", "peer-ca.key"] {
        assert!(
            answer["authorities"][name].as_str().is_some_and(|pem| pem.contains("PRIVATE KEY"))
        );
    }
    for path in [MEMBERS, "/wherry/v1/members/1", "/api/v1/secrets"] {
        let (code, _) = as_user(&server, &member, "GET", path, "").await;
        assert_eq!(code, 403, "{path}: the token is for joining alone");
    }
    // An answer that was lost is asked for again; the id is another one.
    let (code, answer) = as_user(&server, &member, "POST", MEMBERS, &question).await;
    assert_eq!(code, 201, "{answer}");
    assert!(answer["id"].as_u64().is_some_and(|second| second > first), "{answer}");
    let (code, answer) = as_user(&server, &member, "POST", MEMBERS, "{}").await;
    assert_eq!(code, 400, "{answer}");
}

#[tokio::test]
async fn operators_see_and_change_the_members() {
    let server = Server::start().await;
    let list = server.ok("GET", MEMBERS, "").await;
    let only = &list["members"][0];
    assert_eq!((&only["id"], &only["role"]), (&json!(1), &json!("leader")));
    assert!(only["applied"].is_u64() && only["hash"].as_str().is_some_and(|hash| hash.len() == 32));
    let (code, answer) = server.send("DELETE", "/wherry/v1/members/1", "").await;
    assert_eq!(code, 409, "{answer}");
    assert!(answer.contains("the last voter cannot be removed"), "{answer}");
    let (code, _) = server.send("DELETE", "/wherry/v1/members/99", "").await;
    assert_eq!(code, 404);
    let leader = "/wherry/v1/leader";
    let (code, _) = as_user(&server, &admin(), "POST", leader, r#"{"member":99}"#).await;
    assert_eq!(code, 404);
    let (_, answer) = as_user(&server, &admin(), "POST", leader, r#"{"member":1}"#).await;
    assert_eq!(answer["leader"], 1);
}

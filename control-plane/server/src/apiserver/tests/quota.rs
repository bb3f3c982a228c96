//! A quota holds at every revision, whoever writes what at once.

use super::script::Server;
use crate::apiserver::stored;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use wherry_store::Change;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const PLACES: usize = 5;
const WRITERS: usize = 6;
const ATTEMPTS: usize = 60;

/// Creates and deletes maps; tells how many got in.
async fn writer(server: Arc<Server>, writer: usize) -> usize {
    let mut taken = 0;
    for attempt in 0..ATTEMPTS {
        let name = format!("m-{writer}-{attempt}");
        let body = json!({"metadata": {"name": name}}).to_string();
        let (code, text) = server.send("POST", MAPS, &body).await;
        match code.as_u16() {
            201 => {
                taken += 1;
                let (code, text) = server.send("DELETE", &format!("{MAPS}/{name}"), "").await;
                assert_eq!(code, 200, "{text}");
            }
            403 => assert!(text.contains("exceeded quota: maps"), "{text}"),
            409 => assert!(text.contains("too many writers"), "{text}"),
            _ => panic!("{code} {text}"),
        }
    }
    taken
}

/// Claims again and again that nothing is used, as a controller does that has seen too little.
async fn liar(server: Arc<Server>, writing: Arc<AtomicUsize>) {
    let lie = json!({"status": {"used": {"count/configmaps": "0"}}}).to_string();
    let path = format!("{QUOTAS}/maps/status");
    while writing.load(Relaxed) > 0 {
        let kind = "application/merge-patch+json";
        let admin = super::script::admin();
        let code = server.response(&admin, "PATCH", &path, kind, &lie).await.status();
        assert!([200, 409].contains(&code.as_u16()), "{code}");
    }
}

/// Limits more, and less again: each time the status has to be counted anew.
async fn administrator(server: Arc<Server>, writing: Arc<AtomicUsize>) {
    let path = format!("{QUOTAS}/maps");
    let admin = super::script::admin();
    for secrets in [json!("9"), json!(null)].iter().cycle() {
        if writing.load(Relaxed) == 0 {
            return;
        }
        let patch = json!({"spec": {"hard": {"count/secrets": secrets}}}).to_string();
        let kind = "application/merge-patch+json";
        let code = server.response(&admin, "PATCH", &path, kind, &patch).await.status();
        assert!([200, 409].contains(&code.as_u16()), "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_is_never_exceeded() {
    let server = Arc::new(Server::start().await);
    let hard = json!({"count/configmaps": PLACES.to_string()});
    let quota = json!({"metadata": {"name": "maps"}, "spec": {"hard": hard}});
    server.ok("POST", QUOTAS, &quota.to_string()).await;
    // Four places are always taken, so the writers fight for the fifth.
    for number in 1..PLACES {
        let body = json!({"metadata": {"name": format!("stays-{number}")}}).to_string();
        server.ok("POST", MAPS, &body).await;
    }
    let row = wherry_resources::kind("", "v1", "configmaps").expect("a built-in kind");
    let store = server.api.store().clone();
    let mut events = store
        .watch(stored::prefix(row, Some("default")), store.current().revision())
        .expect("the present is in the window");

    let writing = Arc::new(AtomicUsize::new(WRITERS));
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let (server, writing) = (server.clone(), writing.clone());
        writers.spawn(async move {
            let taken = writer(server, number).await;
            writing.fetch_sub(1, Relaxed);
            taken
        });
    }
    let others = [
        tokio::spawn(liar(server.clone(), writing.clone())),
        tokio::spawn(administrator(server.clone(), writing.clone())),
    ];
    let taken: usize = writers.join_all().await.into_iter().sum();
    for other in others {
        other.await.expect("no panic");
    }
    let mut stored = PLACES - 1;
    while let Some(event) = events.ready().expect("within the window") {
        match &event.change {
            Change::Put(_) => stored += 1,
            Change::Delete(_) => stored -= 1,
        }
        assert!(stored <= PLACES, "{stored} at revision {}", event.revision);
    }
    assert!(taken > 0, "nobody ever got in");
    assert_eq!(stored, PLACES - 1);
    // What is free can be taken, and what is told is true.
    let body = json!({"metadata": {"name": "last"}}).to_string();
    server.ok("POST", MAPS, &body).await;
    let quota = server.ok("GET", &format!("{QUOTAS}/maps"), "").await;
    assert_eq!(quota["status"]["used"]["count/configmaps"], PLACES.to_string());
}

#[tokio::test]
async fn what_is_counted_can_be_scaled() {
    let server = Server::start().await;
    let hard = json!({"count/deployments.apps": "1"});
    let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": hard}});
    server.ok("POST", QUOTAS, &quota.to_string()).await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let labels = json!({"app": "web"});
    let template = json!({
        "metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let spec = json!({"selector": {"matchLabels": labels}, "template": template});
    let web = json!({"metadata": {"name": "web"}, "spec": spec});
    server.ok("POST", deployments, &web.to_string()).await;

    let (admin, kind) = (super::script::admin(), "application/merge-patch+json");
    let (path, patch) = (format!("{deployments}/web/scale"), r#"{"spec":{"replicas":3}}"#);
    let code = server.response(&admin, "PATCH", &path, kind, patch).await.status();
    assert_eq!(code, 200);
    let web = server.ok("GET", &format!("{deployments}/web"), "").await;
    assert_eq!(web["spec"]["replicas"], 3);
}

//! Watches, as streams of lines and through kube's own client.

use super::script::{Server, admin, masked};
use axum::body::Body;
use expect_test::expect;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ListParams, PostParams, WatchParams},
};
use std::time::Duration;
use wherry_store::Window;

const ALL: &str = "/api/v1/namespaces/default/configmaps";

async fn open(server: &Server, path: &str) -> Body {
    let response = server.response(&admin(), "GET", path, "", "").await;
    assert_eq!(response.status(), 200);
    response.into_body()
}

/// The next lines of a stream, shortened to what matters here.
async fn lines(body: &mut Body, count: usize) -> String {
    let mut out = String::new();
    while out.lines().count() < count {
        let Some(frame) = body.frame().await else {
            return out + "end\n";
        };
        let bytes = frame.expect("a stream has no errors").into_data().expect("no trailers");
        for line in String::from_utf8_lossy(&bytes).lines() {
            let event: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
            let metadata = &event["object"]["metadata"];
            let text = format!(
                "{} {} {}",
                event["type"].as_str().unwrap_or("?"),
                metadata["name"].as_str().unwrap_or("-"),
                event["object"]["data"]
            );
            out.push_str(text.trim_end_matches(" null"));
            out.push('\n');
        }
    }
    out
}

async fn put(server: &Server, name: &str, app: &str, value: &str) {
    let body = format!(
        r#"{{"metadata":{{"name":{name:?},"labels":{{"app":{app:?}}}}},"data":{{"k":{value:?}}}}}"#
    );
    let (code, _) = server.send("PUT", &format!("{ALL}/{name}"), &body).await;
    if code == 404 {
        server.ok("POST", ALL, &body).await;
    }
}

#[tokio::test]
async fn events_follow_the_objects_that_are_there() {
    let server = Server::start().await;
    put(&server, "a", "x", "1").await;
    let mut body = open(&server, &format!("{ALL}?watch=true")).await;
    assert_eq!(lines(&mut body, 1).await, "ADDED a {\"k\":\"1\"}\n");
    put(&server, "a", "x", "2").await;
    put(&server, "a", "x", "2").await;
    put(&server, "b", "x", "1").await;
    server.ok("DELETE", &format!("{ALL}/a"), "").await;
    let expected = "MODIFIED a {\"k\":\"2\"}\nADDED b {\"k\":\"1\"}\nDELETED a {\"k\":\"2\"}\n";
    assert_eq!(lines(&mut body, 3).await, expected);
    server.shutdown.cancel();
    assert_eq!(lines(&mut body, 1).await, "end\n");
}

/// Through a member that hears nothing of the cluster any more, nothing would be seen to happen.
#[tokio::test]
async fn a_member_that_is_not_in_touch_ends_its_watches() {
    let server = Server::start().await;
    let mut body = open(&server, &format!("{ALL}?watch=true")).await;
    server.api.end_watches();
    assert_eq!(lines(&mut body, 1).await, "end\n");
    let mut body = open(&server, &format!("{ALL}?watch=true")).await;
    put(&server, "a", "x", "1").await;
    assert_eq!(lines(&mut body, 1).await, "ADDED a {\"k\":\"1\"}\n");
    server.shutdown.cancel();
    assert_eq!(lines(&mut body, 1).await, "end\n");
}

/// Nor may it answer with what it has, not even those who take what is old.
#[tokio::test]
async fn a_member_whose_store_does_not_serve_shows_nothing() {
    let server = Server::start().await;
    put(&server, "a", "x", "1").await;
    put(&server, "b", "x", "1").await;
    let page = server.ok("GET", &format!("{ALL}?limit=1"), "").await;
    let token = page["metadata"]["continue"].as_str().expect("there is another page");
    let next = format!("limit=1&continue={token}");
    server.ok("GET", &format!("{ALL}?{next}"), "").await;
    server.api.store().shutdown().await.expect("it stops");
    for query in [
        "",
        next.as_str(),
        "resourceVersion=0",
        "resourceVersion=1",
        "resourceVersion=1&limit=5",
        "watch=true",
        "watch=true&resourceVersion=0",
        "watch=true&resourceVersion=1",
    ] {
        let (code, text) = server.send("GET", &format!("{ALL}?{query}"), "").await;
        assert_eq!(code, 503, "{query}: {text}");
    }
}

#[tokio::test]
async fn many_objects_come_once_and_in_their_order() {
    let server = Server::start().await;
    let names: Vec<String> = (0..120).map(|number| format!("m-{number:03}")).collect();
    // More than is made and sent at once.
    let note = "x".repeat(400);
    for name in &names {
        let metadata = format!(r#"{{"name":"{name}","annotations":{{"note":"{note}"}}}}"#);
        server.ok("POST", ALL, &format!(r#"{{"metadata":{metadata}}}"#)).await;
    }
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let path = format!("{ALL}?watch=true&{initial}&allowWatchBookmarks=true");
    let mut body = open(&server, &path).await;
    let told = lines(&mut body, names.len() + 1).await;
    let added: String = names.iter().map(|name| format!("ADDED {name}\n")).collect();
    assert_eq!(told, added + "BOOKMARK -\n");
    put(&server, "m-007", "x", "1").await;
    assert_eq!(lines(&mut body, 1).await, "MODIFIED m-007 {\"k\":\"1\"}\n");
}

#[tokio::test]
async fn a_selector_makes_transitions() {
    let server = Server::start().await;
    put(&server, "a", "x", "1").await;
    let list = server.ok("GET", ALL, "").await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or("").to_owned();
    let selector = "watch=1&labelSelector=app%3Dx";
    let mut body = open(&server, &format!("{ALL}?{selector}&resourceVersion={revision}")).await;
    put(&server, "a", "x", "2").await;
    put(&server, "a", "y", "3").await;
    put(&server, "a", "y", "4").await;
    put(&server, "a", "x", "5").await;
    server.ok("DELETE", &format!("{ALL}/a"), "").await;
    expect![[r#"
        MODIFIED a {"k":"2"}
        DELETED a {"k":"2"}
        ADDED a {"k":"5"}
        DELETED a {"k":"5"}
    "#]]
    .assert_eq(&lines(&mut body, 4).await);
}

#[tokio::test]
async fn one_object_is_watched_by_its_name() {
    let server = Server::start().await;
    put(&server, "a", "x", "1").await;
    put(&server, "ab", "x", "1").await;
    let path = format!("{ALL}?watch=true&fieldSelector=metadata.name%3Da&resourceVersion=0");
    let mut body = open(&server, &path).await;
    put(&server, "ab", "x", "2").await;
    put(&server, "a", "x", "2").await;
    assert_eq!(lines(&mut body, 2).await, "ADDED a {\"k\":\"1\"}\nMODIFIED a {\"k\":\"2\"}\n");
}

#[tokio::test]
async fn a_revision_that_is_too_old_ends_the_stream() {
    let server = Server::with_window(Window { revisions: 1, ..Window::default() }).await;
    for value in ["1", "2", "3"] {
        put(&server, "a", "x", value).await;
    }
    let mut body = open(&server, &format!("{ALL}?watch=true&resourceVersion=1")).await;
    let frame = body.frame().await.expect("one line").expect("no error");
    let line = frame.into_data().expect("no trailers");
    let line = String::from_utf8_lossy(&line).into_owned();
    assert!(line.starts_with("{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\""), "{line}");
    assert!(line.contains("too old resource version: 1 ("), "{line}");
    assert!(line.contains("\"reason\":\"Expired\",\"code\":410}"), "{line}");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn bookmarks_and_the_end_of_the_initial_events() {
    let server = Server::start().await;
    put(&server, "a", "x", "1").await;
    let query = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true\
        &resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
    let mut body = open(&server, &format!("{ALL}?{query}")).await;
    let mut out = String::new();
    while let Some(frame) = body.frame().await {
        let bytes = frame.expect("no error").into_data().expect("no trailers");
        out.push_str(&masked(&String::from_utf8_lossy(&bytes)));
    }
    expect![[r#"
        {"type":"ADDED","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"UID","resourceVersion":"R1","creationTimestamp":"-","labels":{"app":"x"}},"data":{"k":"1"}}}
        {"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"R1","creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}}}}
        {"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"R1","creationTimestamp":null}}}
    "#]].assert_eq(&out);
}

#[tokio::test]
async fn a_table_shows_its_columns_once() {
    let server = Server::start().await;
    put(&server, "a", "x", "1").await;
    let header = "accept: application/json;as=Table;v=v1;g=meta.k8s.io";
    let path = format!("{ALL}?watch=true");
    let mut body = server.response(&admin(), "GET", &path, header, "").await.into_body();
    put(&server, "a", "x", "2").await;
    for columns in [3, 0] {
        let frame = body.frame().await.expect("a line").expect("no error");
        let event: serde_json::Value =
            serde_json::from_slice(&frame.into_data().expect("no trailers")).expect("JSON");
        let found = event["object"]["columnDefinitions"].as_array().map(Vec::len);
        assert_eq!((found, &event["object"]["rows"][0]["cells"][0]), (Some(columns), &"a".into()));
    }
}

#[tokio::test]
async fn kube_clients_work_in_process() {
    let server = Server::start().await;
    let client = server.api.client(admin());
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let mut map = ConfigMap::default();
    map.metadata.name = Some("a".to_owned());
    let created = maps.create(&PostParams::default(), &map).await.expect("it is new");
    assert!(created.metadata.uid.is_some());
    let stream = maps.watch(&Default::default(), "0").await.expect("a watch opens");
    let mut stream = std::pin::pin!(stream);
    let event = futures::StreamExt::next(&mut stream);
    let event =
        tokio::time::timeout(Duration::from_secs(120), event).await.expect("an event comes");
    let Some(Ok(kube::api::WatchEvent::Added(found))) = event else { panic!("{event:?}") };
    assert_eq!(found.metadata.uid, created.metadata.uid);
    let error = maps.create(&PostParams::default(), &map).await.expect_err("it is there");
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "AlreadyExists"));
}

#[tokio::test]
async fn who_never_reads_the_managers_of_fields_is_spared_them() {
    let server = Server::start().await;
    let everybody = server.api.client(admin());
    let spared = server.api.client_without_managers(admin());
    for (name, client, told) in [("a", everybody, true), ("b", spared, false)] {
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let before = maps.list(&ListParams::default()).await.expect("a list");
        let before = before.metadata.resource_version.expect("a list has a revision");
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.to_owned());
        map.data = Some([("k".to_owned(), "v".to_owned())].into());
        let created = maps.create(&PostParams::default(), &map).await.expect("it is new");
        let stream = maps.watch(&WatchParams::default(), &before).await.expect("a watch opens");
        let mut stream = std::pin::pin!(stream);
        let event = futures::StreamExt::next(&mut stream);
        let event =
            tokio::time::timeout(Duration::from_secs(120), event).await.expect("an event comes");
        let Some(Ok(kube::api::WatchEvent::Added(seen))) = event else { panic!("{event:?}") };
        let list = maps.list(&ListParams::default()).await.expect("a list");
        let listed = list.items.into_iter().find(|found| found.metadata.name == map.metadata.name);
        for found in [created, seen, listed.expect("it is in the list")] {
            assert_eq!(found.data, map.data);
            assert_eq!(found.metadata.managed_fields.is_some(), told, "{name}");
        }
    }
}

#[tokio::test]
async fn a_revision_that_is_not_there_yet_is_waited_for_in_silence() {
    let server = Server::start().await;
    put(&server, "a", "x", "1").await;
    let list = server.ok("GET", ALL, "").await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or("");
    let revision: u64 = revision.parse().expect("a revision is a number");
    let mut body = open(&server, &format!("{ALL}?watch=1&resourceVersion={}", revision + 2)).await;
    put(&server, "b", "x", "1").await;
    put(&server, "c", "x", "1").await;
    put(&server, "d", "x", "1").await;
    assert_eq!(lines(&mut body, 1).await, "ADDED d {\"k\":\"1\"}\n");
}

#[tokio::test]
async fn a_browser_watches_over_a_web_socket() {
    let server = Server::start().await;
    put(&server, "a", "x", "1").await;
    let mut socket = server.socket(&format!("{ALL}?watch=1"), "").await;
    assert!(socket.head.starts_with("HTTP/1.1 101"), "{}", socket.head);
    let (opcode, text) = socket.frame().await;
    assert_eq!(opcode, 0x81, "a text frame");
    let event: serde_json::Value = serde_json::from_slice(&text).expect("a frame is an event");
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["name"]),
        (&"ADDED".into(), &"a".into())
    );
    // The server's end closes the socket in order: opcode 8.
    server.shutdown.cancel();
    assert_eq!(socket.frame().await.0, 0x88);
}

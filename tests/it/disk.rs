//! A member whose disk fills up, on a small file system of its own: what is refused, what goes on,
//! who is told, and that it ends by itself.

use std::time::Duration;

use serde_json::Value;
use wherry_tests::chaos::disk::SmallDisk;
use wherry_tests::http::{Answer, Client};
use wherry_tests::server::{Server, ServerOptions};
use wherry_tests::{l3, own_address};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TIMEOUT: Duration = Duration::from_secs(60);

async fn call(client: &mut Client, method: http::Method, path: &str, body: &str) -> Answer {
    let body = bytes::Bytes::from(body.to_owned());
    client.call(method, path, body, TIMEOUT).await.expect("the member answers")
}

async fn create(client: &mut Client, name: &str) -> Answer {
    let body = format!(r#"{{"metadata":{{"name":"{name}","finalizers":["test.dev/kept"]}}}}"#);
    call(client, http::Method::POST, MAPS, &body).await
}

/// The condition of the member's store, as `kubectl get componentstatuses` has it.
async fn pressure(client: &mut Client) -> (String, String) {
    let path = "/api/v1/componentstatuses/etcd-0";
    let answer = call(client, http::Method::GET, path, "").await;
    let component = answer.json().expect("JSON");
    let status = |kind: &str| {
        let conditions = component["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind).cloned();
        found.map_or(Value::Null, |found| found["status"].clone()).to_string()
    };
    (status("Healthy"), status("DiskPressure"))
}

/// Waits until creates are answered like this.
async fn until_created(client: &mut Client, prefix: &str, wanted: u16) -> Answer {
    let begun = std::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for number in 0.. {
        let answer = create(client, &format!("{prefix}-{number}")).await;
        if answer.status == wanted {
            return answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "still {}", answer.status);
        ticks.tick().await;
    }
    unreachable!("it ends by one of both");
}

#[tokio::test]
async fn a_full_disk_refuses_what_fills_it_and_says_so() {
    if !l3() || !SmallDisk::possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let disk = SmallDisk::mount(folder.path()).expect("it can be mounted");
    let listen = (own_address(), 6443).into();
    let options = ServerOptions::new("m1", &disk.folder.join("data"), listen);
    let mut server = Server::start(options).expect("the binary starts");
    let credentials = server.ready(Duration::from_secs(60)).await.expect("it serves");
    let mut client = Client::new(listen, credentials);
    assert_eq!(create(&mut client, "before").await.status, 201);
    let (healthy, full) = (r#""True""#.to_owned(), r#""False""#.to_owned());
    assert_eq!(pressure(&mut client).await, (healthy.clone(), full.clone()));

    disk.fill(93).expect("it can be filled");
    let refused = until_created(&mut client, "filling", 507).await;
    let status = refused.json().expect("a Status");
    assert_eq!(status["reason"], "InsufficientStorage");
    let update = r#"{"metadata":{"name":"before"},"data":{"a":"b"}}"#;
    let path = format!("{MAPS}/before");
    assert_eq!(call(&mut client, http::Method::PUT, &path, update).await.status, 507);
    assert_eq!(pressure(&mut client).await, (full.clone(), healthy.clone()), "and it says so");
    let metrics = call(&mut client, http::Method::GET, "/metrics", "").await;
    assert!(wherry_tests::text(&metrics.body).contains("wherry_store_disk_full 1"));

    // Reads and deletes go on, also of what a finalizer holds.
    assert_eq!(call(&mut client, http::Method::GET, &path, "").await.status, 200);
    assert_eq!(call(&mut client, http::Method::GET, "/readyz", "").await.status, 200);
    assert_eq!(call(&mut client, http::Method::DELETE, &path, "").await.status, 200);
    let released = r#"{"metadata":{"name":"before","finalizers":[]}}"#;
    assert_eq!(call(&mut client, http::Method::PUT, &path, released).await.status, 200);
    assert_eq!(call(&mut client, http::Method::GET, &path, "").await.status, 404);

    // Writes go on by themselves when there is room.
    disk.fill(0).expect("it can be emptied");
    until_created(&mut client, "after", 201).await;
    assert_eq!(pressure(&mut client).await, (healthy, full));
    server.kill();
}

/// A start on a disk where nothing could be created ends at once, and says why.
#[test]
fn a_start_on_a_full_disk_is_refused() {
    if !l3() || !SmallDisk::possible() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let disk = SmallDisk::mount(folder.path()).expect("it can be mounted");
    disk.fill(93).expect("it can be filled");
    let data = disk.folder.join("data").to_string_lossy().into_owned();
    let roles: [&[&str]; 2] = [&["dev"], &["server", "--name", "m1"]];
    for role in roles {
        let data = ["--data-dir", &data, "--listen", "127.0.0.1:0"];
        let output = std::process::Command::new(wherry_tests::wherry())
            .args(role)
            .args(data)
            .output()
            .expect("the binary starts");
        let said = wherry_tests::text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error[WH0004]: "), "{said}");
        assert!(said.contains("MiB") && said.contains("--data-dir DIR"), "{said}");
    }
}

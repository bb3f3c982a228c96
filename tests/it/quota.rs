//! A quota holds whichever members the writers come to: nobody gets in beyond it, and every place
//! that becomes free can be taken again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use wherry_tests::http::{Answer, Client, Credentials};
use wherry_tests::plane::Plane;
use wherry_tests::{DEADLINE, l3, wait_for};

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";
const TIMEOUT: Duration = Duration::from_secs(30);
/// What the quota allows, and how many writers want in at each of the three members.
const PLACES: usize = 20;
const WRITERS: usize = 8;
const ATTEMPTS: usize = 6;

/// A client of each member.
fn clients(plane: &Plane) -> Vec<Client> {
    let of = |index: usize| {
        let server = &plane.servers[index];
        let address: SocketAddr =
            server.url.trim_start_matches("https://").parse().expect("an address");
        let credentials = Credentials::of_kubeconfig(&plane.kubeconfig(index));
        Client::new(address, credentials.expect("a kubeconfig"))
    };
    (0..plane.servers.len()).map(of).collect()
}

/// Sends a request until it gets an answer that is one: whoever meets too many others, or a member
/// that has no leader or does not know what became of the request, tries again. Also tells whether
/// an earlier attempt may have been carried out.
async fn answered(client: &mut Client, method: Method, path: &str, body: &str) -> (Answer, bool) {
    let (begun, mut unknown) = (Instant::now(), false);
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    loop {
        pace.tick().await;
        assert!(begun.elapsed() < DEADLINE, "{method} {path} got no answer");
        let body = bytes::Bytes::from(body.to_owned());
        let Ok(answer) = client.call(method.clone(), path, body, TIMEOUT).await else {
            unknown = true;
            continue;
        };
        let reason = answer.json().map(|status| status["reason"].clone()).unwrap_or_default();
        match answer.status {
            409 if reason == "AlreadyExists" => return (answer, unknown),
            504 => unknown = true,
            409 | 429 | 503 => {}
            _ => return (answer, unknown),
        }
    }
}

/// Creates one map; tells whether it got in. The name is used by nobody else.
async fn create(client: &mut Client, name: &str) -> bool {
    let body = json!({"metadata": {"name": name}}).to_string();
    let (answer, unknown) = answered(client, Method::POST, MAPS, &body).await;
    match answer.status {
        201 | 409 => true,
        // The last place may have been taken by the attempt before.
        403 if unknown => stored(client).await.iter().any(|taken| taken == name),
        403 => false,
        other => panic!("{other}: {:?}", answer.body),
    }
}

async fn stored(client: &mut Client) -> Vec<String> {
    let (answer, _) = answered(client, Method::GET, MAPS, "").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let list: Value = answer.json().expect("a list");
    let items = list["items"].as_array().expect("items").iter();
    items.filter_map(|item| Some(item["metadata"]["name"].as_str()?.to_owned())).collect()
}

/// All writers at all members at once; returns how many got in.
async fn storm(plane: &Plane, round: &str) -> usize {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        for (member, mut client) in clients(plane).into_iter().enumerate() {
            let round = round.to_owned();
            tasks.spawn(async move {
                let mut taken = 0;
                for attempt in 0..ATTEMPTS {
                    let name = format!("{round}-{member}-{writer}-{attempt}");
                    taken += usize::from(create(&mut client, &name).await);
                }
                taken
            });
        }
    }
    tasks.join_all().await.into_iter().sum()
}

/// Storms until every place is taken: a write that nobody knows the end of holds its place until the
/// next writer who is alone counts anew. Returns how many got in.
async fn fill(plane: &Plane, client: &mut Client, round: &str) -> usize {
    let (begun, mut taken, mut storms) = (Instant::now(), 0, 0);
    while stored(client).await.len() < PLACES {
        assert!(begun.elapsed() < DEADLINE, "places stay empty");
        taken += storm(plane, &format!("{round}-{storms}")).await;
        storms += 1;
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_at_three_members() {
    if !l3() {
        return;
    }
    let plane = tokio::task::block_in_place(|| Plane::start(3));
    plane.kubectl_ok(0, &["create", "namespace", "shop"]);
    // Or it would take a place later, which nobody here counts.
    tokio::task::block_in_place(|| {
        wait_for("the namespace has its own map", || {
            let own = ["-n", "shop", "get", "configmap", "kube-root-ca.crt"];
            plane.kubectl(0, &own).status.success().then_some(())
        });
    });
    let hard = format!("--hard=count/configmaps={PLACES}");
    plane.kubectl_ok(1, &["-n", "shop", "create", "quota", "maps", &hard]);
    // A member that has not heard of the quota yet knows nothing to pass on.
    for mut member in clients(&plane) {
        let begun = Instant::now();
        let path = "/api/v1/namespaces/shop/resourcequotas/maps?resourceVersion=0";
        while member.get(path, TIMEOUT).await.is_err() {
            assert!(begun.elapsed() < DEADLINE, "a member never heard of the quota");
        }
    }
    let mut client = clients(&plane).remove(2);
    let before = stored(&mut client).await.len();
    let taken = fill(&plane, &mut client, "first").await;
    let names = stored(&mut client).await;
    assert_eq!(names.len(), PLACES, "{names:?}");
    assert_eq!(taken, PLACES - before);

    // Some go, at other members than where they came; others come in their place at the same time.
    let going: Vec<&String> = names.iter().filter(|name| name.starts_with("first")).collect();
    let going = &going[..going.len() / 2];
    let deletions = async {
        let mut members = clients(&plane);
        for (index, name) in going.iter().enumerate() {
            let path = format!("{MAPS}/{name}");
            let member = &mut members[index % 3];
            let (answer, unknown) = answered(member, Method::DELETE, &path, "").await;
            let gone = answer.status == 200 || (unknown && answer.status == 404);
            assert!(gone, "{}: {:?}", answer.status, answer.body);
        }
    };
    tokio::join!(deletions, storm(&plane, "second"));
    assert!(stored(&mut client).await.len() <= PLACES);
    // What became free after the last attempt is free now.
    fill(&plane, &mut client, "third").await;
    assert_eq!(stored(&mut client).await.len(), PLACES);
    let used = ["-n", "shop", "get", "quota", "maps", "-o", "jsonpath={.status.used}"];
    let all = format!("{{\"count/configmaps\":\"{PLACES}\"}}");
    tokio::task::block_in_place(|| {
        wait_for("all places are counted", || (plane.kubectl_ok(0, &used) == all).then_some(()));
    });
}

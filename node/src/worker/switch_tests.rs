//! What is tried again, and with what.

use super::*;

fn body(text: &'static str) -> http_body_util::Full<Bytes> {
    http_body_util::Full::new(Bytes::from_static(text.as_bytes()))
}

async fn read(body: Body) -> String {
    let bytes = body.collect().await.expect("it does not break").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[tokio::test]
async fn a_body_comes_back_if_nobody_has_read_of_it() {
    let mut replay = Replay::new(body("all of it"));
    let untouched = replay.lend(false).expect("the first attempt");
    assert_eq!(untouched.size_hint().exact(), Some(9));
    drop(untouched);
    let again = replay.lend(false).expect("the second attempt");
    assert_eq!(read(again).await, "all of it");
    assert!(replay.lend(false).is_none());
    assert!(replay.lend(true).is_none());
}

#[tokio::test]
async fn the_last_attempt_gets_the_body_itself_and_an_empty_one_is_lent_for_ever() {
    let mut replay = Replay::new(body("x"));
    drop(replay.lend(false));
    assert_eq!(read(replay.lend(true).expect("the last attempt")).await, "x");
    let mut replay = Replay::new(body(""));
    assert!(replay.is_empty());
    for last in [false, false, true] {
        assert_eq!(read(replay.lend(last).expect("nothing is there again")).await, "");
    }
}

#[test]
fn refusals_survive_the_way_between_workers() {
    let address: SocketAddr = "10.0.0.1:80".parse().expect("an address");
    let refusals = [
        (Refusal::Gone(address), 503, true),
        (Refusal::Busy, 503, true),
        (Refusal::Deadline, 504, false),
        (Refusal::OutOfMemory, 502, false),
        (Refusal::Failed, 502, false),
        (Refusal::BadRequest, 400, false),
    ];
    for (refusal, status, unsent) in refusals {
        assert_eq!(Refusal::from_word(&refusal.word(), address), refusal);
        assert_eq!((refusal.status().as_u16(), refusal.is_unsent()), (status, unsent));
    }
    let newer = HeaderValue::from_static("tired");
    assert_eq!(Refusal::from_word(&newer, address), Refusal::Failed);
}

/// A request as it goes to a peer: method, URI and headers.
#[track_caller]
fn check_remote(request: http::request::Builder, expected: &str) {
    let (parts, ()) = request.body(()).expect("a request").into_parts();
    let nothing = Body::new(Empty::new().map_err(|never| match never {}));
    let sent = remote(parts, nothing, "10.0.0.1:80".parse().expect("an address"));
    let mut lines: Vec<String> = sent
        .headers()
        .iter()
        .map(|(name, value)| format!("\n{name}: {}", value.to_str().expect("text")))
        .collect();
    lines.sort();
    assert_eq!(format!("{} {}{}", sent.method(), sent.uri(), lines.concat()), expected);
}

#[test]
fn requests_to_peers_are_absolute_and_name_the_pod() {
    let get = || Request::get("/a?b=c");
    check_remote(
        get().header("host", "shop.example:8080").header("x", "1"),
        "GET http://shop.example:8080/a?b=c\nwherry-pod: 10.0.0.1:80\nx: 1",
    );
    // Nobody but the sender says which Pod is meant.
    check_remote(
        get().header("wherry-pod", "10.0.0.9:1"),
        "GET http://10.0.0.1:80/a?b=c\nwherry-pod: 10.0.0.1:80",
    );
    check_remote(Request::options("http://cart"), "OPTIONS http://cart/\nwherry-pod: 10.0.0.1:80");
    check_remote(
        get().header("host", "no authority"),
        "GET http://10.0.0.1:80/a?b=c\nwherry-pod: 10.0.0.1:80",
    );
}

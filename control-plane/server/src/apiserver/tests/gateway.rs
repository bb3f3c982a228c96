//! The definitions of the Gateway API: what they take, fill in and refuse.

use super::custom::DEFINITIONS;
use super::script::Server;
use crate::controllers::bootstrap::gateway::DEFINITIONS as GATEWAY;
use expect_test::{Expect, expect};
use serde_json::{Value, json};

const GROUP: &str = "/apis/gateway.networking.k8s.io";

async fn server() -> Server {
    let server = Server::start().await;
    for definition in &*GATEWAY {
        let made = server.ok("POST", DEFINITIONS, &definition.to_string()).await;
        // Nothing in them is unknown to the API.
        assert_eq!(made["spec"]["versions"], definition["spec"]["versions"]);
    }
    server
}

fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).expect("YAML")
}

/// What is said when an object with this spec is created.
async fn created(server: &Server, path: &str, spec: &str) -> Result<Value, String> {
    let path = format!("{GROUP}/{path}?fieldValidation=Strict");
    let body = json!({"metadata": {"generateName": "x-"}, "spec": yaml(spec)});
    let (code, answer) = server.send("POST", &path, &body.to_string()).await;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    if code == 201 { Ok(answer) } else { Err(answer["message"].to_string()) }
}

const ROUTES: &str = "v1/namespaces/default/httproutes";
const GATEWAYS: &str = "v1/namespaces/default/gateways";

#[tokio::test]
async fn what_is_left_out_is_filled_in() {
    let server = server().await;
    let route = created(
        &server,
        ROUTES,
        "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: web, port: 80}]}, {filters: [{type: \
         RequestRedirect, requestRedirect: {scheme: https}}]}]}",
    );
    let route = route.await.expect("it is good");
    let matches = json!([{"path": {"type": "PathPrefix", "value": "/"}}]);
    let expected = json!({
        "parentRefs": [
            {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}],
        "rules": [
            {"matches": matches, "backendRefs": [
                {"group": "", "kind": "Service", "name": "web", "port": 80, "weight": 1}]},
            {"matches": matches, "filters": [{"type": "RequestRedirect",
                "requestRedirect": {"scheme": "https", "statusCode": 302}}]},
        ],
    });
    assert_eq!(route["spec"], expected);
    let gateway = created(
        &server,
        GATEWAYS,
        "{gatewayClassName: wherry, listeners: [{name: https, port: 443, protocol: HTTPS, tls: \
         {certificateRefs: [{name: tls}]}}]}",
    );
    let gateway = gateway.await.expect("it is good");
    let listener = &gateway["spec"]["listeners"][0];
    assert_eq!(listener["allowedRoutes"], json!({"namespaces": {"from": "Same"}}));
    assert_eq!(listener["tls"]["mode"], "Terminate");
    let name = gateway["metadata"]["name"].as_str().expect("a name");
    let gateway = server.ok("GET", &format!("{GROUP}/{GATEWAYS}/{name}"), "").await;
    let reasons: Vec<&Value> = gateway["status"]["conditions"]
        .as_array()
        .expect("conditions")
        .iter()
        .map(|one| &one["reason"])
        .collect();
    assert_eq!(reasons, ["Pending", "Pending"]);
    let grpc = created(
        &server,
        "v1/namespaces/default/grpcroutes",
        "{rules: [{matches: [{method: {service: a.B, method: C}}], backendRefs: [{name: x, port: 1}]}]}",
    );
    let grpc = grpc.await.expect("it is good");
    assert_eq!(grpc["spec"]["rules"][0]["matches"][0]["method"]["type"], "Exact");
    for version in ["v1", "v1beta1"] {
        let grant = created(
            &server,
            &format!("{version}/namespaces/default/referencegrants"),
            "{from: [{group: g, kind: K, namespace: n}], to: [{group: '', kind: Secret}]}",
        );
        grant.await.expect("it is good");
    }
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let server = server().await;
    let mut out = String::new();
    let gateway = |listeners: &str| format!("{{gatewayClassName: x, listeners: [{listeners}]}}");
    let plain = "{name: a, port: 80, protocol: HTTP}";
    for listeners in [
        "{name: a, port: 80, protocol: HTTP, tls: {certificateRefs: [{name: x}]}}".to_owned(),
        "{name: a, port: 443, protocol: HTTPS, tls: {}}".to_owned(),
        "{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}".to_owned(),
        format!("{plain}, {}", plain.replace("name: a", "name: b")),
        "{name: a, port: 80, protocol: HTTP, hostname: '*'}".to_owned(),
    ] {
        let refused = created(&server, GATEWAYS, &gateway(&listeners)).await;
        out += &format!("{}\n", refused.expect_err("it is bad"));
    }
    for rule in [
        "{matches: [{path: {value: x}}]}",
        "{matches: [{path: {value: /a//b}}]}",
        "{filters: [{type: CORS}]}",
        "{filters: [{type: RequestRedirect}]}",
        "{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: a, port: 1}]}",
        "{filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}]}",
        "{matches: [{path: {type: Exact, value: /}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}]}",
        "{backendRefs: [{name: a}]}",
        "{timeouts: {request: 1s, backendRequest: 2s}}",
        "{timeouts: {request: 1 second}}",
        "{retry: {attempts: 1}}",
    ] {
        let refused = created(&server, ROUTES, &format!("{{rules: [{rule}]}}")).await;
        out += &format!("{}\n", refused.expect_err("it is bad"));
    }
    let twice = created(&server, ROUTES, "{parentRefs: [{name: a}, {name: a}]}").await;
    out += &format!("{}\n", twice.expect_err("it is bad"));
    check(&out, expect![[""]]);
}

fn check(out: &str, expected: Expect) {
    expected.assert_eq(out);
}

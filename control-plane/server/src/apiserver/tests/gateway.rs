//! The definitions of the Gateway API: what they take, fill in and refuse.

use super::custom::DEFINITIONS;
use super::script::Server;
use crate::controllers::bootstrap::gateway::DEFINITIONS as GATEWAY;
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
    // The same in every run, and another one for every object.
    let name = format!("x-{}", path.len() + spec.len());
    let body = json!({"metadata": {"name": name}, "spec": yaml(spec)});
    let (code, answer) = server.send("POST", &path, &body.to_string()).await;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let message = answer["message"].as_str().unwrap_or("").to_owned();
    if code == 201 { Ok(answer) } else { Err(message) }
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
        let path = format!("{version}/namespaces/default/referencegrants");
        let spec = "{from: [{group: g, kind: K, namespace: n}], to: [{group: '', kind: Secret}]}";
        created(&server, &path, spec).await.expect("it is good");
    }
}

/// That an object is refused, for this reason.
async fn check(server: &Server, path: &str, spec: &str, expected: &str) {
    let refused = created(server, path, spec).await.expect_err(spec);
    assert!(refused.contains(expected), "{spec}: {refused}");
}

#[tokio::test]
async fn gateways_that_cannot_be_meant_are_refused() {
    let server = server().await;
    let plain = "{name: a, port: 80, protocol: HTTP}";
    let twice = format!("{plain}, {}", plain.replace("name: a", "name: b"));
    for (listeners, expected) in [
        (
            "{name: a, port: 80, protocol: HTTP, tls: {certificateRefs: [{name: x}]}}",
            "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
        ),
        (
            "{name: a, port: 443, protocol: HTTPS, tls: {}}",
            "certificateRefs must be specified when mode is Terminate",
        ),
        (
            "{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}",
            "tls mode must be Terminate for protocol HTTPS",
        ),
        (&*twice, "Combination of port, protocol and hostname must be unique for each listener"),
        ("{name: a, port: 80, protocol: HTTP, hostname: '*'}", "hostname: Invalid value: \"*\""),
        ("{name: a, port: 70000, protocol: HTTP}", "port: Invalid value: 70000"),
    ] {
        let spec = format!("{{gatewayClassName: x, listeners: [{listeners}]}}");
        check(&server, GATEWAYS, &spec, expected).await;
    }
}

#[tokio::test]
async fn routes_that_cannot_be_meant_are_refused() {
    let server = server().await;
    for (rule, expected) in [
        (
            "{matches: [{path: {value: x}}]}",
            "value must be an absolute path and start with '/' when type one of",
        ),
        ("{matches: [{path: {value: /a//b}}]}", "must not contain '//'"),
        ("{filters: [{type: CORS}]}", "type: Unsupported value: \"CORS\""),
        (
            "{filters: [{type: RequestRedirect}]}",
            "filter.requestRedirect must be specified for RequestRedirect filter.type",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: a, \
             port: 1}]}",
            "RequestRedirect filter must not be used together with backendRefs",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, \
             urlRewrite: {}}]}",
            "May specify either RequestRedirect or URLRewrite, but not both",
        ),
        (
            "{matches: [{path: {type: Exact, value: /}}], filters: [{type: URLRewrite, urlRewrite: \
             {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}]}",
            "When using URLRewrite filter with path.replacePrefixMatch, exactly one PathPrefix",
        ),
        ("{backendRefs: [{name: a}]}", "Must have port for Service reference"),
        (
            "{timeouts: {request: 1s, backendRequest: 2s}}",
            "backendRequest timeout cannot be longer than request timeout",
        ),
        ("{timeouts: {request: 1 second}}", "request: Invalid value: \"1 second\""),
        ("{retry: {attempts: 1}}", "unknown field \"spec.rules[0].retry\""),
    ] {
        check(&server, ROUTES, &format!("{{rules: [{rule}]}}"), expected).await;
    }
    let twice = "{parentRefs: [{name: a}, {name: a}]}";
    check(&server, ROUTES, twice, "sectionName or port must be unique").await;
}

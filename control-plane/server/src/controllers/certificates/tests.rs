//! Requests as nodes make them, and as somebody who is not one would.

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use rcgen::{CertificateParams, DnType, KeyPair};

use super::super::testing::{at, meta, text};
use super::*;

/// A request in PEM for this subject and these alternative names.
fn pem(name: &str, organization: &str, alternative: &[&str]) -> String {
    let names: Vec<String> = alternative.iter().map(|name| (*name).to_string()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    let key = KeyPair::generate().expect("a key");
    params.serialize_request(&key).and_then(|request| request.pem()).expect("a request")
}

fn snapshot(signer: &str, user: &str, group: &str, usages: &[&str], pem: &str) -> Snapshot {
    let request = CertificateSigningRequest {
        metadata: meta("", "csr"),
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.as_bytes().to_vec()),
            signer_name: signer.to_string(),
            username: Some(user.to_string()),
            groups: Some(vec![group.to_string(), "system:authenticated".to_string()]),
            usages: Some(usages.iter().map(|usage| (*usage).to_string()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    Snapshot { request: Arc::new(request), namespaces: vec!["shop".to_string()] }
}

const CLIENT: &[&str] = &["digital signature", "client auth"];
const TOKEN: (&str, &str) = ("system:bootstrap:abcdef", JOINING_NODES);

fn node_request(user: (&str, &str), name: &str, organization: &str) -> Snapshot {
    snapshot(KUBELET_SIGNER, user.0, user.1, CLIENT, &pem(name, organization, &[]))
}

/// The condition that a plan gives, with its message.
fn verdict(snapshot: &Snapshot) -> String {
    let writes = plan(snapshot, at(0)).writes;
    let [write] = writes.as_slice() else { panic!("one write, not {}", text(&writes)) };
    let Action::Patch { body, subresource, .. } = &write.action else { return write.to_string() };
    let conditions = body["status"]["conditions"].as_array().expect("conditions");
    let condition = conditions.last().expect("a condition");
    let kind = condition["type"].as_str().unwrap_or("");
    let message = condition["message"].as_str().unwrap_or("");
    match kind {
        "Approved" => format!("{subresource} Approved"),
        _ => format!("{subresource} {kind}: {message}"),
    }
}

fn approved(mut snapshot: Snapshot) -> Snapshot {
    let condition = CertificateSigningRequestCondition {
        type_: "Approved".to_string(),
        status: "True".to_string(),
        last_update_time: Some(Time(at(0))),
        ..CertificateSigningRequestCondition::default()
    };
    Arc::make_mut(&mut snapshot.request).status = Some(CertificateSigningRequestStatus {
        conditions: Some(vec![condition]),
        certificate: None,
    });
    snapshot
}

#[test]
fn a_node_joins_with_a_token_and_renews_by_itself() {
    let name = "system:node:node-1";
    assert_eq!(verdict(&node_request(TOKEN, name, NODES)), "approval Approved");
    assert_eq!(verdict(&node_request((name, NODES), name, NODES)), "approval Approved");
    assert_eq!(
        verdict(&approved(node_request(TOKEN, name, NODES))),
        "sign certificatesigningrequests.certificates.k8s.io csr by Cluster as system:node:node-1"
    );
}

#[test]
fn nobody_else_gets_a_nodes_certificate() {
    let check = |snapshot: Snapshot, expected: &str| {
        let verdict = verdict(&snapshot);
        assert!(verdict.contains(expected), "{verdict}");
        assert!(verdict.starts_with("approval Denied"), "{verdict}");
    };
    let name = "system:node:node-1";
    check(node_request(("system:node:node-2", NODES), name, NODES), "may not ask");
    check(node_request(("alice", "system:masters"), name, NODES), "may not ask");
    check(node_request((name, "people"), name, NODES), "may not ask");
    for group in ["system:bootstrappers", "system:bootstrappers:wherry:member"] {
        check(node_request((TOKEN.0, group), name, NODES), "may not ask");
    }
    check(node_request(TOKEN, name, "system:masters"), "organization must be system:nodes");
    check(node_request(TOKEN, "kubernetes-admin", NODES), "\"kubernetes-admin\" is not allowed");
    check(node_request(TOKEN, "system:node:", NODES), "is not allowed");
    check(node_request(TOKEN, "system:node:A b", NODES), "is not allowed");
    let named = pem(name, NODES, &["kubernetes.default.svc"]);
    check(snapshot(KUBELET_SIGNER, TOKEN.0, TOKEN.1, CLIENT, &named), "alternative names");
    let usages = ["client auth", "server auth"];
    let plain = pem(name, NODES, &[]);
    check(snapshot(KUBELET_SIGNER, TOKEN.0, TOKEN.1, &usages, &plain), "\"server auth\"");
    check(snapshot(KUBELET_SIGNER, TOKEN.0, TOKEN.1, &["digital signature"], &plain), "missing");
    check(snapshot(KUBELET_SIGNER, TOKEN.0, TOKEN.1, CLIENT, "nonsense"), "cannot be read");
}

#[test]
fn an_approval_by_hand_does_not_widen_anything() {
    let request = approved(node_request(TOKEN, "system:node:node-1", "system:masters"));
    assert!(
        verdict(&request).starts_with("status Failed: the organization"),
        "{}",
        verdict(&request)
    );
}

#[test]
fn workers_get_traffic_certificates_of_their_node_alone() {
    let ask = |user: &str, name: &str, namespace: &str| {
        verdict(&snapshot(TRAFFIC_SIGNER, user, NODES, CLIENT, &pem(name, namespace, &[])))
    };
    assert_eq!(ask("system:node:n1", "n1", "shop"), "approval Approved");
    assert!(ask("system:node:n2", "n1", "shop").contains("may not ask"));
    assert!(ask("system:node:n1", "n1", "nowhere").contains("no namespace \"nowhere\""));
    assert!(ask("system:bootstrap:x", "n1", "shop").contains("may not ask"));
}

#[test]
fn clients_of_people_are_signed_when_somebody_approves() {
    let ask = |name: &str, group: &str, usages: &[&str]| {
        snapshot(CLIENT_SIGNER, "alice", "people", usages, &pem(name, group, &[]))
    };
    assert_eq!(text(&plan(&ask("alice", "people", CLIENT), at(0)).writes), "");
    assert_eq!(
        verdict(&approved(ask("alice", "people", CLIENT))),
        "sign certificatesigningrequests.certificates.k8s.io csr by Cluster as alice"
    );
    let refused = |request: Snapshot| verdict(&approved(request));
    assert!(refused(ask("alice", "system:masters", CLIENT)).contains("system:masters"));
    assert!(refused(ask("alice", "people", &["client auth", "server auth"])).contains("server"));
    assert!(refused(ask("alice", "people", &["digital signature"])).contains("\"client auth\""));
}

#[test]
fn servers_of_nodes_are_signed_for_the_node_itself_when_somebody_approves() {
    let serving = &["digital signature", "server auth"];
    let node = "system:node:n1";
    let ask = |user: &str, names: &[&str]| {
        snapshot(SERVING_SIGNER, user, NODES, serving, &pem(node, NODES, names))
    };
    assert_eq!(text(&plan(&ask(node, &["n1"]), at(0)).writes), "");
    let signed = verdict(&approved(ask(node, &["n1", "10.0.0.1"])));
    assert!(signed.starts_with("sign ") && signed.ends_with("as system:node:n1"), "{signed}");
    assert!(verdict(&approved(ask(node, &[]))).contains("needs names"));
    assert!(verdict(&approved(ask("system:node:n2", &["n1"]))).contains("may not ask"));
}

#[test]
fn other_signers_are_somebody_elses() {
    let request = snapshot("example.com/mine", "alice", "people", CLIENT, "anything");
    assert_eq!(text(&plan(&request, at(0)).writes), "");
}

#[test]
fn answered_requests_are_deleted_after_an_hour() {
    let mut request = approved(node_request(TOKEN, "system:node:node-1", NODES));
    let status = Arc::make_mut(&mut request.request).status.as_mut().expect("is approved");
    status.certificate = Some(ByteString(b"PEM".to_vec()));
    let early = plan(&request, at(3_000));
    assert_eq!((early.writes.len(), early.again), (0, Some(Duration::from_secs(600))));
    let late = text(&plan(&request, at(3_600)).writes);
    assert_eq!(late, "delete certificatesigningrequests.certificates.k8s.io csr\n");
}

//! Recorded bodies in, objects out; and bodies that nobody should send.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::*;

const BODIES: &str = include_str!("bodies.txt");

/// The recorded commands with their bodies.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let sections = BODIES.split("\n$ ").skip(1);
    let parse = |section: &'static str| {
        let mut lines = section.lines();
        let command = lines.next().unwrap_or_default();
        let encoded: String = lines.take_while(|line| !line.is_empty() && *line != "{").collect();
        (command, BASE64.decode(encoded).expect("bodies are base64"))
    };
    sections.map(parse).collect()
}

/// With `UPDATE_EXPECT=1` the objects in `bodies.txt` are written anew.
#[test]
fn recorded_bodies_become_the_objects_that_json_would_have_given() {
    let head = BODIES.split("\n$ ").next().unwrap_or_default();
    let mut text = head.to_string();
    for (command, body) in bodies() {
        let object = decode(&body).expect(command);
        let encoded = BASE64.encode(&body);
        let _ = writeln!(text, "\n$ {command}");
        for line in encoded.as_bytes().chunks(96) {
            let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
        }
        let _ = writeln!(text, "{object:#}");
    }
    if env::var_os("UPDATE_EXPECT").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/protobuf/bodies.txt");
        fs::write(file, text).expect("the file is writable");
    } else {
        assert!(text == BODIES, "decoding changed; see the difference with UPDATE_EXPECT=1");
    }
}

#[test]
fn every_kind_has_a_message() {
    // Of mutating policies the crate has the beta versions only; their clients send JSON.
    let absent = |kind: &crate::Kind| {
        kind.group == "metrics.k8s.io" || kind.kind.starts_with("MutatingAdmissionPolicy")
    };
    for kind in crate::KINDS.iter().filter(|kind| !absent(kind)) {
        let found = TABLE.kind(&kind.api_version(), kind.kind);
        assert!(found.is_some(), "{} has no message", kind.qualified_kind());
    }
}

#[test]
fn cut_and_damaged_bodies_are_errors_or_other_objects_but_never_panics() {
    for (_, body) in bodies() {
        for end in 0..body.len() {
            let _ = decode(&body[..end]);
        }
        for place in 0..body.len() {
            for bit in 0..8 {
                let mut damaged = body.clone();
                damaged[place] ^= 1 << bit;
                let _ = decode(&damaged);
            }
        }
    }
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend(bytes);
    field
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &type_meta), field(2, raw)].concat()
}

fn error(body: &[u8]) -> String {
    decode(body).map(|object| object.to_string()).expect_err("must be refused").to_string()
}

#[test]
fn errors_say_what_is_wrong() {
    assert_eq!(error(b"{}"), "the body does not start with the protobuf magic number");
    assert_eq!(
        error(&envelope("v1", "Podd", &[])),
        r#"no kind "Podd" is registered for version "v1""#
    );
    assert_eq!(
        error(&envelope("apps.example.com/v1", "Deployment", &[])),
        r#"no kind "Deployment" is registered for version "apps.example.com/v1""#
    );
    assert_eq!(error(&envelope("v1", "Pod", &[0x0a, 9])), "core/v1.Pod: malformed protobuf");
    let name = field(1, &field(1, &[0xff]));
    assert_eq!(error(&envelope("v1", "Pod", &name)), "meta/v1.ObjectMeta.name: is not valid UTF-8");
    let encoded = [envelope("v1", "Pod", &[]), field(3, b"gzip")].concat();
    assert_eq!(error(&encoded), r#"content encoding "gzip" of the envelope is unknown"#);
}

#[test]
fn a_body_cannot_nest_without_limit_nor_claim_memory_without_limit() {
    // CustomResourceDefinition.spec.versions[].schema.openAPIV3Schema.not.not.not…
    let mut schema = Vec::new();
    for _ in 0..2_000 {
        schema = [&[28 << 3 | 2 & 7 | 0x80, 1][..], &field(0, &schema)[1..]].concat();
    }
    let crd = field(2, &field(7, &field(4, &field(1, &schema))));
    let body = envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &crd);
    assert_eq!(error(&body), "the object is nested more than 100 levels deep");

    // PodSpec.containers, each an empty message of two bytes.
    let containers = [2 << 3 | 2, 0].repeat(VALUES_MAX + 1);
    let body = envelope("v1", "Pod", &field(2, &containers));
    assert_eq!(error(&body), "the object has more than 400000 values");
}

#[test]
fn unknown_fields_are_skipped_and_numbers_may_be_packed() {
    // PodSecurityContext.supplementalGroups (4) packed; field 15 does not exist.
    let security = [field(4, &[1, 0x80, 1]), field(15, b"new")].concat();
    // PodSpec.securityContext is field 14.
    let body = envelope("v1", "Pod", &field(2, &field(14, &security)));
    let object = decode(&body).expect("is a Pod");
    assert_eq!(object["spec"], json!({"securityContext": {"supplementalGroups": [1, 128]}}));
}

#[test]
fn embedded_documents_are_read_in_both_encodings() {
    // ControllerRevision.data is a RawExtension.
    for raw in
        [br#"{"kind":"Namespace","apiVersion":"v1"}"#.to_vec(), envelope("v1", "Namespace", &[])]
    {
        let body = envelope("apps/v1", "ControllerRevision", &field(2, &field(1, &raw)));
        let object = decode(&body).expect("is a revision");
        assert_eq!(object["data"], json!({"kind": "Namespace", "apiVersion": "v1"}));
    }
}

//! Specs in, environment and arguments out.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};

use super::*;
use crate::agent::{routes, spec::read};

fn check(container: &str, expected: Expect) {
    let text = format!(
        r#"{{"metadata":{{"name":"web","namespace":"shop","uid":"u1","labels":{{"app":"web"}},
                          "annotations":{{"team":"a b"}}}},
             "spec":{{"nodeName":"node-1","containers":[{{"name":"app",
                      "image":"registry.io/team/hello:1",{container}}}]}}}}"#
    );
    let pod = serde_json::from_str(&text).expect("a Pod");
    let spec = read(pod).expect("a Pod of a node").0.spec;
    let service = |text: &str| {
        routes::service(serde_json::from_str(text).expect("a Service")).expect("a Service")
    };
    let services = [
        service(
            r#"{"metadata":{"name":"kubernetes","namespace":"default"},
                "spec":{"clusterIPs":["172.20.0.1"],"ports":[{"name":"https","port":443}]}}"#,
        ),
        service(
            r#"{"metadata":{"name":"headless","namespace":"shop"},
                "spec":{"clusterIPs":["None"],"ports":[{"port":80}]}}"#,
        ),
    ];
    let map = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        Some(pairs.map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect())
    };
    let objects: BTreeMap<Source, Option<BTreeMap<String, Vec<u8>>>> = BTreeMap::from([
        (Source::ConfigMap("settings".to_owned()), map(&[("color", "blue"), ("a=b", "x")])),
        (Source::Secret("keys".to_owned()), map(&[("token", "t0p")])),
        (Source::ConfigMap("gone".to_owned()), None),
        (
            Source::ConfigMap("store".to_owned()),
            Some(BTreeMap::from([
                ("keys.jks".to_owned(), vec![0xfe, 0xed]),
                ("alias".to_owned(), b"web".to_vec()),
            ])),
        ),
    ]);
    let file = |path: &str| EnvFile { volume: "shared".to_owned(), path: path.to_owned() };
    let files = BTreeMap::from([
        (file("a.env"), Some("COLOR='red'\nEMPTY=''\n".to_owned())),
        (file("bad.env"), Some("COLOR=red".to_owned())),
        (file("gone.env"), None),
    ]);
    let context = Context {
        pod_ip: "10.0.0.2".parse().expect("an address"),
        host_ip: "192.168.1.5".parse().expect("an address"),
        services: &services,
        objects: &objects,
        files: &files,
        cpu_default: 2000,
        memory_default: 128 << 20,
        storage_default: 1 << 30,
    };
    let out = match build(&spec, 0, &context) {
        Ok((env, args)) => {
            let lines = env.0.iter().filter(|(name, _)| !name.starts_with("KUBERNETES_PORT"));
            let lines: Vec<String> =
                lines.map(|(name, value)| format!("{name}={value}\n")).collect();
            format!("{}{args:?}\n", lines.concat())
        }
        Err(error) => format!("error: {error}\n"),
    };
    expected.assert_eq(&out);
}

#[test]
fn values_refer_to_earlier_ones() {
    check(
        r#""env":[{"name":"A","value":"1"},{"name":"B","value":"$(A)$(C)$$(A) $"},
                  {"name":"A","value":"2"},{"name":"C","value":"$(A) $(KUBERNETES_SERVICE_HOST)"}],
           "command":["run","--a=$(A)"],"args":["$(NOBODY)"]"#,
        expect![[r#"
            HOSTNAME=web
            KUBERNETES_SERVICE_HOST=172.20.0.1
            KUBERNETES_SERVICE_PORT=443
            KUBERNETES_SERVICE_PORT_HTTPS=443
            A=2
            B=1$(C)$(A) $
            C=2 172.20.0.1
            ["run", "--a=2", "$(NOBODY)"]
        "#]],
    );
}

#[test]
fn the_image_names_the_program() {
    check(
        r#""args":["-v"]"#,
        expect![[r#"
        HOSTNAME=web
        KUBERNETES_SERVICE_HOST=172.20.0.1
        KUBERNETES_SERVICE_PORT=443
        KUBERNETES_SERVICE_PORT_HTTPS=443
        ["hello", "-v"]
    "#]],
    );
}

#[test]
fn config_maps_and_secrets() {
    check(
        r#""envFrom":[{"prefix":"S_","configMapRef":{"name":"settings"}},
                      {"configMapRef":{"name":"gone","optional":true}},
                      {"configMapRef":{"name":"store"}}],
           "env":[{"name":"T","valueFrom":{"secretKeyRef":{"name":"keys","key":"token"}}},
                  {"name":"U","valueFrom":{"secretKeyRef":
                      {"name":"keys","key":"none","optional":true}}},
                  {"name":"V","valueFrom":{"configMapKeyRef":
                      {"name":"store","key":"keys.jks","optional":true}}}]"#,
        expect![[r#"
            HOSTNAME=web
            KUBERNETES_SERVICE_HOST=172.20.0.1
            KUBERNETES_SERVICE_PORT=443
            KUBERNETES_SERVICE_PORT_HTTPS=443
            S_color=blue
            alias=web
            T=t0p
            ["hello"]
        "#]],
    );
}

#[test]
fn what_is_missing_is_named() {
    check(
        r#""envFrom":[{"configMapRef":{"name":"gone"}}]"#,
        expect![[r#"
            error: configmap "gone" not found
        "#]],
    );
    check(
        r#""env":[{"name":"T","valueFrom":{"secretKeyRef":{"name":"keys","key":"none"}}}]"#,
        expect![[r#"
            error: couldn't find key none in Secret shop/keys
        "#]],
    );
    check(
        r#""env":[{"name":"T","valueFrom":{"configMapKeyRef":{"name":"store","key":"keys.jks"}}}]"#,
        expect![[r#"
            error: couldn't find key keys.jks in ConfigMap shop/store
        "#]],
    );
    check(
        r#""env":[{"name":"T","valueFrom":{"fieldRef":{"fieldPath":"spec.hostname"}}}]"#,
        expect![[r#"
            error: environment variable T: spec.hostname cannot be read by a Pod
        "#]],
    );
}

#[test]
fn fields_and_resources() {
    check(
        r#""resources":{"limits":{"memory":"65Mi"},"requests":{"cpu":"150m"}},
           "env":[{"name":"N","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}},
                  {"name":"L","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['app']"}}},
                  {"name":"T","valueFrom":{"fieldRef":
                      {"fieldPath":"metadata.annotations['team']"}}},
                  {"name":"I","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}},
                  {"name":"H","valueFrom":{"fieldRef":{"fieldPath":"status.hostIP"}}},
                  {"name":"M","valueFrom":{"resourceFieldRef":
                      {"resource":"limits.memory","divisor":"1Mi"}}},
                  {"name":"C","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu"}}},
                  {"name":"R","valueFrom":{"resourceFieldRef":
                      {"resource":"requests.cpu","divisor":"1m"}}}]"#,
        expect![[r#"
            HOSTNAME=web
            KUBERNETES_SERVICE_HOST=172.20.0.1
            KUBERNETES_SERVICE_PORT=443
            KUBERNETES_SERVICE_PORT_HTTPS=443
            N=web
            L=web
            T=a b
            I=10.0.0.2
            H=192.168.1.5
            M=65
            C=2
            R=150
            ["hello"]
        "#]],
    );
}

#[test]
fn files_of_variables() {
    let reference = |name: &str, path: &str, key: &str, optional: bool| {
        format!(
            r#"{{"name":"{name}","valueFrom":{{"fileKeyRef":{{"volumeName":"shared",
                "path":"{path}","key":"{key}","optional":{optional}}}}}}}"#
        )
    };
    let of = |variables: &[String]| format!(r#""env":[{}]"#, variables.join(","));
    check(
        &of(&[
            reference("A", "a.env", "COLOR", false),
            reference("B", "a.env", "EMPTY", false),
            reference("C", "a.env", "NONE", true),
            reference("D", "gone.env", "COLOR", true),
        ]),
        expect![[r#"
            HOSTNAME=web
            KUBERNETES_SERVICE_HOST=172.20.0.1
            KUBERNETES_SERVICE_PORT=443
            KUBERNETES_SERVICE_PORT_HTTPS=443
            A=red
            B=
            ["hello"]
        "#]],
    );
    check(
        &of(&[reference("A", "a.env", "NONE", false)]),
        expect![[r#"
            error: environment variable key "NONE" not found in file "a.env" of volume "shared"
        "#]],
    );
    check(
        &of(&[reference("A", "gone.env", "COLOR", false)]),
        expect![[r#"
            error: environment variable key "COLOR" not found in file "gone.env" of volume "shared"
        "#]],
    );
    check(
        &of(&[reference("A", "bad.env", "COLOR", true)]),
        expect![[r#"
            error: couldn't parse env file "bad.env" of volume "shared": value must be enclosed in single quotes at line 1
        "#]],
    );
}

#[test]
fn paths_need_every_variable() {
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let env = protocol::Env(vec![variable("POD", "web-0"), variable("EMPTY", "")]);
    assert_eq!(expand_path(&env, "a/$(POD)/$$(POD)"), Ok("a/web-0/$(POD)".to_owned()));
    for missing in ["EMPTY", "NONE"] {
        let found = expand_path(&env, &format!("$(POD)/$({missing})"));
        assert_eq!(found, Err(format!("missing value for {missing:?}")));
    }
}

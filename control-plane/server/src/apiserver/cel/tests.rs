//! What expressions give, what they cost, and what is said about wrong ones.

use serde_json::{Value, json};
use wherry_resources::custom::schema::Schema;

use super::*;

/// The outcome of an expression over `self`, as text.
fn run(source: &str, object: &Value, schema: Option<&Schema>) -> String {
    let of = schema.map_or(Type::Any, Type::Schema);
    let types = Types::giving("").with("self", of);
    let expression = match Expression::compile(source, &types) {
        Ok(expression) => expression,
        Err(error) => return error,
    };
    let meter = Meter::new(OBJECT_COST_MAX);
    let bindings = Bindings::new(&meter).with("self", value(object, schema));
    match expression.value(&bindings) {
        Ok(found) => match json(found.as_ref()) {
            Some(found) => found.to_string(),
            None => format!("{found:?}"),
        },
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn the_language_and_kubernetes_functions() {
    let object = json!({"name": "web", "replicas": 3, "ports": [80, 443], "labels": {"a": "b"}});
    let cases = [
        ("self.replicas > 2 && self.name.startsWith('we')", "true"),
        ("has(self.missing)", "false"),
        ("self.ports.all(p, p < 1000)", "true"),
        ("self.ports.exists_one(p, p == 80)", "true"),
        ("self.ports.map(p, p + 1)", "[81,444]"),
        ("self.ports.filter(p, p > 100)", "[443]"),
        ("'a' in self.labels", "true"),
        ("self.?missing.orValue('none')", "\"none\""),
        ("self.missing", "error: no such key: missing"),
        ("'%s has %d'.format([self.name, self.replicas])", "\"web has 3\""),
        ("'a-b'.replace('-', '+')", "\"a+b\""),
        ("['a', 'b'].join(',')", "\"a,b\""),
        ("'abc'.matches('^a')", "true"),
        ("'abc123def45'.findAll('[0-9]+')", "[\"123\",\"45\"]"),
        ("'abc123'.find('[0-9]+')", "\"123\""),
        ("[3, 1, 2].sum()", "6"),
        ("[3, 1, 2].max()", "3"),
        ("[1, 2].isSorted()", "true"),
        ("['a', 'b'].indexOf('b')", "1"),
        ("url('https://example.com:80/a?x=1').getPort()", "\"80\""),
        ("url('https://example.com:80/a?x=1').getHostname()", "\"example.com\""),
        ("url('https://[::1]:80/a').getHost()", "\"[::1]:80\""),
        ("isURL('no url')", "false"),
        ("ip('192.168.0.1').family()", "4"),
        ("isIP('::ffff:1.2.3.4')", "false"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3')", "true"),
        ("cidr('10.1.0.0/8').masked().ip() == ip('10.0.0.0')", "true"),
        ("cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')", "true"),
        ("string(ip('::1'))", "\"::1\""),
        ("quantity('1Gi').isGreaterThan(quantity('1000Mi'))", "true"),
        ("quantity('1.5').asApproximateFloat()", "1.5"),
        ("quantity('2').add(quantity('3')).asInteger()", "5"),
        ("isQuantity('1x')", "false"),
        ("format.dns1123Label().validate('Up').hasValue()", "true"),
        ("format.named('uuid').hasValue()", "true"),
        ("!format.dns1123Label().validate('ok').hasValue()", "true"),
        ("sets.contains([1, 2, 3], [2])", "true"),
        ("duration('1h') > duration('59m')", "true"),
        ("timestamp('2024-01-01T00:00:00Z').getFullYear()", "2024"),
        ("self.replicas > 5 ? 'many' : 'few'", "\"few\""),
    ];
    for (source, expected) in cases {
        assert_eq!(run(source, &object, None), expected, "{source}");
    }
}

#[test]
fn a_schema_gives_types_and_names() {
    let schema = Schema::parse(&json!({"type": "object", "properties": {
        "ratio": {"type": "number"},
        "when": {"type": "string", "format": "date-time"},
        "for": {"type": "string"},
        "foo-bar": {"type": "integer"},
        "port": {"x-kubernetes-int-or-string": true},
        "items": {"type": "array", "items": {"type": "object", "properties": {
            "name": {"type": "string"}}}},
    }}));
    let object = json!({"ratio": 1, "when": "2024-05-01T00:00:00Z", "for": "x", "foo-bar": 2,
        "port": "80", "items": [{"name": "a"}], "hidden": 1});
    let cases = [
        ("self.ratio == 1.0 && type(self.ratio) == double", "true"),
        ("self.when.getMonth()", "4"),
        ("self.__for__", "\"x\""),
        ("self.foo__dash__bar", "2"),
        ("type(self.port) == string", "true"),
        ("self.items.exists(i, i.name == 'a')", "true"),
        (
            "self.hidden == 1",
            "compilation failed: ERROR: <input>:1:5: undefined field 'hidden'\n | self.hidden == \
             1\n | ....^",
        ),
        (
            "self.items.all(i, i.nam == 'a')",
            "compilation failed: ERROR: <input>:1:20: undefined field 'nam'\n | \
             self.items.all(i, i.nam == 'a')\n | ...................^",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(run(source, &object, Some(&schema)), expected, "{source}");
    }
}

#[test]
fn mistakes_are_shown_with_their_place() {
    let types = || Types::giving("bool").with("self", Type::Any);
    let wrong = |source: &str| Expression::compile(source, &types()).expect_err(source);
    assert!(wrong("self.a ==").starts_with("compilation failed: ERROR: <input>:1:"));
    assert_eq!(
        wrong("other.x > 1"),
        "compilation failed: ERROR: <input>:1:1: undeclared reference to 'other' (in container \
         '')\n | other.x > 1\n | ^"
    );
    assert!(wrong("self.all(x, nope(x))").contains("undeclared reference to 'nope'"));
    assert!(wrong("'text'").contains("must evaluate to bool"));
    let deep = format!("{}1{}", "(".repeat(500), ")".repeat(500));
    assert!(wrong(&deep).contains("compilation failed"));
}

#[test]
fn nothing_can_run_for_long_or_grow_without_end() {
    let list: Vec<u32> = (0..200).collect();
    let object = json!({"list": list, "text": "x".repeat(100_000)});
    let loops = "self.list.all(a, self.list.all(b, self.list.all(c, self.list.all(d, true))))";
    let doubling =
        (0..40).fold("self.text".to_owned(), |inner, _| format!("[{inner}].map(t, t + t)[0]"));
    let cases = [
        loops.to_owned(),
        doubling,
        "self.text.replace('', self.text)".to_owned(),
        "self.list.map(i, self.text).join(self.text)".to_owned(),
        "lists.range(1000000).map(i, lists.range(1000000))".to_owned(),
    ];
    for source in cases {
        let started = Instant::now();
        let outcome = run(&source, &object, None);
        let refused = outcome.starts_with("error") || outcome.starts_with("compilation failed");
        assert!(refused, "{}: {}", &source[..40.min(source.len())], &outcome[..100]);
        assert!(started.elapsed() < Duration::from_secs(120), "{}", started.elapsed().as_secs());
    }
}

#[test]
fn objects_that_policies_make_are_json() {
    let source = "Object{spec: Object.spec{replicas: self.replicas + 1, ?paused: optional.none()}}";
    assert_eq!(run(source, &json!({"replicas": 1}), None), r#"{"spec":{"replicas":2}}"#);
}

//! Objects as users write them, and as they are stored.

use serde_json::json;

use crate::testscript::{self, argument};

#[test]
fn defaults() {
    testscript::check("defaults.txt", |case| {
        let kind = testscript::kind(argument(case, "kind"));
        let mut object = testscript::json(argument(case, "object"));
        let old = argument(case, "old");
        if !old.is_empty() {
            super::drop_outdated(kind, &mut object, &testscript::json(old));
        }
        super::apply(kind, &mut object);
        let once = object.to_string();
        super::apply(kind, &mut object);
        assert_eq!(object.to_string(), once, "defaults are idempotent");
        once
    });
}

#[test]
fn quality_of_service() {
    let (half, whole) = (json!({"cpu": "500m"}), json!({"cpu": "1", "memory": "1Gi"}));
    let cases = [
        (json!([{}]), "BestEffort"),
        (json!([{"resources": {"requests": half}}]), "Burstable"),
        (json!([{"resources": {"limits": whole}}]), "Guaranteed"),
        (json!([{"resources": {"limits": whole, "requests": half}}]), "Burstable"),
        (json!([{"resources": {"limits": whole}}, {}]), "Burstable"),
    ];
    for (containers, expected) in cases {
        let spec = json!({"containers": containers});
        assert_eq!(super::qos_class(spec.as_object().expect("an object")), expected);
    }
}

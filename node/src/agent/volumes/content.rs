//! What the files of a volume hold. Pure: objects and tokens are arguments.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::agent::{
    env,
    spec::{Files, Part, PodSpec, Source, TokenItem},
};

use super::atomic::{Entry, Payload, is_valid_path};

/// Contents of a ConfigMap or Secret.
pub type Data = BTreeMap<String, Vec<u8>>;

/// A volume is at most this large: as much as an object of the API may be, from every source.
const BYTES_MAX: usize = 16 << 20;
/// File systems take no longer names.
const NAME_BYTES_MAX: usize = 255;

/// What the sources of a volume hold at the moment.
pub struct Known<'a> {
    /// `None` for an object that does not exist.
    pub objects: &'a BTreeMap<Source, Option<Data>>,
    /// Tokens by what was asked for.
    pub tokens: &'a BTreeMap<TokenItem, String>,
    /// For fields of the Pod.
    pub context: &'a env::Context<'a>,
}

/// The files of a volume, or what is missing, of each source, in the words of a kubelet.
pub fn payload(files: &Files, pod: &PodSpec, known: &Known<'_>) -> Result<Payload, String> {
    let mut payload = Payload::new();
    let mut missing: Vec<String> = Vec::new();
    let mut total = 0;
    let mut add = |path: &str, bytes: Vec<u8>, mode: Option<i32>| {
        if !is_valid_path(path) {
            return Err(format!("the path {path:?} does not stay inside of the volume"));
        }
        if path.split('/').any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(format!(
                "the path {path:?} has a name of more than {NAME_BYTES_MAX} bytes; give it a \
                 shorter one"
            ));
        }
        total += bytes.len();
        if total > BYTES_MAX {
            return Err(format!("its files have more than {} MiB", BYTES_MAX >> 20));
        }
        let mode = u32::try_from(mode.unwrap_or(files.mode)).unwrap_or(0o644) & 0o777;
        payload.insert(path.to_owned(), Entry { bytes, mode });
        Ok(())
    };
    for part in &files.parts {
        match part {
            Part::Object { source, items, optional } => {
                let Some(data) = known.objects.get(source).and_then(Option::as_ref) else {
                    if !optional {
                        missing.push(env::not_found(source));
                    }
                    continue;
                };
                for (key, value) in data.iter().filter(|_| items.is_empty()) {
                    add(key, value.clone(), None)?;
                }
                for item in items {
                    match data.get(&item.key) {
                        Some(value) => add(&item.path, value.clone(), item.mode)?,
                        None if *optional => {}
                        None => {
                            missing.push(no_key(source, &item.key));
                            break;
                        }
                    }
                }
            }
            Part::Fields(items) => {
                for item in items {
                    let value = env::value(pod, &item.value, known.context);
                    let value =
                        value.ok_or_else(|| format!("{:?} cannot be read by a Pod", item.value))?;
                    add(&item.path, value.into_bytes(), item.mode)?;
                }
            }
            Part::Token(item) => {
                let token = known.tokens.get(item).ok_or("its token was not issued")?;
                // Who reads it is the guest alone.
                add(&item.path, token.clone().into_bytes(), None)?;
            }
        }
    }
    if let Some(path) = file_and_folder(&payload) {
        return Err(format!(
            "the path {path:?} is a file, and others are below it; give one of them another path"
        ));
    }
    match &missing[..] {
        [] => Ok(payload),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

/// A path that would have to be a file and a folder.
fn file_and_folder(payload: &Payload) -> Option<&Path> {
    let files: BTreeSet<&Path> = payload.keys().map(Path::new).collect();
    let mut folders = payload.keys().flat_map(|path| Path::new(path).ancestors().skip(1));
    folders.find(|folder| files.contains(folder))
}

fn no_key(source: &Source, key: &str) -> String {
    match source {
        Source::ConfigMap(_) => format!("configmap references non-existent config key: {key}"),
        Source::Secret(_) => format!("references non-existent secret key: {key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths of the files of a volume called `v`, or why it cannot be mounted.
    fn files(volume: &str) -> String {
        let text = format!(
            r#"{{"metadata":{{"name":"a","namespace":"b","uid":"u"}},
                "spec":{{"nodeName":"n","volumes":[{{"name":"v",{volume}}}],
                    "containers":[{{"name":"c","image":"i",
                        "volumeMounts":[{{"name":"v","mountPath":"/v"}}]}}]}}}}"#
        );
        let pod = serde_json::from_str(&text).expect("a Pod");
        let pod = crate::agent::spec::read(pod).expect("a Pod of a node").0.spec;
        let volume = pod.volumes.first().expect("a volume");
        let crate::agent::spec::Content::Files(files) = &volume.content else {
            panic!("files: {volume:?}");
        };
        let data = Data::from([("color".to_owned(), b"blue".to_vec())]);
        let objects = BTreeMap::from([
            (Source::ConfigMap("settings".to_owned()), Some(data.clone())),
            (Source::Secret("keys".to_owned()), Some(data)),
            (Source::ConfigMap("gone".to_owned()), None),
        ]);
        let tokens = BTreeMap::new();
        let address = std::net::IpAddr::from([10, 0, 0, 2]);
        let context = env::Context::defaults(address, address);
        let known = Known { objects: &objects, tokens: &tokens, context: &context };
        match payload(files, &pod, &known) {
            Ok(payload) => payload.keys().map(String::as_str).collect::<Vec<_>>().join(" "),
            Err(why) => why,
        }
    }

    #[test]
    fn what_is_missing_is_said_as_by_a_kubelet() {
        for (volume, expected) in [
            (r#""configMap":{"name":"settings"}"#, "color"),
            (r#""configMap":{"name":"settings","items":[{"key":"color","path":"a/b"}]}"#, "a/b"),
            (r#""configMap":{"name":"gone"}"#, r#"configmap "gone" not found"#),
            (r#""configMap":{"name":"gone","optional":true}"#, ""),
            (
                r#""configMap":{"name":"settings","items":[{"key":"size","path":"s"}]}"#,
                "configmap references non-existent config key: size",
            ),
            (
                r#""secret":{"secretName":"keys","items":[{"key":"size","path":"s"}]}"#,
                "references non-existent secret key: size",
            ),
            (
                r#""secret":{"secretName":"keys","optional":true,
                    "items":[{"key":"size","path":"s"},{"key":"color","path":"c"}]}"#,
                "c",
            ),
            (r#""secret":{"secretName":"none"}"#, r#"secret "none" not found"#),
            (
                r#""projected":{"sources":[{"configMap":{"name":"gone"}},
                    {"secret":{"name":"keys","items":[{"key":"size","path":"s"}]}}]}"#,
                r#"[configmap "gone" not found, references non-existent secret key: size]"#,
            ),
        ] {
            assert_eq!(files(volume), expected, "{volume}");
        }
    }

    #[test]
    fn what_no_file_system_takes_is_refused_before_it_is_written() {
        let items = |paths: [&str; 2]| {
            let item = |path| format!(r#"{{"key":"color","path":"{path}"}}"#);
            let items = paths.map(item).join(",");
            files(&format!(r#""configMap":{{"name":"settings","items":[{items}]}}"#))
        };
        assert_eq!(items(["a/b", "a-b"]), "a-b a/b");
        let why =
            "the path \"a\" is a file, and others are below it; give one of them another path";
        assert_eq!(items(["a", "a/b"]), why);
        assert_eq!(
            items(["a/b/../c", "b"]),
            "the path \"a/b/../c\" does not stay inside of the volume"
        );
        assert!(items(["a", &"x".repeat(255)]).starts_with("a xxx"));
        let why = items(["a", &"x".repeat(256)]);
        assert!(why.ends_with("has a name of more than 255 bytes; give it a shorter one"), "{why}");
    }
}

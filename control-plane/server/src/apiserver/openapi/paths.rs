//! The paths of a kind with their operations, from its row in the table of kinds.
//!
//! Clients decide by what stands here: kubectl looks for the PATCH operation of a kind, takes the
//! query parameters `fieldValidation` and `dryRun` as a promise, and a strategic merge patch among
//! the media types as another.

use serde_json::{Map, Value, json};
use wherry_resources::{Kind, Subresource};

use super::schemas::{DELETE_OPTIONS, PATCH, REFERENCE, STATUS, Schemas, list_name};

/// Media types of patches; custom kinds have no strategic merge.
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const CUSTOM_PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];
const ANSWER_TYPES: &[&str] = &["application/json", "application/yaml"];

/// A parameter: name, where it stands, type, what it does.
type Parameter = (&'static str, &'static str, &'static str, &'static str);

const NAME: Parameter = ("name", "path", "string", "name of the object");
const NAMESPACE: Parameter =
    ("namespace", "path", "string", "object name and auth scope, such as for teams and projects");
const PRETTY: Parameter = ("pretty", "query", "string", "If 'true', then the output is indented.");

const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "query", "boolean", "Ask for watch events of type BOOKMARK."),
    ("continue", "query", "string", "Token from the previous page of a list."),
    (
        "fieldSelector",
        "query",
        "string",
        "Restrict the objects by their fields. Defaults to everything.",
    ),
    (
        "labelSelector",
        "query",
        "string",
        "Restrict the objects by their labels. Defaults to everything.",
    ),
    ("limit", "query", "integer", "Most objects in one answer; the rest by the continue token."),
    (
        "resourceVersion",
        "query",
        "string",
        "Constrains the state from which the request is served.",
    ),
    ("resourceVersionMatch", "query", "string", "How resourceVersion is applied to a list."),
    (
        "sendInitialEvents",
        "query",
        "boolean",
        "Begin a watch with the present objects and a bookmark.",
    ),
    ("timeoutSeconds", "query", "integer", "Time after which a list or watch ends."),
    ("watch", "query", "boolean", "Stream changes as add, update, and remove notifications."),
];
const DRY_RUN: Parameter =
    ("dryRun", "query", "string", "All: process the request in full and store nothing.");
const FIELD_MANAGER: Parameter =
    ("fieldManager", "query", "string", "Name of the actor or entity that makes the change.");
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "query",
    "string",
    "What to do about unknown and duplicate fields: Ignore, Warn (default) or Strict.",
);
const FORCE: Parameter =
    ("force", "query", "boolean", "Take over fields of other managers in an apply request.");
const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCHED: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETED: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "query", "integer", "Seconds before the object is deleted."),
    (
        "orphanDependents",
        "query",
        "boolean",
        "Whether dependents stay; use propagationPolicy instead.",
    ),
    ("propagationPolicy", "query", "string", "Orphan, Background or Foreground."),
];

/// One operation before it is written out.
struct Operation<'a> {
    /// HTTP method in lower case.
    method: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    /// First word of the operation's id, which generated clients take as a function name; what
    /// stands between group and scope in it.
    word: &'static str,
    infix: &'static str,
    parameters: Vec<Parameter>,
    /// Long name of the schema of the body, and the media types it may come in.
    body: Option<(&'a str, &'static [&'static str])>,
    /// Long name of the schema of the answer, or nothing for text.
    answer: Option<&'a str>,
    /// Success statuses that the operation answers with.
    statuses: &'static [&'static str],
}

/// What the operations of one path have in common.
struct Place<'a> {
    kind: &'a Kind,
    /// Group, version and kind of what is exchanged there.
    exchanged: (&'a str, &'a str, &'a str),
    /// Group and rest of an operation's id, such as `AppsV1` and `NamespacedDeploymentStatus`.
    id: (&'a str, String),
}

/// Adds the paths of a kind, and the names of the schemas they need.
pub fn add(
    schemas: &Schemas,
    kind: &Kind,
    paths: &mut Map<String, Value>,
    roots: &mut Vec<String>,
) {
    let Some(name) = schemas.name(kind.group, kind.version, kind.kind) else {
        return;
    };
    let prefix = format!("/{}", super::group_version_path(kind.group, kind.version));
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    let (group, kind_name) = (id_of_group(kind), kind.kind);
    let all = format!("{prefix}/{}", kind.plural);
    let here = if kind.namespaced {
        format!("{prefix}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        all.clone()
    };
    let list = list_name(name);
    let exchanged = (kind.group, kind.version, kind.kind);
    let place = Place { kind, exchanged, id: (&group, format!("{scope}{kind_name}")) };
    insert(paths, &here, &place, false, collection(kind, name, &list));
    if kind.namespaced && kind.verbs.contains(&"list") {
        let id = (group.as_str(), format!("{kind_name}ForAllNamespaces"));
        let everywhere = Place { kind, exchanged, id };
        insert(paths, &all, &everywhere, false, vec![list_operation(&list)]);
    }
    insert(paths, &format!("{here}/{{name}}"), &place, true, single(kind, name));
    for subresource in kind.subresources {
        let path = format!("{here}/{{name}}/{}", subresource.name);
        let exchanged = (subresource.group, subresource.version, subresource.kind);
        let id = (group.as_str(), format!("{scope}{kind_name}{}", capitalised(subresource.name)));
        let schema = schemas.name(exchanged.0, exchanged.1, exchanged.2);
        roots.extend(schema.map(str::to_string));
        let place = Place { kind, exchanged, id };
        let operations = subresource_operations(kind, subresource, schema);
        insert(paths, &path, &place, true, operations);
    }
    roots.extend([name, &list, STATUS, DELETE_OPTIONS, PATCH].map(str::to_string));
}

/// Operations on the whole resource.
fn collection<'a>(kind: &Kind, name: &'a str, list: &'a str) -> Vec<Operation<'a>> {
    let mut operations = Vec::new();
    if kind.verbs.contains(&"list") {
        operations.push(list_operation(list));
    }
    if kind.verbs.contains(&"create") {
        operations.push(create_operation(name));
    }
    if kind.verbs.contains(&"deletecollection") {
        operations.push(Operation {
            method: "delete",
            action: "deletecollection",
            word: "delete",
            infix: "Collection",
            parameters: [LIST, DELETED].concat(),
            body: Some((DELETE_OPTIONS, ANSWER_TYPES)),
            answer: Some(STATUS),
            statuses: &["200"],
        });
    }
    operations
}

/// Operations on one object.
fn single<'a>(kind: &Kind, name: &'a str) -> Vec<Operation<'a>> {
    let mut operations = Vec::new();
    for verb in kind.verbs {
        match *verb {
            "get" => operations.push(get_operation(Some(name))),
            "update" => operations.push(put_operation(name)),
            "patch" => operations.push(patch_operation(kind, name)),
            "delete" => operations.push(Operation {
                method: "delete",
                action: "delete",
                word: "delete",
                infix: "",
                parameters: DELETED.to_vec(),
                body: Some((DELETE_OPTIONS, ANSWER_TYPES)),
                answer: Some(STATUS),
                statuses: &["200", "202"],
            }),
            _ => {}
        }
    }
    operations
}

/// Operations on a subresource. Those without a schema are connections: streams, logs, proxies.
fn subresource_operations<'a>(
    kind: &Kind,
    row: &Subresource,
    schema: Option<&'a str>,
) -> Vec<Operation<'a>> {
    let mut operations = Vec::new();
    for verb in row.verbs {
        operations.push(match (*verb, schema) {
            ("get", Some(_)) if row.name == "log" => get_operation(None),
            ("get", Some(name)) => get_operation(Some(name)),
            ("create", Some(name)) => create_operation(name),
            ("update", Some(name)) => put_operation(name),
            ("patch", Some(name)) => patch_operation(kind, name),
            ("get", None) => connection("get", "Get"),
            ("create", None) => connection("post", "Post"),
            ("update", None) => connection("put", "Put"),
            ("patch", None) => connection("patch", "Patch"),
            ("delete", None) => connection("delete", "Delete"),
            _ => continue,
        });
    }
    operations
}

fn list_operation(list: &str) -> Operation<'_> {
    Operation {
        method: "get",
        action: "list",
        word: "list",
        infix: "",
        parameters: LIST.to_vec(),
        body: None,
        answer: Some(list),
        statuses: &["200"],
    }
}

fn get_operation(answer: Option<&str>) -> Operation<'_> {
    Operation {
        method: "get",
        action: "get",
        word: "read",
        infix: "",
        parameters: Vec::new(),
        body: None,
        answer,
        statuses: &["200"],
    }
}

fn create_operation(name: &str) -> Operation<'_> {
    Operation {
        method: "post",
        action: "post",
        word: "create",
        infix: "",
        parameters: WRITE.to_vec(),
        body: Some((name, ANSWER_TYPES)),
        answer: Some(name),
        statuses: &["200", "201", "202"],
    }
}

fn put_operation(name: &str) -> Operation<'_> {
    Operation {
        method: "put",
        action: "put",
        word: "replace",
        infix: "",
        parameters: WRITE.to_vec(),
        body: Some((name, ANSWER_TYPES)),
        answer: Some(name),
        statuses: &["200", "201"],
    }
}

fn patch_operation<'a>(kind: &Kind, name: &'a str) -> Operation<'a> {
    let types = if kind.custom.is_some() { CUSTOM_PATCH_TYPES } else { PATCH_TYPES };
    Operation {
        method: "patch",
        action: "patch",
        word: "patch",
        infix: "",
        parameters: PATCHED.to_vec(),
        body: Some((PATCH, types)),
        answer: Some(name),
        statuses: &["200", "201"],
    }
}

fn connection(method: &'static str, infix: &'static str) -> Operation<'static> {
    Operation {
        method,
        action: "connect",
        word: "connect",
        infix,
        parameters: Vec::new(),
        body: None,
        answer: None,
        statuses: &["200"],
    }
}

/// Writes the operations of a path, unless there are none.
fn insert(
    paths: &mut Map<String, Value>,
    path: &str,
    place: &Place<'_>,
    one_object: bool,
    operations: Vec<Operation<'_>>,
) {
    if operations.is_empty() {
        return;
    }
    let mut common = Vec::new();
    if one_object {
        common.push(parameter(&NAME));
    }
    if path.contains("{namespace}") {
        common.push(parameter(&NAMESPACE));
    }
    common.push(parameter(&PRETTY));
    let mut item = Map::new();
    for operation in operations {
        item.insert(operation.method.to_string(), render(place, &operation));
    }
    item.insert("parameters".to_string(), Value::Array(common));
    paths.insert(path.to_string(), Value::Object(item));
}

fn render(place: &Place<'_>, operation: &Operation<'_>) -> Value {
    let (group, version, kind) = place.exchanged;
    let (id_group, id_rest) = &place.id;
    let content = |types: &[&str], name: &str| -> Map<String, Value> {
        let schema = json!({"schema": {"$ref": format!("{REFERENCE}{name}")}});
        types.iter().map(|media_type| (media_type.to_string(), schema.clone())).collect()
    };
    let answer = match operation.answer {
        Some(name) => content(ANSWER_TYPES, name),
        None => Map::from_iter([("*/*".to_string(), json!({"schema": {"type": "string"}}))]),
    };
    let mut responses = Map::new();
    for status in operation.statuses {
        let description = match *status {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        let response = json!({"description": description, "content": answer});
        responses.insert(status.to_string(), response);
    }
    responses.insert("401".to_string(), json!({"description": "Unauthorized"}));
    let parameters: Vec<Value> = operation.parameters.iter().map(parameter).collect();
    let mut rendered = json!({
        "tags": [tag(place.kind)],
        "description": format!("{} {kind}", operation.word),
        "operationId": format!("{}{id_group}{}{id_rest}", operation.word, operation.infix),
        "parameters": parameters,
    });
    if let Some((name, types)) = operation.body {
        let required = name != DELETE_OPTIONS;
        rendered["requestBody"] = json!({"content": content(types, name), "required": required});
    }
    rendered["responses"] = Value::Object(responses);
    rendered["x-kubernetes-action"] = json!(operation.action);
    rendered["x-kubernetes-group-version-kind"] =
        json!({"group": group, "version": version, "kind": kind});
    rendered
}

fn parameter((name, place, kind, description): &Parameter) -> Value {
    let mut parameter = json!({
        "name": name,
        "in": place,
        "description": description,
        "schema": {"type": kind, "uniqueItems": true},
    });
    if *place == "path" {
        parameter["required"] = json!(true);
    }
    parameter
}

/// `apps_v1`.
fn tag(kind: &Kind) -> String {
    let group = kind.group.trim_end_matches(".k8s.io").replace('.', "_");
    let group = if group.is_empty() { "core".to_string() } else { group };
    format!("{group}_{}", kind.version)
}

/// `AppsV1`, `RbacAuthorizationV1`.
fn id_of_group(kind: &Kind) -> String {
    let tag = tag(kind);
    tag.split('_').map(capitalised).collect()
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

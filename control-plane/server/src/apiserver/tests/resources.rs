//! Every resource with its verbs: as a table for people, and asked for one by one.

use super::script::{Server, admin, text};
use std::fmt::Write as _;
use wherry_resources::{KINDS, Kind, Storage, table};

/// Path of the collection, and of one object in it.
fn path(kind: &Kind, name: &str) -> String {
    let root = match kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    };
    let namespace = if kind.namespaced { "/namespaces/default" } else { "" };
    let name = if name.is_empty() { String::new() } else { format!("/{name}") };
    format!("{root}{namespace}/{}{name}", kind.plural)
}

#[test]
fn table_of_resources_and_verbs() {
    let mut out = String::new();
    for kind in KINDS {
        let scope = if kind.namespaced { "namespaced" } else { "cluster" };
        let short = [kind.short_names, kind.categories].concat().join(",");
        let name = format!("{} {}", kind.qualified(), kind.version);
        let _ = writeln!(out, "{name:55} {scope:10} {short}");
        let _ = writeln!(out, "    {}", kind.verbs.join(","));
        for part in kind.subresources {
            let _ = writeln!(out, "    /{:20} {}", part.name, part.verbs.join(","));
        }
        let columns = table::columns(kind).iter().map(|column| match column.priority {
            0 => column.name.to_owned(),
            _ => format!("[{}]", column.name),
        });
        let _ = writeln!(out, "    | {}", columns.collect::<Vec<_>>().join(" | "));
    }
    println!("{out}");
    expect_test::expect_file!["./contract/06-resources.table"].assert_eq(&out);
}

#[tokio::test]
async fn every_verb_of_every_resource_is_served() {
    let server = Server::start().await;
    let (mut served, mut asked) = (0, 0);
    for (index, kind) in KINDS.iter().enumerate() {
        // Two rows may share one storage, and a PUT may create.
        let none = format!("none-{index}");
        for verb in kind.verbs {
            let (method, path, body) = match *verb {
                "create" => ("POST", path(kind, ""), "{}"),
                "delete" => ("DELETE", path(kind, &none), ""),
                "deletecollection" => ("DELETE", path(kind, "") + "?dryRun=All", ""),
                "get" => ("GET", path(kind, &none), ""),
                "list" => ("GET", path(kind, ""), ""),
                "patch" => ("PATCH", path(kind, &none), "{}"),
                "update" => ("PUT", path(kind, &none), "{}"),
                "watch" => ("GET", path(kind, "") + "?watch=1&resourceVersion=1", ""),
                other => panic!("verb {other} of {}", kind.qualified()),
            };
            let patch = if *verb == "patch" { "application/merge-patch+json" } else { "" };
            let response = server.response(&admin(), method, &path, patch, body).await;
            asked += 1;
            let code = response.status().as_u16();
            let is_stored = kind.storage != Storage::None;
            let expected = match *verb {
                "list" | "watch" | "deletecollection" if is_stored => code == 200,
                "get" | "delete" | "patch" if is_stored => code == 404,
                _ => code != 405 && code < 500,
            };
            // A watch does not end by itself.
            let answer = if *verb == "watch" { String::new() } else { text(response).await };
            let lost = answer.starts_with("404 page");
            served += usize::from(expected && !lost);
            assert!(expected && !lost, "{verb} {path}: {code} {answer}");
        }
    }
    println!("{served} of {asked} verbs served");
}

//! The Table form of objects: columns and cells are `wherry_resources::table`'s, wrapped here.

use crate::apiserver::{content, errors::ApiError, escape, request::Query, stored};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use wherry_resources::{Kind, Object, meta, table};
use wherry_store::Entry;

/// What goes into a row beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// Reads `includeObject`.
    pub fn of(query: &Query) -> Result<Include, ApiError> {
        match query.get("includeObject") {
            None | Some("Metadata") => Ok(Include::Metadata),
            Some("None") => Ok(Include::None),
            Some("Object") => Ok(Include::Object),
            Some(other) => {
                Err(ApiError::BadRequest(format!("unrecognized includeObject value: {other:?}")))
            }
        }
    }
}

/// One object's row.
pub fn row(kind: &Kind, object: Object, include: Include, version: &str, now: Timestamp) -> Value {
    row_of(table::cells(kind, &object, now), object, include, version)
}

/// Writes the same row, of an object of a kind that is stored as it is shown, of which no more is
/// read than its cells show.
pub fn write_row(
    kind: &'static Kind,
    entry: &Entry,
    include: Include,
    version: &str,
    now: Timestamp,
    out: &mut Vec<u8>,
) {
    let cells = table::cells_of_json(kind, &entry.value, now).expect("encode wrote JSON objects");
    let start = out.len();
    out.extend_from_slice(b"{\"cells\":");
    serde_json::to_writer(&mut *out, &cells).expect("memory takes what is written");
    escape::tail(out, start);
    out.extend_from_slice(b",\"object\":");
    match include {
        Include::None => out.extend_from_slice(b"null"),
        Include::Metadata => stored::write_metadata(entry, version, out),
        Include::Object => {
            out.extend_from_slice(&stored::json(kind, &entry.value, entry.modified));
        }
    }
    out.push(b'}');
}

fn row_of(cells: Vec<Value>, object: Object, include: Include, version: &str) -> Value {
    let shown = match include {
        Include::None => Value::Null,
        Include::Metadata => content::metadata_only(object, version),
        Include::Object => object,
    };
    json!({ "cells": cells, "object": shown })
}

/// The Table of one Scale.
pub fn of_scale(scale: Object, include: Include, version: &str, now: Timestamp) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), meta::resource_version(&scale).into());
    let row = row_of(table::scale_cells(&scale, now), scale, include, version);
    whole(version, metadata, definitions(table::SCALE), vec![row])
}

/// A Table; without `columns` it is a later event of a watch.
pub fn table(
    kind: &Kind,
    version: &str,
    metadata: Map<String, Value>,
    columns: bool,
    rows: Vec<Value>,
) -> Value {
    let definitions: Vec<Value> = match kind.custom() {
        _ if !columns => Vec::new(),
        Some(custom) => custom.columns.definitions(),
        None => definitions(table::columns(kind)),
    };
    whole(version, metadata, definitions, rows)
}

fn definitions(columns: &[table::Column]) -> Vec<Value> {
    let definition = |column: &table::Column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    };
    columns.iter().map(definition).collect()
}

fn whole(
    version: &str,
    metadata: Map<String, Value>,
    definitions: Vec<Value>,
    rows: Vec<Value>,
) -> Value {
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

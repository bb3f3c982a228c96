//! The Table form of objects: columns and cells are `wherry_resources::table`'s, wrapped here.

use crate::apiserver::{content, errors::ApiError, request::Query};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use wherry_resources::{Kind, Object, meta, table};

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

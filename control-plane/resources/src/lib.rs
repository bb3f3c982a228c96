//! What Kubernetes objects are, as pure functions and tables.
//!
//! An [`Object`] is a JSON object as it stands on the wire. A [`Kind`] is one row of the table of
//! kinds: the name of a type in all its forms, its scope, its verbs and what the API server has to
//! know to serve it. Everything else in this crate is a function from objects to objects, values or
//! sentences:
//!
//! - [`meta`], [`keys`], [`names`], [`selectors`], [`fields`], [`quantity`], [`quoted`], [`read`]:
//!   reading and naming
//! - [`patch`], [`defaults`], [`convert`], [`validate`]: what happens on the way into the store
//! - [`apply`]: who owns which field, and server-side apply
//! - [`rbac`]: what a rule of a role allows, and whether some rules cover others
//! - [`structure`]: how lists and objects of built-in types merge, for patches and for apply
//! - [`pod_fields`], [`pod_slips`]: what becomes of every field of a Pod, and what is hardly meant
//! - [`table`], [`state`], [`events`], [`conditions`]: what people and controllers see of it
//! - [`cron`]: when a CronJob is due
//! - [`custom`]: kinds that CustomResourceDefinitions describe
//! - [`gateway`]: which routes of the Gateway API are attached to which listeners
//! - [`protobuf`]: the other encoding that clients send
//! - [`demand`]: how requests that wait reach autoscalers
//! - [`offers`]: what nodes tell the scheduler
//! - [`turns`]: what annotations of Pods ask of it
//! - [`join_token`]: with what nodes and members join
//! - [`node_labels`]: which labels a node may give itself
//! - [`channels`]: how remote commands speak between the API server and workers
//!
//! Invariants: no I/O, no async, no clock (time is an argument), no randomness (a closure is an
//! argument).

pub mod apply;
pub mod channels;
pub mod conditions;
pub mod convert;
pub mod cron;
pub mod custom;
pub mod defaults;
pub mod demand;
pub mod events;
pub mod fields;
pub mod gateway;
pub mod handling;
pub mod join_token;
pub mod keys;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod node_labels;
pub mod offers;
pub mod patch;
pub mod pod_fields;
pub mod pod_slips;
pub mod protobuf;
pub mod quantity;
pub mod quota;
mod quote;
pub mod rbac;
pub mod read;
pub mod selectors;
pub mod state;
pub mod structure;
pub mod table;
#[cfg(test)]
mod testscript;
pub mod turns;
pub mod validate;

pub use kinds::{GROUPS, Group, KINDS, Kind, Storage, Subresource, kind, kind_of};
pub use quote::{is_printed, quoted};

/// A Kubernetes object: always a JSON object whose key order is the order on the wire.
pub type Object = serde_json::Value;

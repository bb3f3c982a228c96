//! Requests through the Router, in process, over a store in memory. `script` runs a text of
//! requests and gives the answers as text; a snapshot holds what clients then see.

pub mod script;

mod access;
pub mod contract;
pub mod custom;
mod gateway;
mod logs;
mod members;
mod objects;
mod quota;
mod reads;
mod resources;
mod roles;
mod watches;

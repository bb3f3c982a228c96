//! A node: where Pods run.
//!
//! Three processes of one binary: the [`agent`] watches the Pods bound to its node and keeps workers
//! true to them; a [`worker`] runs the guests of one namespace with their network and traffic; a
//! [`compile`] turns one image into machine code and ends. [`protocol`] is what the first two say to
//! each other.

pub mod agent;
mod beneath;
pub mod compile;
pub mod members;
mod metrics;
pub mod protocol;
pub mod worker;

//! A whole worker in this process, driven by a fake agent over a real socket, with real guests.

mod guests;
pub(crate) mod harness;
mod malformed;
mod pods;
mod probes;
mod streams;
mod traces;
mod traffic;

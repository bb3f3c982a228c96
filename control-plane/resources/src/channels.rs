//! How a remote command speaks between the API server and the worker that runs it.
//!
//! Behind the API server there is one form, whatever the client speaks: frames of a length (four
//! bytes, big-endian), a channel (one byte, numbered as Kubernetes' `channel.k8s.io` protocols
//! number them) and data. The last frame from the worker is an [`Outcome`] on [`STATUS`].

use serde_json::{Value, json};

/// To the command's standard input.
pub const STDIN: u8 = 0;
/// From its standard output.
pub const STDOUT: u8 = 1;
/// From its standard error.
pub const STDERR: u8 = 2;
/// How it ended.
pub const STATUS: u8 = 3;
/// The terminal's new size, as JSON `{"Width":w,"Height":h}`.
pub const RESIZE: u8 = 4;
/// A channel has ended: its number is the data.
pub const CLOSE: u8 = 255;

/// What one frame carries at most, its channel included: what kubectl sends at once.
pub const FRAME_BYTES_MAX: usize = (32 << 10) + 1;

/// How a remote command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Code(i32),
    /// It could not be started, or could not go on; one sentence.
    Failed(String),
}

impl Outcome {
    /// For the wire.
    pub fn encode(&self) -> Vec<u8> {
        let value = match self {
            Outcome::Code(code) => json!({ "code": code }),
            Outcome::Failed(message) => json!({ "failed": message }),
        };
        value.to_string().into_bytes()
    }

    /// From the wire; None if it is not an outcome.
    pub fn decode(bytes: &[u8]) -> Option<Outcome> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        if let Some(code) = value.get("code").and_then(Value::as_i64) {
            return i32::try_from(code).ok().map(Outcome::Code);
        }
        let message = value.get("failed")?.as_str()?;
        Some(Outcome::Failed(message.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_the_wire() {
        for outcome in [Outcome::Code(0), Outcome::Code(-7), Outcome::Failed("no \"x\"".into())] {
            assert_eq!(Outcome::decode(&outcome.encode()), Some(outcome));
        }
        for wrong in ["", "{}", "{\"code\":99999999999}", "{\"failed\":1}", "[]"] {
            assert_eq!(Outcome::decode(wrong.as_bytes()), None, "{wrong}");
        }
    }
}

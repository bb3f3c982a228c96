//! The tokens with which nodes and members join: `<id>.<secret>.<hash of the cluster's CA>`.
//!
//! Id and secret are a bootstrap token of Kubernetes, shown as bearer. The hash pins the authority:
//! whoever joins believes no server that does not show it.

use std::fmt;

/// A join token's parts.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What is shown to the cluster: `<id>.<secret>`.
    pub bearer: String,
    /// SHA-256 of the authority's certificate.
    pub pin: [u8; 32],
}

impl JoinToken {
    /// Reads a token; white space around it does not matter.
    pub fn parse(text: &str) -> Option<JoinToken> {
        let mut parts = text.trim().split('.');
        let (id, secret, pin) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || id.is_empty() || secret.is_empty() {
            return None;
        }
        let pin: [u8; 32] = hex::decode(pin).ok()?.try_into().ok()?;
        Some(JoinToken { bearer: format!("{id}.{secret}"), pin })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.bearer, hex::encode(self.pin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_three_parts_and_a_whole_hash() {
        let pin = "ab".repeat(32);
        let text = format!("abcdef.0123456789abcdef.{pin}");
        let token = JoinToken::parse(&format!("{text}\n")).expect("a token");
        assert_eq!((token.bearer.as_str(), token.pin), ("abcdef.0123456789abcdef", [0xab; 32]));
        assert_eq!(token.to_string(), text);
        for text in ["", "a.b", "a.b.c", &format!("a.b.{pin}.d"), &format!(".b.{pin}")] {
            assert!(JoinToken::parse(text).is_none(), "{text}");
        }
    }
}

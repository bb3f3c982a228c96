//! Trace context of the W3C: the header `traceparent`, by which one trace goes through many hands.
//!
//! ```text
//!   00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
//!   version   trace                      parent span      flags: sampled
//! ```
//!
//! `tracestate` goes along as it came; nothing of ours stands in it.

use http::{HeaderMap, HeaderName, HeaderValue};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const SAMPLED: u8 = 1;

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Never zero.
    pub trace: u128,
    /// Never zero.
    pub span: u64,
    /// Whether what belongs to the trace is recorded.
    pub sampled: bool,
}

impl Context {
    /// Where a request stands. None if it does not say, says it twice, or not in this form.
    pub fn of(headers: &HeaderMap) -> Option<Context> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let (only, None) = (all.next()?, all.next()) else { return None };
        Context::parse(only.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Context> {
        let lower = |it: &str| it.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut parts = text.split('-');
        let (version, trace) = (parts.next()?, parts.next()?);
        let (span, flags) = (parts.next()?, parts.next()?);
        let lengths = (version.len(), trace.len(), span.len(), flags.len());
        if lengths != (2, 32, 16, 2) || ![version, trace, span, flags].into_iter().all(lower) {
            return None;
        }
        // A later version may have more parts; this one has none.
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let span = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(Context { trace, span, sampled: flags & SAMPLED != 0 })
    }

    /// A span of the same trace, below this one.
    pub fn below(self) -> Context {
        Context { span: rand::random::<u64>().max(1), ..self }
    }

    /// The first span of a trace.
    pub fn new(sampled: bool) -> Context {
        let (trace, span) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
        Context { trace, span, sampled }
    }

    /// What the next one is told.
    pub fn header(self) -> HeaderValue {
        let Context { trace, span, sampled } = self;
        let text = format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled));
        HeaderValue::try_from(text).expect("digits and dashes are visible ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_as_the_w3c_says() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = Context::parse(text).expect("the example of the specification");
        assert_eq!(context.header(), text);
        let other = Context::parse(&text.replace("-01", "-02")).expect("other flags");
        assert!(!other.sampled);
        // A later version, with more in it.
        assert_eq!(Context::parse(&text.replacen("00", "cc", 1)), Some(context));
        assert_eq!(Context::parse(&format!("cc{}-what", &text[2..])), Some(context));
        let wrong = [
            format!("{text}-what"),
            text.replacen("00", "ff", 1),
            text.to_uppercase(),
            text.replace("b7ad6b7169203331", "0000000000000000"),
            text.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            text[..54].to_owned(),
            String::new(),
        ];
        for text in wrong {
            assert_eq!(Context::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn a_request_says_it_once() {
        let mut headers = HeaderMap::new();
        assert_eq!(Context::of(&headers), None);
        let context = Context::new(true);
        headers.append(TRACEPARENT, context.header());
        assert_eq!(Context::of(&headers), Some(context));
        let below = context.below();
        assert_eq!((below.trace, below.sampled), (context.trace, true));
        assert_ne!(below.span, context.span);
        headers.append(TRACEPARENT, context.header());
        assert_eq!(Context::of(&headers), None);
    }
}

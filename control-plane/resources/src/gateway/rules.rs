//! What a rule of a route says, where it can say something that is not honoured.

use regex::{Regex, RegexBuilder};

use super::Refusal;
use super::objects::{BackendRef, Filter, Method, PathModifier, Redirect, Route, Rule, ValueMatch};

/// A compiled expression takes this much memory at most: a route must not cost a node's.
const EXPRESSION_BYTES_MAX: usize = 256 << 10;
/// Answers of a redirect.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

pub const EXACT: &str = "Exact";
pub const PREFIX: &str = "PathPrefix";
pub const EXPRESSION: &str = "RegularExpression";
pub const FULL_PATH: &str = "ReplaceFullPath";
pub const PREFIX_MATCH: &str = "ReplacePrefixMatch";

/// A regular expression that has to fit all of a text, as in the crate `regex`.
#[derive(Clone, Debug)]
pub struct Expression(Regex);

impl Expression {
    /// Compiles one; the error says what is wrong with it.
    pub fn new(text: &str) -> Result<Expression, String> {
        let built = RegexBuilder::new(&format!("^(?:{text})$"))
            .size_limit(EXPRESSION_BYTES_MAX)
            .dfa_size_limit(EXPRESSION_BYTES_MAX)
            .build();
        built.map(Expression).map_err(|error| error.to_string())
    }

    pub fn fits(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// A duration as `1h2m3s4ms`, in milliseconds; `None` for anything else.
pub fn duration_ms(text: &str) -> Option<u64> {
    let mut sum = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let (unit, ms) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        sum = sum.checked_add(number.checked_mul(ms)?)?;
    }
    (!text.is_empty()).then_some(sum)
}

/// Why a rule cannot be honoured; its requests are answered with an error.
pub fn refusal(route: &Route, rule: &Rule) -> Option<Refusal> {
    matches(route, rule)
        .or_else(|| filters(route, rule))
        .or_else(|| rule.backend_refs.iter().find_map(backend))
        .or_else(|| timeouts(rule))
}

fn unsupported(message: String) -> Option<Refusal> {
    Some(Refusal { reason: "UnsupportedValue", message })
}

fn matches(route: &Route, rule: &Rule) -> Option<Refusal> {
    for one in &rule.matches {
        if let Some(path) = &one.path {
            let kind = path.r#type.as_deref().unwrap_or(PREFIX);
            match kind {
                EXACT | PREFIX => {}
                EXPRESSION => {
                    if let Some(why) = expression(path.value.as_deref().unwrap_or("/")) {
                        return Some(why);
                    }
                }
                other => return unsupported(format!("there are no path matches of type {other}")),
            }
        }
        if let Some(why) = one.headers.iter().chain(&one.query_params).find_map(value) {
            return Some(why);
        }
        match &one.method {
            Some(Method::Grpc(method)) if route.grpc => {
                let texts = [&method.service, &method.method].into_iter().flatten();
                match method.r#type.as_deref().unwrap_or(EXACT) {
                    EXACT => {}
                    EXPRESSION => {
                        if let Some(why) = texts.into_iter().find_map(|text| expression(text)) {
                            return Some(why);
                        }
                    }
                    other => {
                        let why = format!("there are no method matches of type {other}");
                        return unsupported(why);
                    }
                }
            }
            Some(Method::Http(_)) if !route.grpc => {}
            Some(_) => return unsupported("the method match is of another kind".to_owned()),
            None => {}
        }
    }
    None
}

fn value(one: &ValueMatch) -> Option<Refusal> {
    match one.r#type.as_deref().unwrap_or(EXACT) {
        EXACT => None,
        EXPRESSION => expression(&one.value),
        other => unsupported(format!("there are no matches of type {other} for {:?}", one.name)),
    }
}

fn expression(text: &str) -> Option<Refusal> {
    let why = Expression::new(text).err()?;
    unsupported(format!("{text:?} is no regular expression that can be used: {why}"))
}

fn filters(route: &Route, rule: &Rule) -> Option<Refusal> {
    let has = |kind: &str| rule.filters.iter().any(|filter| filter.r#type == kind);
    if has("RequestRedirect") && has("URLRewrite") {
        let message = "RequestRedirect and URLRewrite cannot be used together".to_owned();
        return Some(Refusal { reason: "IncompatibleFilters", message });
    }
    rule.filters.iter().find_map(|filter| self::filter(route, rule, filter))
}

fn filter(route: &Route, rule: &Rule, filter: &Filter) -> Option<Refusal> {
    let missing = || unsupported(format!("the filter {} says nothing", filter.r#type));
    match filter.r#type.as_str() {
        "RequestHeaderModifier" if filter.request_header_modifier.is_none() => missing(),
        "ResponseHeaderModifier" if filter.response_header_modifier.is_none() => missing(),
        "RequestMirror" if filter.request_mirror.is_none() => missing(),
        "RequestHeaderModifier" | "ResponseHeaderModifier" | "RequestMirror" => None,
        "RequestRedirect" if !route.grpc => match &filter.request_redirect {
            None => missing(),
            Some(redirect) => self::redirect(rule, redirect),
        },
        "URLRewrite" if !route.grpc => match &filter.url_rewrite {
            None => missing(),
            Some(rewrite) => rewrite.path.as_ref().and_then(|path| path_change(rule, path)),
        },
        other => unsupported(format!("there is no filter {other}")),
    }
}

fn redirect(rule: &Rule, redirect: &Redirect) -> Option<Refusal> {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    if !["http", "https"].contains(&scheme) {
        return unsupported(format!("nothing is redirected to the scheme {scheme}"));
    }
    if let Some(status) = redirect.status_code.filter(|status| !REDIRECTS.contains(status)) {
        return unsupported(format!("{status} is no redirect"));
    }
    redirect.path.as_ref().and_then(|path| path_change(rule, path))
}

fn path_change(rule: &Rule, path: &PathModifier) -> Option<Refusal> {
    match path.r#type.as_str() {
        FULL_PATH if path.replace_full_path.is_some() => None,
        PREFIX_MATCH if path.replace_prefix_match.is_some() => {
            let by_prefix = |kind: Option<&str>| kind.unwrap_or(PREFIX) == PREFIX;
            let kinds = rule.matches.iter().map(|one| one.path.as_ref());
            let all = kinds
                .into_iter()
                .all(|path| by_prefix(path.and_then(|path| path.r#type.as_deref())));
            let message = || "a prefix is replaced where a PathPrefix matched".to_owned();
            if all {
                None
            } else {
                Some(Refusal { reason: "IncompatibleFilters", message: message() })
            }
        }
        other => unsupported(format!("a path is not changed by {other:?}")),
    }
}

fn backend(to: &BackendRef) -> Option<Refusal> {
    to.filters.iter().find_map(|filter| match filter.r#type.as_str() {
        "RequestHeaderModifier" if filter.request_header_modifier.is_some() => None,
        "ResponseHeaderModifier" if filter.response_header_modifier.is_some() => None,
        other => unsupported(format!("a backend has no filter {other}")),
    })
}

fn timeouts(rule: &Rule) -> Option<Refusal> {
    let timeouts = rule.timeouts.as_ref()?;
    let both = [&timeouts.request, &timeouts.backend_request].into_iter().flatten();
    let bad = both.into_iter().find(|text| duration_ms(text).is_none())?;
    unsupported(format!("{bad:?} is no duration"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let all = ["1h2m3s4ms", "10s", "0s", "500ms", "", "s", "1x", "1"].map(duration_ms);
        let some = [Some(3_723_004), Some(10_000), Some(0), Some(500)];
        assert_eq!(all, [some[0], some[1], some[2], some[3], None, None, None, None]);
    }

    #[test]
    fn an_expression_fits_the_whole_text() {
        let expression = Expression::new("/v[0-9]+|/x").expect("an expression");
        for (text, fits) in [("/v12", true), ("/x", true), ("/v12/", false), ("a/x", false)] {
            assert_eq!(expression.fits(text), fits, "{text}");
        }
        assert!(Expression::new("(").is_err());
    }
}

//! Label selectors and field selectors: reading them, and matching objects against them.
//!
//! A [`LabelSelector`] comes from a query (`a,b!=c,d in (x,y)`), from a typed
//! `metav1.LabelSelector`, or from a plain map of labels (Services, ReplicationControllers). A
//! [`FieldSelector`] comes from a query only; which fields a kind offers is in `fields`. Parse
//! errors read as those of a stock API server, which answers 400 with exactly that sentence.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use crate::{Object, names};

/// A selector that cannot be read; the message is the whole answer for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

/// How one requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// One value for comparisons, a set for `in` and `notin`, empty for existence.
    pub values: BTreeSet<String>,
}

/// All requirements must hold; without any, everything matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    /// `None` matches nothing: the typed selector was absent.
    requirements: Option<Vec<Requirement>>,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self { requirements: Some(Vec::new()) }
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: None }
    }

    /// Reads the form of queries. An empty text matches everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser::new(text).requirements()?;
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements: Some(requirements) })
    }

    /// Reads a typed `metav1.LabelSelector`: absent matches nothing, empty matches everything.
    pub fn from_typed(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|selector| !selector.is_null()) else {
            return Ok(Self::nothing());
        };
        let mut requirements = Vec::new();
        for (key, value) in
            selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten()
        {
            requirements.push(Requirement::equals(key, value.as_str().unwrap_or("")));
        }
        for expression in crate::meta::items(selector, "matchExpressions") {
            let operator = match crate::meta::text(expression, "operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let message = format!("\"{other}\" is not a valid label selector operator");
                    return Err(SelectorError(message));
                }
            };
            let values = crate::meta::items(expression, "values").iter();
            let requirement = Requirement {
                key: crate::meta::text(expression, "key").to_string(),
                operator,
                values: values.filter_map(Value::as_str).map(str::to_string).collect(),
            };
            requirement.check()?;
            requirements.push(requirement);
        }
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements: Some(requirements) })
    }

    /// Reads a plain map of labels, every one of which must be equal. An empty map matches
    /// everything; callers for whom an empty selector selects nothing (Services) must ask
    /// [`LabelSelector::is_everything`].
    pub fn from_map(labels: &Map<String, Value>) -> Self {
        let mut requirements: Vec<Requirement> = labels
            .iter()
            .map(|(key, value)| Requirement::equals(key, value.as_str().unwrap_or("")))
            .collect();
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Self { requirements: Some(requirements) }
    }

    /// Whether there is no requirement at all.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// The requirements; empty both for everything and for nothing.
    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or(&[])
    }

    /// Whether an object's labels satisfy every requirement.
    pub fn matches(&self, object: &Object) -> bool {
        self.matches_labels(object.pointer("/metadata/labels"))
    }

    /// Whether a map of labels (absent is the empty map) satisfies every requirement.
    pub fn matches_labels(&self, labels: Option<&Value>) -> bool {
        let Some(requirements) = &self.requirements else {
            return false;
        };
        let value = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
        requirements.iter().all(|requirement| requirement.matches(value(&requirement.key)))
    }
}

/// The canonical form, requirements by key; Scale's `status.selector` and the tables show it.
impl fmt::Display for LabelSelector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements().iter().enumerate() {
            if index > 0 {
                out.write_str(",")?;
            }
            requirement.fmt(out)?;
        }
        Ok(())
    }
}

impl Requirement {
    fn equals(key: &str, value: &str) -> Self {
        let values = BTreeSet::from([value.to_string()]);
        Self { key: key.to_string(), operator: Operator::Equals, values }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|text| number(text));
        match self.operator {
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Equals | Operator::In => {
                value.is_some_and(|value| self.values.contains(value))
            }
            Operator::NotEquals | Operator::NotIn => {
                value.is_none_or(|value| !self.values.contains(value))
            }
            Operator::GreaterThan => {
                value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value > bound)
            }
            Operator::LessThan => {
                value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value < bound)
            }
        }
    }

    /// What a requirement must fulfil however it was written.
    fn check(&self) -> Result<(), SelectorError> {
        let refuse = |field: &str, value: &str, detail: &str| {
            Err(SelectorError(format!("{field}: Invalid value: {value}: {detail}")))
        };
        let quoted = |value: &str| format!("{value:?}");
        if let Some(complaint) = names::qualified(&self.key).first() {
            return refuse("key", &quoted(&self.key), complaint);
        }
        let is_set = matches!(self.operator, Operator::In | Operator::NotIn);
        if is_set && self.values.is_empty() {
            return refuse(
                "values",
                "[]",
                "for 'in', 'notin' operators, values set can't be empty",
            );
        }
        let is_existence = matches!(self.operator, Operator::Exists | Operator::DoesNotExist);
        if is_existence && !self.values.is_empty() {
            let values: Vec<String> = self.values.iter().map(|value| quoted(value)).collect();
            let detail = "values set must be empty for exists and does not exist";
            return refuse("values", &format!("[{}]", values.join(",")), detail);
        }
        for (index, value) in self.values.iter().enumerate() {
            let is_order = matches!(self.operator, Operator::GreaterThan | Operator::LessThan);
            if is_order && value.parse::<i64>().is_err() {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                return refuse(&format!("values[{index}]"), &quoted(value), detail);
            }
            if let Some(complaint) = names::label_value(value).first() {
                let field = format!("values[{index}][{}]", self.key);
                return refuse(&field, &quoted(value), complaint);
            }
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let first = || self.values.first().map(String::as_str).unwrap_or("");
        let set = || self.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        match self.operator {
            Operator::Exists => write!(out, "{key}"),
            Operator::DoesNotExist => write!(out, "!{key}"),
            Operator::Equals => write!(out, "{key}={}", first()),
            Operator::NotEquals => write!(out, "{key}!={}", first()),
            Operator::GreaterThan => write!(out, "{key}>{}", first()),
            Operator::LessThan => write!(out, "{key}<{}", first()),
            Operator::In => write!(out, "{key} in ({})", set()),
            Operator::NotIn => write!(out, "{key} notin ({})", set()),
        }
    }
}

/// Operators as the error message about an unknown one lists them.
const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

/// One word of a label selector. `in` and `notin` are words only where an operator may stand: they
/// are also good label keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    End,
    Comma,
    Open,
    Close,
    Not,
    Operator(Operator, &'a str),
    Word(&'a str),
}

impl<'a> Token<'a> {
    fn literal(self) -> &'a str {
        match self {
            Token::End => "",
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::Not => "!",
            Token::Operator(_, text) | Token::Word(text) => text,
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn next(&mut self) -> Token<'a> {
        let text = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let is_special = |c: char| "=!(),<>".contains(c);
        let is_end = |c: char| is_special(c) || " \t\r\n".contains(c);
        let symbols = [
            ("==", Token::Operator(Operator::Equals, "==")),
            ("!=", Token::Operator(Operator::NotEquals, "!=")),
            ("=", Token::Operator(Operator::Equals, "=")),
            (">", Token::Operator(Operator::GreaterThan, ">")),
            ("<", Token::Operator(Operator::LessThan, "<")),
            ("!", Token::Not),
            ("(", Token::Open),
            (")", Token::Close),
            (",", Token::Comma),
        ];
        for (symbol, token) in symbols {
            if let Some(rest) = text.strip_prefix(symbol) {
                self.rest = rest;
                return token;
            }
        }
        let (word, rest) = text.split_at(text.find(is_end).unwrap_or(text.len()));
        self.rest = rest;
        if word.is_empty() { Token::End } else { Token::Word(word) }
    }

    fn peek(&self) -> Token<'a> {
        Parser { rest: self.rest }.next()
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(requirements),
                Token::Word(_) | Token::Not => {}
                other => return unexpected(other, ", expected: !, identifier, or 'end of string'"),
            }
            let requirement = self.requirement().map_err(|SelectorError(message)| {
                SelectorError(format!("unable to parse requirement: {message}"))
            })?;
            requirements.push(requirement);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Comma => {}
                other => return unexpected(other, ", expected: ',' or 'end of string'"),
            }
            match self.peek() {
                Token::Word(_) | Token::Not => {}
                other => return unexpected(other, ", expected: identifier after ','"),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let negated = token == Token::Not;
        if negated {
            token = self.next();
        }
        let Token::Word(key) = token else {
            return unexpected(token, ", expected: identifier");
        };
        let (operator, values) = match self.peek() {
            _ if negated => (Operator::DoesNotExist, BTreeSet::new()),
            Token::End | Token::Comma => (Operator::Exists, BTreeSet::new()),
            _ => self.comparison()?,
        };
        let requirement = Requirement { key: key.to_string(), operator, values };
        requirement.check()?;
        Ok(requirement)
    }

    fn comparison(&mut self) -> Result<(Operator, BTreeSet<String>), SelectorError> {
        let operator = match self.next() {
            Token::Operator(operator, _) => operator,
            Token::Word("in") => Operator::In,
            Token::Word("notin") => Operator::NotIn,
            other => return unexpected(other, &format!(", expected: {OPERATORS}")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.set()?,
            _ => BTreeSet::from([self.value()?]),
        };
        Ok((operator, values))
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(word) => Ok(word.to_string()),
            other => unexpected(other, ", expected: identifier"),
        }
    }

    /// `(a,b)`; an empty place between commas is the empty value.
    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let open = self.next();
        if open != Token::Open {
            return unexpected(open, " expected: '('");
        }
        let mut values = BTreeSet::new();
        if self.peek() == Token::Close {
            self.next();
            return Ok(values);
        }
        let mut value_expected = true;
        loop {
            match self.next() {
                Token::Word(word) if value_expected => {
                    values.insert(word.to_string());
                    value_expected = false;
                }
                Token::Comma => {
                    if value_expected {
                        values.insert(String::new());
                    }
                    value_expected = true;
                }
                Token::Close => {
                    if value_expected {
                        values.insert(String::new());
                    }
                    return Ok(values);
                }
                other if value_expected => {
                    return unexpected(other, ", expected: ',', ')' or identifier");
                }
                other => return unexpected(other, ", expected: ',' or ')'"),
            }
        }
    }
}

fn unexpected<T>(token: Token<'_>, expected: &str) -> Result<T, SelectorError> {
    Err(SelectorError(format!("found '{}'{expected}", token.literal())))
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    /// `!=` instead of `=`.
    pub negated: bool,
}

/// All terms must hold; without any, everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Reads `a=b,c!=d`; a backslash before a comma, an equals sign or a backslash takes it
    /// literally.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let parts = split_unescaped(text).into_iter().filter(|part| !part.is_empty());
        let terms = parts.map(|part| FieldTerm::parse(text, part)).collect::<Result<_, _>>()?;
        Ok(Self { terms })
    }

    /// Whether every term holds, where `value` looks up a field (absent reads as empty).
    pub fn matches(&self, value: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|term| (value(&term.field) == term.value) != term.negated)
    }

    /// The value that the selector demands of a field, if it demands one: lets a caller read one
    /// object instead of all (`metadata.name=x`).
    pub fn exact(&self, field: &str) -> Option<&str> {
        let mut terms = self.terms.iter().filter(|term| !term.negated && term.field == field);
        terms.next().map(|term| term.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if term.negated { "!=" } else { "=" };
            let escape = |c: char| [Some('\\').filter(|_| ",=\\".contains(c)), Some(c)];
            let value: String = term.value.chars().flat_map(escape).flatten().collect();
            write!(out, "{comma}{}{operator}{value}", term.field)?;
        }
        Ok(())
    }
}

impl FieldTerm {
    fn parse(selector: &str, part: &str) -> Result<Self, SelectorError> {
        let refuse = || {
            let message = format!("invalid selector: '{selector}'; can't understand '{part}'");
            SelectorError(message)
        };
        let at = part.find('=').ok_or_else(refuse)?;
        let (field, negated) = match part[..at].strip_suffix('!') {
            Some(field) => (field, true),
            None => (&part[..at], false),
        };
        let rest = &part[at + 1..];
        let value = if negated { rest } else { rest.strip_prefix('=').unwrap_or(rest) };
        let value = unescape(value)?;
        Ok(Self { field: field.to_string(), value, negated })
    }
}

/// Splits at commas that no backslash stands before.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        if c == ',' && !escaped {
            parts.push(&text[start..at]);
            start = at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let mut value = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => value.push(escaped),
                Some(other) => {
                    let message =
                        format!("invalid field selector: invalid escape sequence: \\{other}");
                    return Err(SelectorError(message));
                }
                None => {
                    let message = "invalid field selector: invalid escape sequence: \\";
                    return Err(SelectorError(message.to_string()));
                }
            },
            ',' | '=' => {
                let message = format!("invalid field selector: unescaped character in value: {c}");
                return Err(SelectorError(message));
            }
            other => value.push(other),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_in_canonical_form() {
        let cases = [
            ("", ""),
            ("a", "a"),
            ("!a", "!a"),
            ("b=c, a==d", "a=d,b=c"),
            ("a!=b", "a!=b"),
            ("a in (y, x)", "a in (x,y)"),
            ("a notin (x)", "a notin (x)"),
            ("a in (,x)", "a in (,x)"),
            ("a=", "a="),
            ("in in (in)", "in in (in)"),
            ("a>1", "a>1"),
            ("x=a,", "found '', expected: identifier after ','"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("a in x", "unable to parse requirement: found 'x' expected: '('"),
            ("a in (x", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' \
                 operators, values set can't be empty",
            ),
        ];
        for (text, expected) in cases {
            let found = match LabelSelector::parse(text) {
                Ok(selector) => selector.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn labels_match() {
        let cases = [
            ("", true),
            ("app=web", true),
            ("app=db", false),
            ("app!=db", true),
            ("tier!=x", true),
            ("tier notin (x)", true),
            ("tier", false),
            ("!tier", true),
            ("app in (web,db)", true),
            ("n>1", true),
            ("n<2", false),
            ("app=web,!app", false),
        ];
        let object = json!({"metadata": {"labels": {"app": "web", "n": "2"}}});
        for (text, expected) in cases {
            let selector = LabelSelector::parse(text).expect("a selector");
            assert_eq!(selector.matches(&object), expected, "{text:?}");
        }
    }

    #[test]
    fn typed_selectors() {
        let object = json!({"metadata": {"labels": {"app": "web"}}});
        let cases = [
            (json!(null), false, ""),
            (json!({}), true, ""),
            (json!({"matchLabels": {"app": "web"}}), true, "app=web"),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db"]}]}),
                false,
                "app in (db)",
            ),
        ];
        for (typed, expected, text) in cases {
            let selector = LabelSelector::from_typed(Some(&typed)).expect("a selector");
            assert_eq!(
                (selector.matches(&object), selector.to_string().as_str()),
                (expected, text)
            );
        }
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Is"}]});
        let error = LabelSelector::from_typed(Some(&bad)).expect_err("an unknown operator");
        assert_eq!(error.to_string(), "\"Is\" is not a valid label selector operator");
    }

    #[test]
    fn field_selectors() {
        let cases = [
            ("", ""),
            ("a=b", "a=b"),
            ("a==b,c!=d", "a=b,c!=d"),
            ("a=,", "a="),
            (r"a=x\,y", r"a=x\,y"),
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            ("a=b=c", "invalid field selector: unescaped character in value: ="),
        ];
        for (text, expected) in cases {
            let found = match FieldSelector::parse(text) {
                Ok(selector) => selector.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{text:?}");
        }
        let selector = FieldSelector::parse("a=1,b!=2").expect("a selector");
        assert!(selector.matches(|field| if field == "a" { "1".into() } else { String::new() }));
        assert_eq!((selector.exact("a"), selector.exact("b")), (Some("1"), None));
    }
}

//! Words to fields: tilde, parameters, `$(...)`, arithmetic, splitting, file names, quotes.
//!
//! A word becomes [`Piece`]s first, each knowing whether it was quoted and whether it splits; only
//! then fields are cut and file names looked up, so quoting never has to be undone.

use std::path::Path;

use brush_parser::ast::{
    Command, CommandPrefixOrSuffixItem as Item, IoFileRedirectKind as Kind, IoRedirect, Word,
};
use brush_parser::pattern::{pattern_has_glob_metacharacters, pattern_to_regex_str};
use brush_parser::word::{
    self, BraceExpressionMember, BraceExpressionOrText, Parameter, ParameterExpr,
    ParameterTestType, SpecialParameter, SubstringMatchKind, TildeExpr, WordPiece,
    WordPieceWithSource,
};
use futures::future::{FutureExt, LocalBoxFuture};
use regex_lite::Regex;

use super::{Flow, Run, Shell, Stream, Traps, builtins, parser_options};
use crate::escapes;
use crate::files;
use crate::io::Output;

/// Words that one brace expression or glob may become: `{1..1000000000}` must not fill the memory.
const WORDS_MAX: usize = 100_000;

/// A part of an expanded word.
enum Piece {
    Text {
        text: String,
        /// Quoted text neither splits nor names files.
        quoted: bool,
        /// Whether it came from an expansion, which is cut at `$IFS`.
        splits: bool,
    },
    /// Between the parts of `"$@"`.
    Break,
}

/// A field whose parts know whether they are patterns.
type Field = Vec<(String, bool)>;

impl Piece {
    fn quoted(text: impl Into<String>) -> Piece {
        Piece::Text { text: text.into(), quoted: true, splits: false }
    }

    fn plain(text: impl Into<String>) -> Piece {
        Piece::Text { text: text.into(), quoted: false, splits: false }
    }
}

impl Shell {
    /// A word as any number of arguments.
    pub(super) async fn fields(&mut self, word: &Word) -> Run<Vec<String>> {
        let mut all = Vec::new();
        for word in braces(&word.value) {
            let pieces = self.pieces(&word, false).await?;
            for field in split(pieces, &self.separators()) {
                self.glob(field, &mut all);
            }
        }
        Ok(all)
    }

    /// A word as one text: for assignments, `case`, redirections.
    pub(super) async fn one(&mut self, word: &str) -> Run<String> {
        Ok(joined(self.pieces(word, false).await?, |text, _| text))
    }

    /// A word as a pattern: what was quoted stands for itself.
    pub(super) async fn pattern(&mut self, word: &str) -> Run<String> {
        let pieces = self.pieces(word, false).await?;
        Ok(joined(pieces, |text, quoted| if quoted { escaped(&text) } else { text }))
    }

    /// The text of a here-document.
    pub(super) async fn here_document(&mut self, text: &str) -> Run<String> {
        let parsed = word::parse_heredoc(text, &parser_options());
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Err(self.fatal(&error.to_string()).await),
        };
        let mut pieces = Vec::new();
        for piece in parsed {
            self.piece(piece, true, &mut pieces).await?;
        }
        Ok(joined(pieces, |text, _| text))
    }

    fn pieces<'a>(
        &'a mut self,
        word: &'a str,
        quoted: bool,
    ) -> LocalBoxFuture<'a, Run<Vec<Piece>>> {
        async move {
            let parsed = match word::parse(word, &parser_options()) {
                Ok(parsed) => parsed,
                Err(error) => return Err(self.fatal(&error.to_string()).await),
            };
            let mut pieces = Vec::new();
            for piece in parsed {
                self.piece(piece, quoted, &mut pieces).await?;
            }
            Ok(pieces)
        }
        .boxed_local()
    }

    fn piece<'a>(
        &'a mut self,
        piece: WordPieceWithSource,
        quoted: bool,
        out: &'a mut Vec<Piece>,
    ) -> LocalBoxFuture<'a, Run<()>> {
        let found = move |text: String| Piece::Text { text, quoted, splits: !quoted };
        async move {
            match piece.piece {
                WordPiece::Text(text) if quoted => out.push(Piece::quoted(text)),
                WordPiece::Text(text) => out.push(Piece::plain(text)),
                WordPiece::SingleQuotedText(text) => out.push(Piece::quoted(text)),
                WordPiece::AnsiCQuotedText(text) => {
                    let bytes = escapes::expand(&text, escapes::Octal::Bare).0;
                    out.push(Piece::quoted(String::from_utf8_lossy(&bytes)));
                }
                WordPiece::DoubleQuotedSequence(inner)
                | WordPiece::GettextDoubleQuotedSequence(inner) => {
                    let before = out.len();
                    let only_parameters = inner.len() == 1 && is_all_parameters(&inner[0].piece);
                    for piece in inner {
                        self.piece(piece, true, out).await?;
                    }
                    if out.len() == before && !only_parameters {
                        out.push(Piece::quoted(""));
                    }
                }
                WordPiece::TildeExpansion(tilde) => out.push(Piece::quoted(self.tilde(&tilde))),
                WordPiece::EscapeSequence(text) => {
                    let text = text.strip_prefix('\\').unwrap_or(&text);
                    if text != "\n" {
                        out.push(Piece::quoted(text));
                    }
                }
                WordPiece::CommandSubstitution(text)
                | WordPiece::BackquotedCommandSubstitution(text) => {
                    out.push(found(self.substitute(&text).await?));
                }
                WordPiece::ArithmeticExpression(expression) => {
                    let value = self.arithmetic(&expression.value).await?;
                    out.push(found(value.to_string()));
                }
                WordPiece::ParameterExpansion(expression) => {
                    self.parameter(expression, quoted, out).await?;
                }
            }
            Ok(())
        }
        .boxed_local()
    }

    fn tilde(&self, tilde: &TildeExpr) -> String {
        let name = match tilde {
            TildeExpr::WorkingDir => "PWD",
            TildeExpr::OldWorkingDir => "OLDPWD",
            _ => "HOME",
        };
        self.get(name).unwrap_or_else(|| "/".to_owned())
    }

    /// What a command prints, without the line ends at its end.
    async fn substitute(&mut self, text: &str) -> Run<String> {
        // `$(< FILE)` is what is in the file.
        let shown = format!("cat {text}");
        let text = if only_reads(text) { shown.as_str() } else { text };
        let mut inner = self.clone();
        let output = Output::memory();
        inner.fds.insert(1, Stream::Out(output.clone()));
        inner.traps = Traps::default();
        inner.depth += 1;
        self.check_depth(inner.depth).await?;
        self.status = inner.script(text).await;
        let text = String::from_utf8_lossy(&output.take()).replace('\0', "");
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// The values of a parameter; None if it is not set. Lists have several.
    fn values(&mut self, parameter: &Parameter) -> Option<Vec<String>> {
        let one = |text: String| Some(vec![text]);
        match parameter {
            Parameter::Positional(0) => one(self.name.clone()),
            Parameter::Positional(number) => {
                let index = usize::try_from(*number).unwrap_or(usize::MAX) - 1;
                self.parameters.get(index).map(|value| vec![value.clone()])
            }
            Parameter::Special(special) => match special {
                SpecialParameter::AllPositionalParameters { .. } => Some(self.parameters.clone()),
                SpecialParameter::PositionalParameterCount => {
                    one(self.parameters.len().to_string())
                }
                SpecialParameter::LastExitStatus => one(self.status.to_string()),
                SpecialParameter::CurrentOptionFlags => one(self.options.letters()),
                SpecialParameter::ProcessId => one(builtins::SHELL.to_owned()),
                SpecialParameter::LastBackgroundProcessId => {
                    self.last_job.map(|job| vec![builtins::job_id(job).to_string()])
                }
                SpecialParameter::ShellName => one(self.name.clone()),
            },
            Parameter::Named(name) => match name.as_str() {
                "RANDOM" => {
                    // The generator of the C standard's example, as small shells have it.
                    self.random = self.random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                    one(((self.random >> 16) & 0x7fff).to_string())
                }
                "SECONDS" => one(self.started.elapsed().as_secs().to_string()),
                "PPID" => one("0".to_owned()),
                name => self.get(name).map(|value| vec![value]),
            },
            Parameter::NamedWithIndex { name, index } => {
                let variable = self.variables.get(name)?;
                let index: usize = match index.trim().parse() {
                    Ok(index) => index,
                    Err(_) => self.get(index.trim_start_matches('$'))?.parse().ok()?,
                };
                let variable = self.variables.get(name).unwrap_or(variable);
                match &variable.list {
                    Some(list) => list.get(index).map(|value| vec![value.clone()]),
                    None => (index == 0).then(|| vec![variable.value.clone()]),
                }
            }
            Parameter::NamedWithAllIndices { name, .. } => {
                let variable = self.variables.get(name)?;
                Some(variable.list.clone().unwrap_or_else(|| vec![variable.value.clone()]))
            }
        }
    }

    async fn parameter(
        &mut self,
        expression: ParameterExpr,
        quoted: bool,
        out: &mut Vec<Piece>,
    ) -> Run<()> {
        use ParameterExpr as E;
        let values = match expression {
            E::Parameter { parameter, indirect } => {
                let parameter = self.followed(parameter, indirect);
                let values = self.values(&parameter);
                if values.is_none() && self.options.error_on_unset {
                    let name = parameter.to_string();
                    let name = name.trim_start_matches('$').trim_matches(['{', '}']).to_owned();
                    return Err(self.fatal(&format!("{name}: parameter not set")).await);
                }
                let values = values.unwrap_or_default();
                return self.spread(&parameter, values, quoted, out);
            }
            E::UseDefaultValues { parameter, indirect, test_type, default_value } => {
                let parameter = self.followed(parameter, indirect);
                match self.set_values(&parameter, &test_type) {
                    Some(values) => return self.spread(&parameter, values, quoted, out),
                    None => return self.alternative(default_value, quoted, out).await,
                }
            }
            E::AssignDefaultValues { parameter, indirect, test_type, default_value } => {
                let parameter = self.followed(parameter, indirect);
                match self.set_values(&parameter, &test_type) {
                    Some(values) => values,
                    None => {
                        let value = self.one(&default_value.unwrap_or_default()).await?;
                        if let Parameter::Named(name) = &parameter
                            && let Err(message) = self.set(name, value.clone())
                        {
                            return Err(self.fatal(&message).await);
                        }
                        vec![value]
                    }
                }
            }
            E::IndicateErrorIfNullOrUnset { parameter, indirect, test_type, error_message } => {
                let parameter = self.followed(parameter, indirect);
                match self.set_values(&parameter, &test_type) {
                    Some(values) => values,
                    None => {
                        let message = match error_message {
                            Some(message) => self.one(&message).await?,
                            None => "parameter not set".to_owned(),
                        };
                        let name = parameter.to_string();
                        let name = name.trim_start_matches('$').trim_matches(['{', '}']).to_owned();
                        return Err(self.fatal(&format!("{name}: {message}")).await);
                    }
                }
            }
            E::UseAlternativeValue { parameter, indirect, test_type, alternative_value } => {
                let parameter = self.followed(parameter, indirect);
                match self.set_values(&parameter, &test_type) {
                    Some(_) => return self.alternative(alternative_value, quoted, out).await,
                    None => Vec::new(),
                }
            }
            E::ParameterLength { parameter, indirect } => {
                let parameter = self.followed(parameter, indirect);
                let values = self.values(&parameter).unwrap_or_default();
                let length = match &parameter {
                    Parameter::NamedWithAllIndices { .. }
                    | Parameter::Special(SpecialParameter::AllPositionalParameters { .. }) => {
                        values.len()
                    }
                    _ => values.first().map_or(0, |value| value.chars().count()),
                };
                vec![length.to_string()]
            }
            other => self.transformed(other).await?,
        };
        let text = values.join(" ");
        if !text.is_empty() || quoted {
            out.push(Piece::Text { text, quoted, splits: !quoted });
        }
        Ok(())
    }

    /// Expansions that change each value by itself.
    async fn transformed(&mut self, expression: ParameterExpr) -> Run<Vec<String>> {
        use ParameterExpr as E;
        let (parameter, pattern, change): (_, _, fn(&str, &Regex) -> String) = match expression {
            E::RemoveSmallestSuffixPattern { parameter, indirect, pattern } => {
                (self.followed(parameter, indirect), pattern, |text, regex| {
                    let cut = boundaries(text).rev().find(|at| regex.is_match(&text[*at..]));
                    text[..cut.unwrap_or(text.len())].to_owned()
                })
            }
            E::RemoveLargestSuffixPattern { parameter, indirect, pattern } => {
                (self.followed(parameter, indirect), pattern, |text, regex| {
                    let cut = boundaries(text).find(|at| regex.is_match(&text[*at..]));
                    text[..cut.unwrap_or(text.len())].to_owned()
                })
            }
            E::RemoveSmallestPrefixPattern { parameter, indirect, pattern } => {
                (self.followed(parameter, indirect), pattern, |text, regex| {
                    let cut = boundaries(text).find(|at| regex.is_match(&text[..*at]));
                    text[cut.unwrap_or(0)..].to_owned()
                })
            }
            E::RemoveLargestPrefixPattern { parameter, indirect, pattern } => {
                (self.followed(parameter, indirect), pattern, |text, regex| {
                    let cut = boundaries(text).rev().find(|at| regex.is_match(&text[..*at]));
                    text[cut.unwrap_or(0)..].to_owned()
                })
            }
            E::UppercasePattern { parameter, indirect, .. } => {
                (self.followed(parameter, indirect), None, |text, _| text.to_uppercase())
            }
            E::LowercasePattern { parameter, indirect, .. } => {
                (self.followed(parameter, indirect), None, |text, _| text.to_lowercase())
            }
            E::UppercaseFirstChar { parameter, indirect, .. } => {
                (self.followed(parameter, indirect), None, |text, _| {
                    first_changed(text, |c| c.to_uppercase().to_string())
                })
            }
            E::LowercaseFirstChar { parameter, indirect, .. } => {
                (self.followed(parameter, indirect), None, |text, _| {
                    first_changed(text, |c| c.to_lowercase().to_string())
                })
            }
            E::Substring { parameter, indirect, offset, length } => {
                let parameter = self.followed(parameter, indirect);
                let offset = self.arithmetic(&offset.value).await?;
                let length = match length {
                    Some(length) => Some(self.arithmetic(&length.value).await?),
                    None => None,
                };
                return Ok(self.part(&parameter, offset, length));
            }
            E::ReplaceSubstring { parameter, indirect, pattern, replacement, match_kind } => {
                let parameter = self.followed(parameter, indirect);
                let pattern = self.pattern(&pattern).await?;
                let replacement = self.one(&replacement.unwrap_or_default()).await?;
                let values = self.values(&parameter).unwrap_or_default();
                let replace = |value: String| replaced(&value, &pattern, &replacement, &match_kind);
                return Ok(values.into_iter().map(replace).collect());
            }
            E::VariableNames { prefix, .. } => {
                let names = self.variables.keys().filter(|name| name.starts_with(&prefix));
                return Ok(names.cloned().collect());
            }
            E::MemberKeys { variable_name, .. } => {
                let list = self.variables.get(&variable_name).and_then(|it| it.list.as_ref());
                return Ok((0..list.map_or(0, Vec::len)).map(|index| index.to_string()).collect());
            }
            _ => return Err(self.fatal("bad substitution").await),
        };
        let values = self.values(&parameter).unwrap_or_default();
        let pattern = self.pattern(&pattern.unwrap_or_default()).await?;
        let Some(regex) = whole(&pattern) else { return Ok(values) };
        Ok(values.iter().map(|value| change(value, &regex)).collect())
    }

    /// `${!name}`: the parameter that another one names.
    fn followed(&mut self, parameter: Parameter, indirect: bool) -> Parameter {
        if !indirect {
            return parameter;
        }
        let name = self.values(&parameter).unwrap_or_default().concat();
        word::parse_parameter(&name, &parser_options()).unwrap_or(Parameter::Named(name))
    }

    /// The values if they count as set.
    fn set_values(
        &mut self,
        parameter: &Parameter,
        test: &ParameterTestType,
    ) -> Option<Vec<String>> {
        let values = self.values(parameter)?;
        match test {
            ParameterTestType::Unset if values.is_empty() => None,
            ParameterTestType::Unset => Some(values),
            ParameterTestType::UnsetOrNull => {
                values.iter().any(|value| !value.is_empty()).then_some(values)
            }
        }
    }

    /// The word after `:-` or `:+`, in which quotes count.
    async fn alternative(
        &mut self,
        word: Option<String>,
        quoted: bool,
        out: &mut Vec<Piece>,
    ) -> Run<()> {
        let pieces = self.pieces(&word.unwrap_or_default(), quoted).await?;
        out.extend(pieces.into_iter().map(|piece| match piece {
            Piece::Text { text, quoted: false, .. } => {
                Piece::Text { text, quoted: false, splits: true }
            }
            piece => piece,
        }));
        Ok(())
    }

    /// Puts values out as the parameter wants them: one text, or each by itself.
    fn spread(
        &self,
        parameter: &Parameter,
        values: Vec<String>,
        quoted: bool,
        out: &mut Vec<Piece>,
    ) -> Run<()> {
        let (list, concatenate) = match parameter {
            Parameter::Special(SpecialParameter::AllPositionalParameters { concatenate })
            | Parameter::NamedWithAllIndices { concatenate, .. } => (true, *concatenate),
            _ => (false, false),
        };
        if list && !(concatenate && quoted) {
            for (index, text) in values.into_iter().enumerate() {
                if index > 0 {
                    out.push(Piece::Break);
                }
                out.push(Piece::Text { text, quoted, splits: !quoted });
            }
            return Ok(());
        }
        let separator = match self.get("IFS") {
            Some(separators) => separators.chars().next().map(String::from).unwrap_or_default(),
            None => " ".to_owned(),
        };
        let text = values.join(&separator);
        if !text.is_empty() || quoted {
            out.push(Piece::Text { text, quoted, splits: !quoted });
        }
        Ok(())
    }

    /// `${name:offset:length}`
    fn part(&mut self, parameter: &Parameter, offset: i64, length: Option<i64>) -> Vec<String> {
        let values = self.values(parameter).unwrap_or_default();
        let list = matches!(
            parameter,
            Parameter::NamedWithAllIndices { .. }
                | Parameter::Special(SpecialParameter::AllPositionalParameters { .. })
        );
        if list {
            // `${@:1}` begins with the first parameter, `${list[@]:1}` with the second element.
            let first = i64::from(matches!(parameter, Parameter::Special(_)));
            let (from, to) = range(values.len(), offset - first, length);
            return values[from..to].to_vec();
        }
        let text: Vec<char> = values.concat().chars().collect();
        let (from, to) = range(text.len(), offset, length);
        vec![text[from..to].iter().collect()]
    }

    fn separators(&self) -> String {
        self.get("IFS").unwrap_or_else(|| " \t\n".to_owned())
    }

    /// The files that a field names, or the field itself.
    fn glob(&self, field: Field, all: &mut Vec<String>) {
        let plain: String = field.iter().map(|(text, _)| text.as_str()).collect();
        let pattern: String = field
            .iter()
            .map(|(text, quoted)| if *quoted { escaped(text) } else { text.clone() })
            .collect();
        let special = !self.options.no_glob
            && field.iter().any(|(text, quoted)| !quoted && text.contains(['*', '?', '[']))
            && pattern_has_glob_metacharacters(&pattern, true);
        if !special {
            all.push(plain);
            return;
        }
        let mut found = vec![String::new()];
        let mut parts = pattern.split('/').peekable();
        while let Some(part) = parts.next() {
            let end = if parts.peek().is_some() { "/" } else { "" };
            found = found.iter().flat_map(|so_far| self.step(so_far, part, end)).collect();
            found.truncate(WORDS_MAX);
        }
        if found.is_empty() {
            all.push(plain);
        } else {
            found.sort();
            all.extend(found);
        }
    }

    /// One part of a path pattern, below what was found so far.
    fn step(&self, so_far: &str, part: &str, end: &str) -> Vec<String> {
        if !pattern_has_glob_metacharacters(part, true) {
            let name = unescaped(part);
            let path = format!("{so_far}{name}");
            let there = end == "/" || files::exists(&files::absolute(&self.cwd, &path));
            return if there { vec![format!("{path}{end}")] } else { Vec::new() };
        }
        let folder = files::absolute(&self.cwd, so_far);
        let Some(regex) = whole(part) else { return Vec::new() };
        let names = files::list(&folder).unwrap_or_default();
        names
            .into_iter()
            .filter(|name| !name.starts_with('.') || part.starts_with('.'))
            .filter(|name| regex.is_match(name))
            .filter(|name| end.is_empty() || files::is_dir(&folder.join(name)))
            .map(|name| format!("{so_far}{name}{end}"))
            .collect()
    }

    /// Reports an error that ends the script.
    pub(super) async fn fatal(&mut self, message: &str) -> Flow {
        self.complain(message).await;
        self.status = 1;
        Flow::Exit(1)
    }

    pub(super) async fn check_depth(&mut self, depth: u32) -> Run<()> {
        if depth <= super::DEPTH_MAX {
            return Ok(());
        }
        let message = format!("more than {} calls within each other", super::DEPTH_MAX);
        Err(self.fatal(&message).await)
    }
}

/// Whether a script is nothing but a file for the input of no command.
fn only_reads(text: &str) -> bool {
    if !text.trim_start().starts_with('<') {
        return false;
    }
    let Ok(program) = super::parse(text) else { return false };
    let [list] = &program.complete_commands[..] else { return false };
    let [item] = &list.0[..] else { return false };
    let [Command::Simple(command)] = &item.0.first.seq[..] else { return false };
    let prefix = command.prefix.as_ref().map_or(&[][..], |prefix| &prefix.0);
    item.0.additional.is_empty()
        && command.word_or_name.is_none()
        && matches!(prefix, [Item::IoRedirect(IoRedirect::File(None, Kind::Read, _))])
}

fn is_all_parameters(piece: &WordPiece) -> bool {
    let WordPiece::ParameterExpansion(ParameterExpr::Parameter { parameter, .. }) = piece else {
        return false;
    };
    matches!(
        parameter,
        Parameter::Special(SpecialParameter::AllPositionalParameters { concatenate: false })
            | Parameter::NamedWithAllIndices { concatenate: false, .. }
    )
}

/// Everything in one text, with a space where `"$@"` would break.
fn joined(pieces: Vec<Piece>, form: impl Fn(String, bool) -> String) -> String {
    let text = |piece| match piece {
        Piece::Text { text, quoted, .. } => form(text, quoted),
        Piece::Break => " ".to_owned(),
    };
    pieces.into_iter().map(text).collect()
}

/// Cuts pieces into fields.
fn split(pieces: Vec<Piece>, separators: &str) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    let mut current: Option<Field> = None;
    for piece in pieces {
        match piece {
            Piece::Break => fields.extend(current.take()),
            Piece::Text { text, quoted, splits: false } => {
                if quoted || !text.is_empty() {
                    current.get_or_insert_default().push((text, quoted));
                }
            }
            Piece::Text { text, .. } => split_text(&text, separators, &mut fields, &mut current),
        }
    }
    fields.extend(current);
    fields
}

/// The fields of a text, as `read -a` wants them.
pub(super) fn fields_of(text: &str, separators: &str) -> Vec<String> {
    let (mut fields, mut current) = (Vec::new(), None);
    split_text(text, separators, &mut fields, &mut current);
    fields.extend(current);
    let plain = |field: Field| field.into_iter().map(|(text, _)| text).collect();
    fields.into_iter().map(plain).collect()
}

/// Blanks among the separators count once and not at the ends; each other one ends a field.
fn split_text(text: &str, separators: &str, fields: &mut Vec<Field>, current: &mut Option<Field>) {
    let is_blank = |c: char| separators.contains(c) && c.is_ascii_whitespace();
    let mut word = String::new();
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if !separators.contains(c) {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            current.get_or_insert_default().push((std::mem::take(&mut word), false));
        }
        let mut hard = !is_blank(c);
        while let Some(next) = characters.peek() {
            if is_blank(*next) || (!hard && separators.contains(*next)) {
                hard |= !is_blank(*next);
                characters.next();
            } else {
                break;
            }
        }
        if hard {
            fields.push(current.take().unwrap_or_default());
        } else {
            fields.extend(current.take());
        }
    }
    if !word.is_empty() {
        current.get_or_insert_default().push((word, false));
    }
}

/// `a{b,c}` as the words it stands for.
fn braces(word: &str) -> Vec<String> {
    if !word.contains('{') {
        return vec![word.to_owned()];
    }
    match word::parse_brace_expansions(word, &parser_options()) {
        Ok(Some(parts)) => braces_of(&parts),
        Ok(None) | Err(_) => vec![word.to_owned()],
    }
}

fn braces_of(parts: &[BraceExpressionOrText]) -> Vec<String> {
    let mut all = vec![String::new()];
    for part in parts {
        let choices: Vec<String> = match part {
            BraceExpressionOrText::Text(text) => vec![text.clone()],
            BraceExpressionOrText::Expr(members) => members.iter().flat_map(members_of).collect(),
        };
        let combine = |before: &String| -> Vec<String> {
            choices.iter().map(|choice| format!("{before}{choice}")).collect()
        };
        all = all.iter().flat_map(combine).take(WORDS_MAX).collect();
    }
    all
}

fn members_of(member: &BraceExpressionMember) -> Vec<String> {
    match member {
        BraceExpressionMember::Child(parts) => braces_of(parts),
        BraceExpressionMember::NumberSequence { start, end, increment } => {
            sequence(*start, *end, *increment).map(|number| number.to_string()).collect()
        }
        BraceExpressionMember::CharSequence { start, end, increment } => {
            let (start, end) = (i64::from(u32::from(*start)), i64::from(u32::from(*end)));
            let characters = sequence(start, end, *increment);
            characters
                .filter_map(|code| char::from_u32(u32::try_from(code).ok()?))
                .map(String::from)
                .collect()
        }
    }
}

fn sequence(start: i64, end: i64, increment: i64) -> impl Iterator<Item = i64> {
    let step = increment.saturating_abs().max(1);
    let step = if start <= end { step } else { -step };
    let mut next = Some(start);
    std::iter::from_fn(move || {
        let now = next?;
        if (step > 0 && now > end) || (step < 0 && now < end) {
            return None;
        }
        next = now.checked_add(step);
        Some(now)
    })
    .take(WORDS_MAX)
}

fn range(count: usize, offset: i64, length: Option<i64>) -> (usize, usize) {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let from = if offset < 0 { (count + offset).max(0) } else { offset.min(count) };
    let to = match length {
        None => count,
        Some(length) if length < 0 => (count + length).max(from),
        Some(length) => from.saturating_add(length).min(count),
    };
    // Both are between 0 and the count, which was a usize.
    (usize::try_from(from).unwrap_or(0), usize::try_from(to).unwrap_or(0))
}

fn boundaries(text: &str) -> impl DoubleEndedIterator<Item = usize> + '_ {
    (0..=text.len()).filter(|at| text.is_char_boundary(*at))
}

fn first_changed(text: &str, change: impl Fn(char) -> String) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => change(first) + characters.as_str(),
        None => String::new(),
    }
}

fn replaced(text: &str, pattern: &str, by: &str, kind: &SubstringMatchKind) -> String {
    let Ok(expression) = pattern_to_regex_str(pattern, true) else { return text.to_owned() };
    let expression = match kind {
        SubstringMatchKind::Prefix => format!("(?s)^(?:{expression})"),
        SubstringMatchKind::Suffix => format!("(?s)(?:{expression})$"),
        _ => format!("(?s){expression}"),
    };
    let Ok(regex) = Regex::new(&expression) else { return text.to_owned() };
    let by = regex_lite::NoExpand(by);
    match kind {
        SubstringMatchKind::Anywhere => regex.replace_all(text, by).into_owned(),
        _ => regex.replace(text, by).into_owned(),
    }
}

/// A shell pattern that must match all of a text. None if it is none.
fn whole(pattern: &str) -> Option<Regex> {
    let expression = pattern_to_regex_str(pattern, true).ok()?;
    Regex::new(&format!("(?s)^(?:{expression})$")).ok()
}

/// Whether a shell pattern matches all of a text.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    match whole(pattern) {
        Some(regex) => regex.is_match(text),
        None => pattern == text,
    }
}

/// Whether a file name matches a pattern (`find -name`).
pub fn name_matches(pattern: &str, path: &Path) -> bool {
    path.file_name().is_some_and(|name| matches(pattern, &name.to_string_lossy()))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if "*?[]\\()|!+@".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn unescaped(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut characters = pattern.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => out.extend(characters.next()),
            c => out.push(c),
        }
    }
    out
}

//! Running the syntax tree.

use std::collections::BTreeMap;
use std::rc::Rc;

use brush_parser::ast::{
    AndOr, AndOrList, Assignment, AssignmentName, AssignmentValue, CaseClauseCommand,
    CaseItemPostAction, CommandPrefixOrSuffixItem, CompoundCommand, CompoundList, ForClauseCommand,
    IfClauseCommand, IoFileRedirectKind, IoFileRedirectTarget, IoRedirect, Pipeline,
    ProcessSubstitutionKind, Program, SeparatorOperator, SimpleCommand, Word,
};
use futures::future::{FutureExt, LocalBoxFuture, join_all};

use super::{Flow, Run, Shell, Stream, Traps, Variable, builtins, expand};
use crate::applets;
use crate::command::{Command, Failure};
use crate::files::{self, Mode};
use crate::io::{Input, pipe};
use crate::runtime;
use crate::signals::Signal;

type Walk<'a> = LocalBoxFuture<'a, Run<()>>;

impl Shell {
    pub(super) async fn program(&mut self, program: &Program) -> Run<()> {
        for list in &program.complete_commands {
            self.list(list).await?;
        }
        Ok(())
    }

    fn list<'a>(&'a mut self, list: &'a CompoundList) -> Walk<'a> {
        async move {
            for item in &list.0 {
                match item.1 {
                    SeparatorOperator::Sequence => self.and_or(&item.0).await?,
                    SeparatorOperator::Async => self.start_job(item.0.clone()),
                }
                self.trapped().await?;
            }
            Ok(())
        }
        .boxed_local()
    }

    /// Does what traps say of signals that have come.
    async fn trapped(&mut self) -> Run<()> {
        for signal in Signal::ALL {
            let Some(action) = self.traps.signals.get(&signal).cloned() else { continue };
            if signal.take() && !action.is_empty() {
                let status = self.status;
                builtins::nested(self, &action).await?;
                self.status = status;
            }
        }
        Ok(())
    }

    fn start_job(&mut self, list: AndOrList) {
        let mut inner = self.clone();
        inner.traps = Traps::default();
        inner.fds.insert(0, Stream::In(Input::null()));
        self.last_job = Some(builtins::start(self, async move {
            let flow = inner.and_or(&list).await;
            inner.finish(flow).await
        }));
        self.status = 0;
    }

    async fn and_or(&mut self, list: &AndOrList) -> Run<()> {
        let count = list.additional.len();
        self.pipeline(&list.first, count > 0).await?;
        for (index, next) in list.additional.iter().enumerate() {
            let (wanted, pipeline) = match next {
                AndOr::And(pipeline) => (self.status == 0, pipeline),
                AndOr::Or(pipeline) => (self.status != 0, pipeline),
            };
            if wanted {
                self.pipeline(pipeline, index + 1 < count).await?;
            }
        }
        Ok(())
    }

    /// `checked`: something after it looks at its result, so a failure is no surprise.
    async fn pipeline(&mut self, pipeline: &Pipeline, checked: bool) -> Run<()> {
        let checked = checked || pipeline.bang;
        let started = pipeline.timed.is_some().then(std::time::Instant::now);
        self.conditions += u32::from(checked);
        let flow = match pipeline.seq.as_slice() {
            [command] => self.command(command).await,
            commands => {
                self.piped(commands).await;
                Ok(())
            }
        };
        self.conditions -= u32::from(checked);
        flow?;
        if let Some(started) = started {
            let text = format!("real\t{:.3}s\n", started.elapsed().as_secs_f64());
            let _ = self.output(2).write(text).await;
        }
        if pipeline.bang {
            self.status = i32::from(self.status == 0);
        } else if !checked && !has_judged_itself(&pipeline.seq) {
            return self.unless_fatal();
        }
        Ok(())
    }

    /// With `-e` the shell ends at a failure that nothing looks at.
    fn unless_fatal(&self) -> Run<()> {
        match self.status {
            0 => Ok(()),
            code if self.options.exit_on_error && self.conditions == 0 => Err(Flow::Exit(code)),
            _ => Ok(()),
        }
    }

    /// Each part in a copy of the shell, side by side.
    async fn piped(&mut self, commands: &[brush_parser::ast::Command]) {
        let mut parts = Vec::with_capacity(commands.len());
        let mut input: Option<Input> = None;
        for (index, command) in commands.iter().enumerate() {
            let mut part = self.clone();
            part.traps = Traps::default();
            if let Some(input) = input.take() {
                part.fds.insert(0, Stream::In(input));
            }
            if index + 1 < commands.len() {
                let (reader, writer) = pipe();
                part.fds.insert(1, Stream::Out(writer));
                input = Some(reader);
            }
            let conditions = self.conditions;
            parts.push(
                async move {
                    // A part that fails ends itself only.
                    part.conditions = conditions;
                    let flow = part.command(command).await;
                    part.finish(flow).await
                }
                .boxed_local(),
            );
        }
        let codes = join_all(parts).await;
        let last = codes.last().copied().unwrap_or(0);
        let failed = codes.iter().rev().find(|code| **code != 0).copied().unwrap_or(0);
        self.status = if self.options.pipe_fail { failed } else { last };
    }

    fn command<'a>(&'a mut self, command: &'a brush_parser::ast::Command) -> Walk<'a> {
        use brush_parser::ast::Command as C;
        async move {
            match command {
                C::Simple(simple) => self.simple(simple).await,
                C::Compound(compound, redirects) => {
                    let redirects = redirects.as_ref().map_or(&[][..], |list| &list.0);
                    self.redirected(redirects, compound).await
                }
                C::Function(function) => {
                    let body = Rc::new(function.body.clone());
                    self.functions.insert(function.fname.value.clone(), body);
                    self.status = 0;
                    Ok(())
                }
                C::ExtendedTest(test, _) => {
                    let result = self.extended_test(&test.expr).await?;
                    self.status = i32::from(!result);
                    Ok(())
                }
            }
        }
        .boxed_local()
    }

    async fn redirected(&mut self, redirects: &[IoRedirect], body: &CompoundCommand) -> Run<()> {
        let before = self.fds.clone();
        let flow = match self.redirect(redirects).await? {
            Ok(()) => self.compound(body).await,
            Err(message) => {
                self.complain(&message).await;
                self.status = 1;
                self.unless_fatal()
            }
        };
        self.fds = before;
        flow
    }

    async fn compound(&mut self, command: &CompoundCommand) -> Run<()> {
        match command {
            CompoundCommand::BraceGroup(group) => self.list(&group.list).await,
            CompoundCommand::Subshell(subshell) => {
                let mut inner = self.clone();
                inner.traps = Traps::default();
                let flow = inner.list(&subshell.list).await;
                self.status = inner.finish(flow).await;
                Ok(())
            }
            CompoundCommand::IfClause(clause) => self.if_clause(clause).await,
            CompoundCommand::ForClause(clause) => self.for_clause(clause).await,
            CompoundCommand::CaseClause(clause) => self.case(clause).await,
            CompoundCommand::WhileClause(clause) => {
                self.while_clause(&clause.0, &clause.1.list, true).await
            }
            CompoundCommand::UntilClause(clause) => {
                self.while_clause(&clause.0, &clause.1.list, false).await
            }
            CompoundCommand::Arithmetic(command) => {
                let value = self.arithmetic(&command.expr.value).await?;
                self.status = i32::from(value == 0);
                Ok(())
            }
            CompoundCommand::ArithmeticForClause(clause) => {
                if let Some(first) = &clause.initializer {
                    self.arithmetic(&first.value).await?;
                }
                self.status = 0;
                loop {
                    if let Some(condition) = &clause.condition
                        && self.arithmetic(&condition.value).await? == 0
                    {
                        return Ok(());
                    }
                    if self.turn(&clause.body.list).await? {
                        return Ok(());
                    }
                    if let Some(updater) = &clause.updater {
                        self.arithmetic(&updater.value).await?;
                    }
                }
            }
            CompoundCommand::Coprocess(_) => {
                self.complain("coprocesses need processes, which WASI has not").await;
                self.status = 1;
                Ok(())
            }
        }
    }

    /// A list whose failure decides something.
    async fn condition(&mut self, list: &CompoundList) -> Run<bool> {
        self.conditions += 1;
        let flow = self.list(list).await;
        self.conditions -= 1;
        flow?;
        Ok(self.status == 0)
    }

    async fn if_clause(&mut self, clause: &IfClauseCommand) -> Run<()> {
        if self.condition(&clause.condition).await? {
            return self.list(&clause.then).await;
        }
        for other in clause.elses.iter().flatten() {
            let taken = match &other.condition {
                Some(condition) => self.condition(condition).await?,
                None => true,
            };
            if taken {
                return self.list(&other.body).await;
            }
        }
        self.status = 0;
        Ok(())
    }

    async fn for_clause(&mut self, clause: &ForClauseCommand) -> Run<()> {
        let mut values = Vec::new();
        match &clause.values {
            Some(words) => {
                for word in words {
                    values.extend(self.fields(word).await?);
                }
            }
            None => values = self.parameters.clone(),
        }
        self.status = 0;
        for value in values {
            if let Err(message) = self.set(&clause.variable_name, value) {
                return Err(self.fatal(&message).await);
            }
            if self.turn(&clause.body.list).await? {
                break;
            }
        }
        Ok(())
    }

    async fn while_clause(
        &mut self,
        condition: &CompoundList,
        body: &CompoundList,
        wanted: bool,
    ) -> Run<()> {
        let mut status = 0;
        loop {
            match self.condition(condition).await {
                Ok(holds) if holds == wanted => {}
                Ok(_) => break,
                Err(Flow::Break(0 | 1)) => break,
                Err(Flow::Break(levels)) => return Err(Flow::Break(levels - 1)),
                Err(flow) => return Err(flow),
            }
            let ended = self.turn(body).await?;
            status = self.status;
            if ended {
                break;
            }
        }
        self.status = status;
        Ok(())
    }

    /// One turn of a loop; whether it was the last.
    async fn turn(&mut self, body: &CompoundList) -> Run<bool> {
        // Loops without anything to wait for must let background jobs go on.
        runtime::yield_now().await;
        match self.list(body).await {
            Ok(()) | Err(Flow::Continue(0 | 1)) => Ok(false),
            Err(Flow::Continue(levels)) => Err(Flow::Continue(levels - 1)),
            Err(Flow::Break(0 | 1)) => Ok(true),
            Err(Flow::Break(levels)) => Err(Flow::Break(levels - 1)),
            Err(flow) => Err(flow),
        }
    }

    async fn case(&mut self, clause: &CaseClauseCommand) -> Run<()> {
        let value = self.one(&clause.value.value).await?;
        self.status = 0;
        let mut taken = false;
        for case in &clause.cases {
            if !taken {
                let mut found = false;
                for pattern in &case.patterns {
                    let pattern = self.pattern(&pattern.value).await?;
                    found = found || expand::matches(&pattern, &value);
                }
                if !found {
                    continue;
                }
            }
            if let Some(list) = &case.cmd {
                self.list(list).await?;
            }
            match case.post_action {
                CaseItemPostAction::ExitCase => return Ok(()),
                CaseItemPostAction::UnconditionallyExecuteNextCaseItem => taken = true,
                CaseItemPostAction::ContinueEvaluatingCases => taken = false,
            }
        }
        Ok(())
    }

    async fn simple(&mut self, command: &SimpleCommand) -> Run<()> {
        let mut assignments = Vec::new();
        let mut redirects = Vec::new();
        let mut words = Vec::new();
        for item in command.prefix.iter().flat_map(|prefix| &prefix.0) {
            match item {
                CommandPrefixOrSuffixItem::AssignmentWord(assignment, _) => {
                    assignments.push(assignment);
                }
                CommandPrefixOrSuffixItem::IoRedirect(redirect) => redirects.push(redirect.clone()),
                CommandPrefixOrSuffixItem::Word(word) => words.extend(self.fields(word).await?),
                CommandPrefixOrSuffixItem::ProcessSubstitution(..) => {}
            }
        }
        if let Some(name) = &command.word_or_name {
            words.extend(self.aliased(name).await?);
        }
        let declares = words.first().is_some_and(|name| builtins::declares(name));
        for item in command.suffix.iter().flat_map(|suffix| &suffix.0) {
            match item {
                CommandPrefixOrSuffixItem::Word(word) => words.extend(self.fields(word).await?),
                CommandPrefixOrSuffixItem::AssignmentWord(assignment, _) if declares => {
                    if builtins::hides(&words[0])
                        && let AssignmentName::VariableName(name) = &assignment.name
                    {
                        self.hide(name);
                    }
                    self.assign(assignment).await?;
                    words.push(format!("{}={}", assignment.name, self.assigned(assignment)));
                }
                CommandPrefixOrSuffixItem::AssignmentWord(_, word) => {
                    words.extend(self.fields(word).await?);
                }
                CommandPrefixOrSuffixItem::IoRedirect(redirect) => redirects.push(redirect.clone()),
                CommandPrefixOrSuffixItem::ProcessSubstitution(..) => {
                    let message = "<(...) and >(...) need named pipes, which WASI has not";
                    return Err(self.fatal(message).await);
                }
            }
        }
        self.trace(&assignments, &words).await;
        if words.is_empty() {
            return self.assignments_only(&assignments, &redirects).await;
        }
        let before = self.fds.clone();
        let flow = match self.redirect(&redirects).await {
            Ok(Ok(())) => self.invoke(&assignments, words, &before).await,
            Ok(Err(message)) => {
                self.complain(&message).await;
                self.status = 1;
                self.fds = before;
                Ok(())
            }
            Err(flow) => Err(flow),
        };
        flow
    }

    async fn aliased(&mut self, name: &Word) -> Run<Vec<String>> {
        let Some(alias) = self.aliases.get(&name.value).cloned() else {
            return self.fields(name).await;
        };
        Ok(alias.split_whitespace().map(str::to_owned).collect())
    }

    async fn trace(&mut self, assignments: &[&Assignment], words: &[String]) {
        if !self.options.trace {
            return;
        }
        let shown = assignments.iter().map(ToString::to_string).chain(words.iter().cloned());
        let shown: Vec<String> = shown.collect();
        let prompt = self.get("PS4").unwrap_or_default();
        let _ = self.output(2).write(format!("{prompt}{}\n", shown.join(" "))).await;
    }

    async fn assignments_only(
        &mut self,
        assignments: &[&Assignment],
        redirects: &[IoRedirect],
    ) -> Run<()> {
        self.status = 0;
        for assignment in assignments {
            self.assign(assignment).await?;
        }
        let status = self.status;
        let before = self.fds.clone();
        let outcome = self.redirect(redirects).await?;
        self.fds = before;
        if let Err(message) = outcome {
            self.complain(&message).await;
            self.status = 1;
        } else {
            // That of the last `$(...)` among the values, if there was one.
            self.status = status;
        }
        Ok(())
    }

    /// Runs a function, a builtin or an applet. `before` are the streams without redirections.
    async fn invoke(
        &mut self,
        assignments: &[&Assignment],
        words: Vec<String>,
        before: &BTreeMap<i32, Stream>,
    ) -> Run<()> {
        let name = words[0].clone();
        if name == "exec" && words.len() == 1 {
            // The redirections stay.
            self.status = 0;
            return Ok(());
        }
        let mut hidden: Vec<(String, Option<Variable>)> = Vec::new();
        for assignment in assignments {
            let name = match &assignment.name {
                AssignmentName::VariableName(name) | AssignmentName::ArrayElementName(name, _) => {
                    name.clone()
                }
            };
            hidden.push((name.clone(), self.variables.get(&name).cloned()));
            self.assign(assignment).await?;
            if let Some(variable) = self.variables.get_mut(&name) {
                variable.exported = true;
            }
        }
        let flow = if let Some(body) = self.functions.get(&name).cloned() {
            self.call(&body, words[1..].to_vec()).await
        } else if builtins::is(&name) {
            builtins::run(self, words).await
        } else {
            self.applet(words).await;
            Ok(())
        };
        // What a special builtin is given stays (`FOO=1 export FOO`), as POSIX wants it.
        if !builtins::is_special(&name) {
            for (name, old) in hidden.into_iter().rev() {
                match old {
                    Some(old) => self.variables.insert(name, old),
                    None => self.variables.remove(&name),
                };
            }
        }
        self.fds = before.clone();
        flow
    }

    async fn call(
        &mut self,
        body: &brush_parser::ast::FunctionBody,
        parameters: Vec<String>,
    ) -> Run<()> {
        self.depth += 1;
        self.check_depth(self.depth).await?;
        let parameters = std::mem::replace(&mut self.parameters, parameters);
        self.locals.push(BTreeMap::new());
        let redirects = body.1.as_ref().map_or(&[][..], |list| &list.0);
        let flow = self.redirected(redirects, &body.0).boxed_local().await;
        for (name, old) in self.locals.pop().unwrap_or_default() {
            match old {
                Some(old) => self.variables.insert(name, old),
                None => self.variables.remove(&name),
            };
        }
        self.parameters = parameters;
        self.depth -= 1;
        match flow {
            Err(Flow::Return(code)) => {
                self.status = code;
                Ok(())
            }
            flow => flow,
        }
    }

    /// A command of the table, with the shell's streams.
    pub(super) async fn applet(&mut self, words: Vec<String>) {
        let mut words = words.into_iter();
        let command = Command {
            name: words.next().unwrap_or_default(),
            args: words.collect(),
            env: self.environment(),
            cwd: self.cwd.clone(),
            stdin: self.stdin(),
            stdout: self.output(1),
            stderr: self.output(2),
        };
        self.status = applets::run(command).await;
    }

    /// Sets what an assignment says.
    pub(super) async fn assign(&mut self, assignment: &Assignment) -> Run<()> {
        let outcome = match (&assignment.name, &assignment.value) {
            (AssignmentName::VariableName(name), AssignmentValue::Scalar(word)) => {
                let mut value = self.one(&word.value).await?;
                if assignment.append {
                    value = self.get(name).unwrap_or_default() + &value;
                }
                self.set(name, value)
            }
            (AssignmentName::VariableName(name), AssignmentValue::Array(words)) => {
                let mut list = match self.variables.get(name) {
                    Some(old) if assignment.append => {
                        old.list.clone().unwrap_or_else(|| vec![old.value.clone()])
                    }
                    _ => Vec::new(),
                };
                for (_, word) in words {
                    list.extend(self.fields(word).await?);
                }
                self.set_list(name, list)
            }
            (AssignmentName::ArrayElementName(name, index), AssignmentValue::Scalar(word)) => {
                let value = self.one(&word.value).await?;
                let index = self.arithmetic(index).await?;
                self.set_element(name, index, value)
            }
            (AssignmentName::ArrayElementName(name, _), AssignmentValue::Array(_)) => {
                Err(format!("{name}: an element cannot be a list"))
            }
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(message) => Err(self.fatal(&message).await),
        }
    }

    /// The largest index of a list: it is held in memory up to it.
    pub(super) fn set_element(
        &mut self,
        name: &str,
        index: i64,
        value: String,
    ) -> Result<(), String> {
        const INDEX_MAX: usize = 65_536;
        let index = usize::try_from(index).ok().filter(|index| *index <= INDEX_MAX);
        let Some(index) = index else {
            return Err(format!("{name}: the index of a list is from 0 to {INDEX_MAX}"));
        };
        let old = self.variables.get(name).cloned().unwrap_or_default();
        let had = old.list.or_else(|| (!old.value.is_empty()).then(|| vec![old.value]));
        let mut list = had.unwrap_or_default();
        if list.len() <= index {
            list.resize(index + 1, String::new());
        }
        list[index] = value;
        self.set_list(name, list)
    }

    fn assigned(&self, assignment: &Assignment) -> String {
        match &assignment.name {
            AssignmentName::VariableName(name) => self.get(name).unwrap_or_default(),
            AssignmentName::ArrayElementName(..) => String::new(),
        }
    }

    /// Applies redirections to this shell's streams. The inner error is a sentence: the command is
    /// not run, and the script goes on.
    async fn redirect(&mut self, redirects: &[IoRedirect]) -> Run<Result<(), String>> {
        for redirect in redirects {
            if let Err(message) = self.redirect_one(redirect).await? {
                return Ok(Err(message));
            }
        }
        Ok(Ok(()))
    }

    async fn redirect_one(&mut self, redirect: &IoRedirect) -> Run<Result<(), String>> {
        match redirect {
            IoRedirect::HereDocument(fd, document) => {
                let text = match document.requires_expansion {
                    true => self.here_document(&document.doc.value).await?,
                    false => document.doc.value.clone(),
                };
                self.fds.insert(fd.unwrap_or(0), Stream::In(Input::text(text)));
            }
            IoRedirect::HereString(fd, word) => {
                let text = self.one(&word.value).await? + "\n";
                self.fds.insert(fd.unwrap_or(0), Stream::In(Input::text(text)));
            }
            IoRedirect::OutputAndError(word, append) => {
                let name = self.one(&word.value).await?;
                let mode = if *append { Mode::Append } else { Mode::Truncate };
                match self.opened(&name, mode) {
                    Ok(stream) => {
                        self.fds.insert(1, stream.clone());
                        self.fds.insert(2, stream);
                    }
                    Err(message) => return Ok(Err(message)),
                }
            }
            IoRedirect::File(fd, kind, target) => {
                return self.redirect_file(*fd, kind, target).await;
            }
        }
        Ok(Ok(()))
    }

    async fn redirect_file(
        &mut self,
        fd: Option<i32>,
        kind: &IoFileRedirectKind,
        target: &IoFileRedirectTarget,
    ) -> Run<Result<(), String>> {
        use IoFileRedirectKind as K;
        let reads = matches!(kind, K::Read | K::ReadAndWrite | K::DuplicateInput);
        let fd = fd.unwrap_or(if reads { 0 } else { 1 });
        let name = match target {
            IoFileRedirectTarget::Fd(other) => return Ok(self.duplicate(fd, &other.to_string())),
            IoFileRedirectTarget::Duplicate(word) => {
                let text = self.one(&word.value).await?;
                return Ok(self.duplicate(fd, &text));
            }
            IoFileRedirectTarget::ProcessSubstitution(ProcessSubstitutionKind::Read, inner)
                if reads =>
            {
                // `< <(commands)` needs no name: a pipe does.
                let mut part = self.clone();
                part.traps = Traps::default();
                let (reader, writer) = pipe();
                part.fds.insert(1, Stream::Out(writer));
                let list = inner.list.clone();
                runtime::spawn(async move {
                    let flow = part.list(&list).await;
                    part.finish(flow).await;
                });
                self.fds.insert(fd, Stream::In(reader));
                return Ok(Ok(()));
            }
            IoFileRedirectTarget::ProcessSubstitution(..) => {
                return Ok(Err("this process substitution needs a named pipe".to_owned()));
            }
            IoFileRedirectTarget::Filename(word) => self.one(&word.value).await?,
        };
        let opened = match kind {
            K::Read => {
                let path = files::absolute(&self.cwd, &name);
                files::open(&path, &self.stdin())
                    .map(Stream::In)
                    .map_err(|error| format!("can't open {name}: {}", files::reason(&error)))
            }
            K::ReadAndWrite => self.opened(&name, Mode::ReadWrite),
            K::Append => self.opened(&name, Mode::Append),
            K::Write if self.options.no_clobber => {
                let path = files::absolute(&self.cwd, &name);
                let mode = if path.is_file() { Mode::New } else { Mode::Truncate };
                self.opened(&name, mode)
            }
            K::Write | K::Clobber => self.opened(&name, Mode::Truncate),
            K::DuplicateInput | K::DuplicateOutput => return Ok(self.duplicate(fd, &name)),
        };
        Ok(opened.map(|stream| {
            self.fds.insert(fd, stream);
        }))
    }

    fn opened(&self, name: &str, mode: Mode) -> Result<Stream, String> {
        let path = files::absolute(&self.cwd, name);
        files::create(&path, mode, &self.output(1), &self.output(2))
            .map(Stream::Out)
            .map_err(|error| format!("can't create {name}: {}", files::reason(&error)))
    }

    /// `2>&1`, `>&-`
    fn duplicate(&mut self, fd: i32, text: &str) -> Result<(), String> {
        let (other, closes) = match text.strip_suffix('-') {
            Some(other) => (other, true),
            None => (text, false),
        };
        if other.is_empty() {
            self.fds.remove(&fd);
            return Ok(());
        }
        let number: Option<i32> = other.parse().ok();
        let Some(number) = number else {
            // `>&FILE` is `&>FILE`.
            let stream = self.opened(other, Mode::Truncate)?;
            self.fds.insert(1, stream.clone());
            self.fds.insert(2, stream);
            return Ok(());
        };
        let Some(stream) = self.fds.get(&number).cloned() else {
            return Err(format!("{number}: Bad file descriptor"));
        };
        if closes {
            self.fds.remove(&number);
        }
        self.fds.insert(fd, stream);
        Ok(())
    }

    /// The end of a builtin that failed.
    pub(super) async fn failed(&mut self, name: &str, failure: Failure) {
        if !failure.message.is_empty() {
            self.complain(&format!("{name}: {}", failure.message)).await;
        }
        self.status = failure.code;
    }
}

/// Whether `-e` has been applied within it already: what fails in a loop, an `if`, a `case` or
/// braces would have ended the shell there, so a failure that is left was one that does not count.
fn has_judged_itself(commands: &[brush_parser::ast::Command]) -> bool {
    let [brush_parser::ast::Command::Compound(compound, _)] = commands else { return false };
    !matches!(
        compound,
        CompoundCommand::Subshell(_)
            | CompoundCommand::Arithmetic(_)
            | CompoundCommand::Coprocess(_)
    )
}

//! A program's rules, run so that others go on between turns of its loops: it shares its only thread
//! with the rest of a pipeline, with the clock of `timeout` and with whoever reads a terminal.
//!
//! What has no loop is left to the machine, which never waits. So are functions that are called
//! within expressions; one that is a statement of its own (`main()`) is run here.

use futures::future::{FutureExt, LocalBoxFuture};

use super::Job;
use super::machine::{Flow, Moment, Place};
use super::parse::{Expr, Statement};
use crate::runtime;

/// Turns between two looks at the others: less than a millisecond of most loops.
const TURNS_MAX: u32 = 512;
/// Functions within each other that are run here; those within them are left to the machine, for the
/// stack is small.
const CALLS_MAX: usize = 4;

impl Job<'_> {
    /// Runs the rules of a moment. What ends all of it is an error.
    pub async fn step(&mut self, moment: Moment) -> Result<(), Flow> {
        let program = self.machine.program;
        for (index, rule) in program.rules.iter().enumerate() {
            if !self.machine.applies(index, rule, moment)? {
                continue;
            }
            let flow = match &rule.action {
                Some(action) => self.run(action).await,
                None => self.machine.print(&[], None),
            };
            match flow {
                Err(Flow::Next) => return Ok(()),
                Ok(()) | Err(Flow::Break | Flow::Continue | Flow::Return(_)) => {}
                ends => return ends,
            }
        }
        Ok(())
    }

    fn run<'s>(&'s mut self, statement: &'s Statement) -> LocalBoxFuture<'s, Result<(), Flow>> {
        async move {
            match statement {
                Statement::Block(all) => {
                    for statement in all {
                        self.part(statement).await?;
                    }
                }
                Statement::If(condition, then, otherwise) => {
                    if self.machine.value(condition)?.is_true() {
                        self.part(then).await?;
                    } else if let Some(otherwise) = otherwise {
                        self.part(otherwise).await?;
                    }
                }
                Statement::While(condition, body) => {
                    while self.machine.value(condition)?.is_true() && self.turn(body).await? {}
                }
                Statement::DoWhile(body, condition) => {
                    while self.turn(body).await? && self.machine.value(condition)?.is_true() {}
                }
                Statement::For(first, condition, last, body) => {
                    if let Some(first) = first {
                        self.machine.run(first)?;
                    }
                    loop {
                        if let Some(condition) = condition
                            && !self.machine.value(condition)?.is_true()
                        {
                            break;
                        }
                        if !self.turn(body).await? {
                            break;
                        }
                        if let Some(last) = last {
                            self.machine.run(last)?;
                        }
                    }
                }
                Statement::Each(name, list, body) => {
                    for key in self.machine.keys(list) {
                        self.machine.put_in(Place::Variable(name.clone()), key)?;
                        if !self.turn(body).await? {
                            break;
                        }
                    }
                }
                Statement::Expr(Expr::Call(name, arguments))
                    if self.machine.depth() < CALLS_MAX =>
                {
                    let Some(function) = self.machine.enter(name, arguments)? else {
                        return self.machine.run(statement);
                    };
                    let flow = self.run(&function.body).await;
                    self.machine.leave(flow)?;
                }
                other => self.machine.run(other)?,
            }
            Ok::<(), Flow>(())
        }
        .boxed_local()
    }

    /// A statement within another one.
    async fn part(&mut self, statement: &Statement) -> Result<(), Flow> {
        match statement.may_take_long() {
            true => self.run(statement).await,
            false => self.machine.run(statement),
        }
    }

    /// One turn of a loop; whether there may be another.
    async fn turn(&mut self, body: &Statement) -> Result<bool, Flow> {
        self.turns += 1;
        if self.turns >= TURNS_MAX {
            self.turns = 0;
            self.flush().await?;
            runtime::yield_now().await;
        }
        match self.part(body).await {
            Ok(()) | Err(Flow::Continue) => Ok(true),
            Err(Flow::Break) => Ok(false),
            Err(flow) => Err(flow),
        }
    }
}

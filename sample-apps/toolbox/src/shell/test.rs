//! `test`, `[` and `[[`.

use brush_parser::ast::{BinaryPredicate as B, ExtendedTestExpr, TestExpr, UnaryPredicate as U};
use brush_parser::test_command;
use futures::future::{FutureExt, LocalBoxFuture};
use regex_lite::Regex;

use super::{Run, Shell, expand};
use crate::command::{Command, Failure};
use crate::files;

/// `test` with its operands, seen from a command's directory.
pub fn evaluate(command: &Command, operands: &[String]) -> Result<bool, Failure> {
    let expression = test_command::parse(operands)
        .map_err(|_| Failure::usage(format!("{}: unknown operand", operands.join(" "))))?;
    value(command, &expression)
}

fn value(command: &Command, expression: &TestExpr) -> Result<bool, Failure> {
    Ok(match expression {
        TestExpr::False => false,
        TestExpr::Literal(text) => !text.is_empty(),
        TestExpr::And(left, right) => value(command, left)? && value(command, right)?,
        TestExpr::Or(left, right) => value(command, left)? || value(command, right)?,
        TestExpr::Not(inner) => !value(command, inner)?,
        TestExpr::Parenthesized(inner) => value(command, inner)?,
        TestExpr::UnaryTest(predicate, operand) => unary(command, predicate, operand),
        TestExpr::BinaryTest(predicate, left, right) => binary(command, predicate, left, right)?,
    })
}

fn unary(command: &Command, predicate: &U, operand: &str) -> bool {
    let path = command.path(operand);
    match predicate {
        U::StringHasZeroLength => operand.is_empty(),
        U::StringHasNonZeroLength => !operand.is_empty(),
        U::FileExists | U::FileExistsAndIsReadable => files::exists(&path),
        U::FileExistsAndIsDir => files::is_dir(&path),
        U::FileExistsAndIsRegularFile => path.is_file() && !files::is_device(&path),
        U::FileExistsAndIsSymlink => path.is_symlink(),
        U::FileExistsAndIsCharSpecialFile => files::is_device(&path),
        U::FileExistsAndIsNotZeroLength => path.metadata().is_ok_and(|found| found.len() > 0),
        U::FileExistsAndIsWritable => files::is_writable(&path),
        U::FileExistsAndIsExecutable => {
            files::is_dir(&path) || crate::applets::find(operand).is_some() || path.is_file()
        }
        U::FileExistsAndOwnedByEffectiveGroupId | U::FileExistsAndOwnedByEffectiveUserId => {
            files::exists(&path)
        }
        U::FdIsOpenTerminal => {
            operand == "0" && std::io::IsTerminal::is_terminal(&std::io::stdin())
                || operand == "1" && std::io::IsTerminal::is_terminal(&std::io::stdout())
        }
        U::ShellVariableIsSetAndAssigned => command.env.contains_key(operand),
        // There are no such files in WASI, and no such options here.
        _ => false,
    }
}

fn binary(command: &Command, predicate: &B, left: &str, right: &str) -> Result<bool, Failure> {
    let number = |text: &str| -> Result<i64, Failure> {
        let parsed = text.trim().parse();
        parsed.map_err(|_| Failure::usage(format!("{text}: not a whole number")))
    };
    let modified = |name: &str| {
        let found = command.path(name).metadata().and_then(|found| found.modified());
        found.ok()
    };
    Ok(match predicate {
        B::StringExactlyMatchesString | B::StringExactlyMatchesPattern => left == right,
        B::StringDoesNotExactlyMatchString | B::StringDoesNotExactlyMatchPattern => left != right,
        B::LeftSortsBeforeRight => left < right,
        B::LeftSortsAfterRight => left > right,
        B::ArithmeticEqualTo => number(left)? == number(right)?,
        B::ArithmeticNotEqualTo => number(left)? != number(right)?,
        B::ArithmeticLessThan => number(left)? < number(right)?,
        B::ArithmeticLessThanOrEqualTo => number(left)? <= number(right)?,
        B::ArithmeticGreaterThan => number(left)? > number(right)?,
        B::ArithmeticGreaterThanOrEqualTo => number(left)? >= number(right)?,
        B::LeftFileIsNewerOrExistsWhenRightDoesNot => modified(left) > modified(right),
        B::LeftFileIsOlderOrDoesNotExistWhenRightDoes => modified(left) < modified(right),
        B::FilesReferToSameDeviceAndInodeNumbers => command.path(left) == command.path(right),
        B::StringContainsSubstring => left.contains(right),
        B::StringMatchesRegex => {
            let regex = Regex::new(right).map_err(|error| Failure::usage(error.to_string()))?;
            regex.is_match(left)
        }
    })
}

impl Shell {
    /// `[[ ... ]]`: words are not split, and the right side of `==` is a pattern.
    pub(super) fn extended_test<'a>(
        &'a mut self,
        expression: &'a ExtendedTestExpr,
    ) -> LocalBoxFuture<'a, Run<bool>> {
        use ExtendedTestExpr as E;
        async move {
            Ok(match expression {
                E::And(left, right) => {
                    self.extended_test(left).await? && self.extended_test(right).await?
                }
                E::Or(left, right) => {
                    self.extended_test(left).await? || self.extended_test(right).await?
                }
                E::Not(inner) => !self.extended_test(inner).await?,
                E::Parenthesized(inner) => self.extended_test(inner).await?,
                E::UnaryTest(U::ShellVariableIsSetAndAssigned, word) => {
                    let name = self.one(&word.value).await?;
                    self.variables.contains_key(&name)
                }
                E::UnaryTest(predicate, word) => {
                    let operand = self.one(&word.value).await?;
                    unary(&self.as_command(), predicate, &operand)
                }
                E::BinaryTest(predicate, left, right) => {
                    let left = self.one(&left.value).await?;
                    self.extended_binary(predicate, &left, &right.value).await?
                }
            })
        }
        .boxed_local()
    }

    async fn extended_binary(&mut self, predicate: &B, left: &str, right: &str) -> Run<bool> {
        match predicate {
            B::StringExactlyMatchesPattern => {
                Ok(expand::matches(&self.pattern(right).await?, left))
            }
            B::StringDoesNotExactlyMatchPattern => {
                Ok(!expand::matches(&self.pattern(right).await?, left))
            }
            B::StringMatchesRegex => {
                let pattern = self.one(right).await?;
                let Ok(regex) = Regex::new(&pattern) else {
                    return Err(self.fatal(&format!("{pattern}: not a regular expression")).await);
                };
                let found = regex.captures(left);
                let groups = found.iter().flat_map(|found| found.iter());
                let text = |group: Option<regex_lite::Match<'_>>| {
                    group.map_or(String::new(), |group| group.as_str().to_owned())
                };
                let list: Vec<String> = groups.map(text).collect();
                let variable = super::Variable {
                    value: list.first().cloned().unwrap_or_default(),
                    list: Some(list),
                    ..super::Variable::default()
                };
                self.variables.insert("BASH_REMATCH".to_owned(), variable);
                Ok(found.is_some())
            }
            B::ArithmeticEqualTo
            | B::ArithmeticNotEqualTo
            | B::ArithmeticLessThan
            | B::ArithmeticLessThanOrEqualTo
            | B::ArithmeticGreaterThan
            | B::ArithmeticGreaterThanOrEqualTo => {
                let left = self.arithmetic(left).await?.to_string();
                let right = self.arithmetic(right).await?.to_string();
                let outcome = binary(&self.as_command(), predicate, &left, &right);
                Ok(outcome.unwrap_or(false))
            }
            _ => {
                let right = self.one(right).await?;
                match binary(&self.as_command(), predicate, left, &right) {
                    Ok(result) => Ok(result),
                    Err(failure) => Err(self.fatal(&failure.message).await),
                }
            }
        }
    }

    /// The shell as a command would see the world.
    pub(super) fn as_command(&self) -> Command {
        Command {
            name: self.name.clone(),
            args: Vec::new(),
            env: self.environment(),
            cwd: self.cwd.clone(),
            stdin: self.stdin(),
            stdout: self.output(1),
            stderr: self.output(2),
        }
    }
}

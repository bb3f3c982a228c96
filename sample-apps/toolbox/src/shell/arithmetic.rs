//! `$((...))`: 64-bit integers that wrap, as in C and every shell.

use brush_parser::arithmetic;
use brush_parser::ast::{
    ArithmeticExpr, ArithmeticTarget, BinaryOperator as B, UnaryAssignmentOperator, UnaryOperator,
};

use super::{Run, Shell};

/// Variables whose value is again an expression, one within the other.
const NESTING_MAX: u32 = 32;

impl Shell {
    /// The value of an expression, after its own `$` expansions.
    pub(super) async fn arithmetic(&mut self, text: &str) -> Run<i64> {
        // No home directory is meant here.
        let text = self.one(&text.replace('~', "\\~")).await?;
        match self.calculate(&text, 0) {
            Ok(value) => Ok(value),
            Err(message) => {
                let message = format!("arithmetic expression \"{}\": {message}", text.trim());
                Err(self.fatal(&message).await)
            }
        }
    }

    fn calculate(&mut self, text: &str, nesting: u32) -> Result<i64, String> {
        if nesting > NESTING_MAX {
            return Err("variables name each other".to_owned());
        }
        let expression = arithmetic::parse(text).map_err(|_| "syntax error".to_owned())?;
        self.value(&expression, nesting)
    }

    fn value(&mut self, expression: &ArithmeticExpr, nesting: u32) -> Result<i64, String> {
        use ArithmeticExpr as E;
        match expression {
            E::Literal(value) => Ok(*value),
            E::Reference(target) => self.load(target, nesting),
            E::UnaryOp(operator, inner) => {
                let value = self.value(inner, nesting)?;
                Ok(match operator {
                    UnaryOperator::UnaryPlus => value,
                    UnaryOperator::UnaryMinus => value.wrapping_neg(),
                    UnaryOperator::BitwiseNot => !value,
                    UnaryOperator::LogicalNot => i64::from(value == 0),
                })
            }
            E::BinaryOp(B::LogicalAnd, left, right) => {
                let both = self.value(left, nesting)? != 0 && self.value(right, nesting)? != 0;
                Ok(i64::from(both))
            }
            E::BinaryOp(B::LogicalOr, left, right) => {
                let any = self.value(left, nesting)? != 0 || self.value(right, nesting)? != 0;
                Ok(i64::from(any))
            }
            E::BinaryOp(operator, left, right) => {
                let left = self.value(left, nesting)?;
                binary(*operator, left, self.value(right, nesting)?)
            }
            E::Conditional(condition, yes, no) => {
                let chosen = if self.value(condition, nesting)? != 0 { yes } else { no };
                self.value(chosen, nesting)
            }
            E::Assignment(target, inner) => {
                let value = self.value(inner, nesting)?;
                self.store(target, value, nesting)
            }
            E::BinaryAssignment(operator, target, inner) => {
                let before = self.load(target, nesting)?;
                let value = binary(*operator, before, self.value(inner, nesting)?)?;
                self.store(target, value, nesting)
            }
            E::UnaryAssignment(operator, target) => {
                use UnaryAssignmentOperator as U;
                let before = self.load(target, nesting)?;
                let (after, result_is_before) = match operator {
                    U::PrefixIncrement => (before.wrapping_add(1), false),
                    U::PrefixDecrement => (before.wrapping_sub(1), false),
                    U::PostfixIncrement => (before.wrapping_add(1), true),
                    U::PostfixDecrement => (before.wrapping_sub(1), true),
                };
                self.store(target, after, nesting)?;
                Ok(if result_is_before { before } else { after })
            }
        }
    }

    fn load(&mut self, target: &ArithmeticTarget, nesting: u32) -> Result<i64, String> {
        let text = match target {
            ArithmeticTarget::Variable(name) => self.get(name),
            ArithmeticTarget::ArrayElement(name, index) => {
                let index = usize::try_from(self.value(index, nesting)?).unwrap_or(usize::MAX);
                let list = self.variables.get(name).and_then(|variable| variable.list.as_ref());
                list.and_then(|list| list.get(index).cloned())
            }
        };
        let text = text.unwrap_or_default();
        if text.trim().is_empty() {
            return Ok(0);
        }
        match text.trim().parse() {
            Ok(value) => Ok(value),
            Err(_) => self.calculate(&text, nesting + 1),
        }
    }

    fn store(
        &mut self,
        target: &ArithmeticTarget,
        value: i64,
        nesting: u32,
    ) -> Result<i64, String> {
        match target {
            ArithmeticTarget::Variable(name) => self.set(name, value.to_string())?,
            ArithmeticTarget::ArrayElement(name, index) => {
                let index = self.value(index, nesting)?;
                self.set_element(name, index, value.to_string())?;
            }
        }
        Ok(value)
    }
}

fn binary(operator: B, left: i64, right: i64) -> Result<i64, String> {
    let bits = (right & 63).unsigned_abs() as u32;
    Ok(match operator {
        B::Power => {
            let exponent = u32::try_from(right).map_err(|_| "exponent less than 0".to_owned())?;
            left.wrapping_pow(exponent)
        }
        B::Multiply => left.wrapping_mul(right),
        B::Divide | B::Modulo if right == 0 => return Err("division by zero".to_owned()),
        B::Divide => left.wrapping_div(right),
        B::Modulo => left.wrapping_rem(right),
        B::Comma => right,
        B::Add => left.wrapping_add(right),
        B::Subtract => left.wrapping_sub(right),
        B::ShiftLeft => left.wrapping_shl(bits),
        B::ShiftRight => left.wrapping_shr(bits),
        B::LessThan => i64::from(left < right),
        B::LessThanOrEqualTo => i64::from(left <= right),
        B::GreaterThan => i64::from(left > right),
        B::GreaterThanOrEqualTo => i64::from(left >= right),
        B::Equals => i64::from(left == right),
        B::NotEquals => i64::from(left != right),
        B::BitwiseAnd => left & right,
        B::BitwiseXor => left ^ right,
        B::BitwiseOr => left | right,
        B::LogicalAnd => i64::from(left != 0 && right != 0),
        B::LogicalOr => i64::from(left != 0 || right != 0),
    })
}

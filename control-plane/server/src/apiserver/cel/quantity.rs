//! Kubernetes' quantities in expressions: `quantity('1Gi').isLessThan(quantity('2Gi'))`.

use std::cmp::Ordering;

use cel::common::types::{CelBool, CelDouble, CelInt, CelString};
use cel::{DeclarationError, Env, ExecutionError};
use wherry_resources::quantity::Quantity as Amount;

use super::functions::{failed, opaque};

opaque!(
    /// An amount.
    Quantity(Amount), "kubernetes.Quantity"
);

/// Registers the functions.
pub fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn quantity: (CelString) -> Result<Quantity>)?;
    cel::add_overload!(env, fn is_quantity: (CelString) -> CelBool, name = "isQuantity")?;
    cel::add_member_overload!(env, fn is_integer: (Quantity) -> CelBool)?;
    cel::add_member_overload!(env, fn as_integer: (Quantity) -> Result<CelInt>)?;
    cel::add_member_overload!(env, fn as_approximate_float: (Quantity) -> CelDouble)?;
    cel::add_member_overload!(env, fn sign: (Quantity) -> CelInt)?;
    cel::add_member_overload!(env, fn add: (Quantity, Quantity) -> Quantity)?;
    cel::add_member_overload!(env, fn add_int: (Quantity, CelInt) -> Quantity, name = "add")?;
    cel::add_member_overload!(env, fn sub: (Quantity, Quantity) -> Quantity)?;
    cel::add_member_overload!(env, fn sub_int: (Quantity, CelInt) -> Quantity, name = "sub")?;
    cel::add_member_overload!(env, fn is_greater_than: (Quantity, Quantity) -> CelBool)?;
    cel::add_member_overload!(env, fn is_less_than: (Quantity, Quantity) -> CelBool)?;
    cel::add_member_overload!(env, fn compare_to: (Quantity, Quantity) -> CelInt)
}

fn quantity(text: &CelString<'_>) -> Result<Quantity, ExecutionError> {
    let parsed = Amount::parse(text.inner());
    parsed.map(Quantity).map_err(|error| failed("quantity", error.to_string()))
}

fn is_quantity(text: &CelString<'_>) -> CelBool {
    CelBool::from(Amount::parse(text.inner()).is_ok())
}

fn is_integer(this: &Quantity) -> CelBool {
    CelBool::from(this.0.is_whole())
}

fn as_integer(this: &Quantity) -> Result<CelInt, ExecutionError> {
    match this.0.is_whole() {
        true => Ok(CelInt::from(this.0.value())),
        false => Err(failed("asInteger", "cannot convert value to integer")),
    }
}

fn as_approximate_float(this: &Quantity) -> CelDouble {
    let float = match this.0.is_whole() {
        true => this.0.value() as f64,
        false => this.0.millis() as f64 / 1000.0,
    };
    CelDouble::from(float)
}

fn sign(this: &Quantity) -> CelInt {
    CelInt::from(match (this.0.is_zero(), this.0.is_negative()) {
        (true, _) => 0,
        (_, true) => -1,
        _ => 1,
    })
}

fn add(this: &Quantity, other: &Quantity) -> Quantity {
    Quantity(this.0 + other.0)
}

fn add_int(this: &Quantity, other: &CelInt) -> Quantity {
    Quantity(this.0 + Amount::from_units(*other.inner()))
}

fn sub(this: &Quantity, other: &Quantity) -> Quantity {
    Quantity(this.0.minus(other.0))
}

fn sub_int(this: &Quantity, other: &CelInt) -> Quantity {
    Quantity(this.0.minus(Amount::from_units(*other.inner())))
}

fn is_greater_than(this: &Quantity, other: &Quantity) -> CelBool {
    CelBool::from(this.0 > other.0)
}

fn is_less_than(this: &Quantity, other: &Quantity) -> CelBool {
    CelBool::from(this.0 < other.0)
}

fn compare_to(this: &Quantity, other: &Quantity) -> CelInt {
    CelInt::from(match this.0.cmp(&other.0) {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    })
}

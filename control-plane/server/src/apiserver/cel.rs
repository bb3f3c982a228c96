//! Expressions in CEL: those of CRDs' validation rules, of admission policies and of webhooks'
//! match conditions.
//!
//! The language and its evaluator are the crate `cel`'s. Here are Kubernetes' own functions
//! ([`functions`]), values made from JSON by a schema ([`values`]), a check when an expression is
//! written ([`check`]), and a budget: whoever may write an expression must not be able to stop the
//! server with it.
//!
//! The budget works by rewriting the tree once, when it is compiled ([`budget`]): whatever can take
//! long or grow is wrapped in a call that charges a [`Meter`], and a meter that has run out is an
//! error that nothing in the expression can catch.

mod budget;
mod check;
mod functions;
mod network;
mod quantity;
#[cfg(test)]
mod tests;
mod values;

pub use check::{Type, Types};
pub use functions::{Authorizer, Check};
pub use values::{json, owned, value};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use cel::common::types::Type as CelType;
use cel::common::value::{CowVal, StaticVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, IdedExpr, Value};

use crate::contain;

/// What one expression may cost, in Kubernetes' units: about one for each step.
pub const EXPRESSION_COST_MAX: u64 = 1_000_000;
/// What all rules of one object, or all expressions of one policy, may cost.
pub const OBJECT_COST_MAX: u64 = 10_000_000;
/// What all match conditions of one webhook may cost.
pub const CONDITIONS_COST_MAX: u64 = 2_500_000;
/// Time for all expressions of one object: steps are charged by size, but not to the microsecond.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Longest expression: the tree of a longer one would be a burden before it ran.
const SOURCE_BYTES_MAX: usize = 64 * 1024;
/// Longest message that an expression makes, as in Kubernetes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// Deepest nesting of an expression as it is written.
const DEPTH_MAX: u16 = 64;
/// Deepest tree that is evaluated on the stack of whoever asks; deeper ones get a thread of their
/// own. Nearly all expressions are far below.
const DEPTH_IN_PLACE_MAX: usize = 24;
/// Stack of such a thread, and of the parser: room for the deepest tree many times over.
const STACK_BYTES: usize = 64 << 20;

/// The language as Kubernetes has it; the same for every expression.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(functions::environment()));

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// This expression alone was too expensive.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostOfExpression,
    /// All expressions together were.
    #[error("validation failed due to running out of cost budget")]
    CostOfObject,
    /// Evaluation failed; the sentence says how.
    #[error("{0}")]
    Failed(String),
}

/// What is left to spend: for one object, and within that for one expression at a time.
#[derive(Clone, Debug)]
pub struct Meter(Arc<Spent>);

#[derive(Debug)]
struct Spent {
    object: AtomicU64,
    object_max: u64,
    expression: AtomicU64,
    until: Instant,
}

impl Meter {
    /// A meter for one object.
    pub fn new(object_max: u64) -> Meter {
        Meter(Arc::new(Spent {
            object: AtomicU64::new(0),
            object_max,
            expression: AtomicU64::new(0),
            until: Instant::now() + TIME_MAX,
        }))
    }

    fn charge(&self, cost: u64) -> Result<(), ExecutionError> {
        let spent = self.0.expression.fetch_add(cost, Relaxed) + cost;
        let all = self.0.object.fetch_add(cost, Relaxed) + cost;
        if spent > EXPRESSION_COST_MAX || all > self.0.object_max || Instant::now() > self.0.until {
            return Err(ExecutionError::function_error("cost", "limit exceeded"));
        }
        Ok(())
    }

    /// Whether, and of what, there is nothing left.
    fn exhausted(&self) -> Option<EvalError> {
        let late = Instant::now() > self.0.until;
        if late || self.0.object.load(Relaxed) > self.0.object_max {
            return Some(EvalError::CostOfObject);
        }
        let expression = self.0.expression.load(Relaxed) > EXPRESSION_COST_MAX;
        expression.then_some(EvalError::CostOfExpression)
    }
}

static METER: CelType = CelType::new_unspecified_type("wherry.Meter");

impl Val for Meter {
    fn get_type(&self) -> &CelType {
        &METER
    }

    fn cel_type() -> &'static CelType {
        &METER
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn std::any::Any> {
        Some(self)
    }
}

impl StaticVal for Meter {}

/// What the names in an expression stand for.
pub struct Bindings<'v> {
    meter: Meter,
    values: Vec<(String, Box<dyn Val + 'v>)>,
}

impl<'v> Bindings<'v> {
    /// No names yet.
    pub fn new(meter: &Meter) -> Bindings<'v> {
        Bindings { meter: meter.clone(), values: Vec::new() }
    }

    /// Gives a name a value, in place of the one it had.
    pub fn set(&mut self, name: &str, value: Box<dyn Val + 'v>) {
        self.values.retain(|(other, _)| other != name);
        self.values.push((name.to_owned(), value));
    }

    /// The same with one more name.
    pub fn with(mut self, name: &str, value: Box<dyn Val + 'v>) -> Bindings<'v> {
        self.set(name, value);
        self
    }
}

impl VariableResolver for Bindings<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        if variable == budget::METER {
            return Some(CowVal::Borrowed(&self.meter));
        }
        let found = self.values.iter().find(|(name, _)| name == variable);
        found.map(|(_, value)| CowVal::Borrowed(value.as_ref()))
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    /// As it was written.
    pub source: String,
    tree: IdedExpr,
    depth: usize,
    uses: Vec<String>,
}

impl Expression {
    /// Compiles an expression that may use these names. The error is what a person reads who wrote
    /// it: what is wrong, and where.
    pub fn compile(source: &str, types: &Types<'_>) -> Result<Expression, String> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(format!("the expression is longer than {SOURCE_BYTES_MAX} bytes"));
        }
        let compiled = on_a_deep_stack(|| Expression::compile_here(source, types));
        compiled.unwrap_or_else(|| Err("compilation failed: no thread is free".to_owned()))
    }

    fn compile_here(source: &str, types: &Types<'_>) -> Result<Expression, String> {
        let environment = ENVIRONMENT.clone();
        let parser = environment.parser().max_recursion_depth(DEPTH_MAX);
        let parser = parser.enable_ident_escape_syntax(true);
        let (tree, positions) = parser
            .parse_with_source_info(source)
            .map_err(|error| format!("compilation failed: {error}"))?;
        check::check(&tree, types).map_err(|problem| {
            format!("compilation failed: {}", problem.show(source, &positions))
        })?;
        let uses = check::variables(&tree);
        let tree = budget::metered(tree);
        Ok(Expression { source: source.to_owned(), depth: check::depth(&tree), tree, uses })
    }

    /// Whether the expression names a variable, or a field of one as in `variables.x`.
    pub fn uses(&self, name: &str) -> bool {
        self.uses.iter().any(|used| used == name)
    }

    /// The value, as the evaluator has it.
    pub fn value<'v>(&self, bindings: &'v Bindings<'_>) -> Result<Box<dyn Val + 'v>, EvalError> {
        if self.depth <= DEPTH_IN_PLACE_MAX {
            return self.value_here(bindings);
        }
        let found = on_a_deep_stack(|| self.value_here(bindings));
        found.unwrap_or_else(|| Err(EvalError::Failed("no thread is free".to_owned())))
    }

    fn value_here<'v>(&self, bindings: &'v Bindings<'_>) -> Result<Box<dyn Val + 'v>, EvalError> {
        let meter = &bindings.meter;
        meter.0.expression.store(0, Relaxed);
        let mut context = Context::with_env(ENVIRONMENT.clone());
        context.set_variable_resolver(bindings);
        let found = Value::resolve_val(&self.tree, &context).map(CowVal::into_owned);
        match (meter.exhausted(), found) {
            (Some(exhausted), _) => Err(exhausted),
            (None, Ok(value)) => Ok(value),
            (None, Err(error)) => Err(EvalError::Failed(sentence(&error))),
        }
    }

    /// The value, which must be true or false.
    pub fn holds(&self, bindings: &Bindings<'_>) -> Result<bool, EvalError> {
        let value = self.value(bindings)?;
        match value.downcast_ref::<cel::common::types::CelBool>() {
            Some(value) => Ok(*value.inner()),
            None => Err(EvalError::Failed("the expression did not give true or false".to_owned())),
        }
    }

    /// The value as a message to people; None if it has none, or not one line of a bearable length.
    pub fn message(&self, bindings: &Bindings<'_>) -> Option<String> {
        let value = self.value(bindings).ok()?;
        let text = value.downcast_ref::<cel::common::types::CelString>()?.inner().trim();
        let is_line = !text.is_empty() && !text.contains('\n');
        (is_line && text.len() <= MESSAGE_BYTES_MAX).then(|| text.to_owned())
    }
}

/// Runs work where deep recursion has room; None if there is no thread to be had.
fn on_a_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    let done = std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
        builder.spawn_scoped(scope, || contain::sync(work)).ok()?.join().ok()
    });
    Some(done?.unwrap_or_else(|panic| panic.resume()))
}

/// What went wrong, in the words of Kubernetes' evaluator where it has some.
fn sentence(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::NoSuchOverload(_) => format!("no such overload: {error}"),
        ExecutionError::UndeclaredReference(name) => format!("undeclared reference to '{name}'"),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        ExecutionError::Overflow(..) => "integer overflow".to_owned(),
        other => other.to_string(),
    }
}

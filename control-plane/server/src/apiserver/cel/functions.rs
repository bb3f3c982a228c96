//! The functions that expressions may call: the language's own, the common extensions, and
//! Kubernetes' libraries.
//!
//! Kubernetes' types (`URL`, `IP`, `CIDR`, `Quantity`, `Format`, the authorizer's steps) are values
//! of our own here; what they do is in `network` and `quantity`.

use std::fmt;
use std::sync::Arc;

use cel::common::ast::Expr;
use cel::common::types::{
    CelBool, CelInt, CelList, CelOptional, CelString, DYN_TYPE, INT_TYPE, LIST_TYPE, STRING_TYPE,
    Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{DeclarationError, Env, ExecutionError, IdedExpr, extensions};
use wherry_resources::custom::{formats, schema};

use super::{Meter, budget, network, quantity};

/// Longest text that a function may make.
const TEXT_BYTES_MAX: usize = 4 << 20;
/// Bytes of text, or entries of a list, that cost as much as one step.
const SIZE_PER_COST: usize = 10;

type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;
type Extension = fn(&mut Env) -> Result<(), DeclarationError>;
type Found<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// The whole language.
pub fn environment() -> Env {
    let mut env = Env::stdlib();
    let extensions: [Extension; 6] = [
        extensions::strings,
        extensions::lists,
        guarded,
        lists_and_regex,
        network::extension,
        quantity::extension,
    ];
    for extension in extensions {
        env.add_extension(extension).expect("no two libraries declare the same function");
    }
    env.add_extension(formats_and_sets).expect("no two libraries declare the same function");
    env.add_extension(authorizer).expect("no two libraries declare the same function");
    env
}

/// (name, type of the result or empty); functions that can be called with or without a target.
const FUNCTIONS: &[(&str, &str)] = &[
    ("size", "int"),
    ("int", "int"),
    ("uint", "uint"),
    ("double", "double"),
    ("string", "string"),
    ("bool", "bool"),
    ("bytes", "bytes"),
    ("dyn", ""),
    ("type", ""),
    ("duration", ""),
    ("timestamp", ""),
    ("matches", "bool"),
    ("contains", "bool"),
    ("startsWith", "bool"),
    ("endsWith", "bool"),
    ("charAt", "string"),
    ("indexOf", "int"),
    ("lastIndexOf", "int"),
    ("join", "string"),
    ("lowerAscii", "string"),
    ("upperAscii", "string"),
    ("trim", "string"),
    ("replace", "string"),
    ("split", ""),
    ("substring", "string"),
    ("format", "string"),
    ("reverse", ""),
    ("strings.quote", "string"),
    ("slice", ""),
    ("flatten", ""),
    ("distinct", ""),
    ("sort", ""),
    ("lists.range", ""),
    ("isSorted", "bool"),
    ("sum", ""),
    ("min", ""),
    ("max", ""),
    ("find", "string"),
    ("findAll", ""),
    ("getFullYear", "int"),
    ("getMonth", "int"),
    ("getDate", "int"),
    ("getDayOfMonth", "int"),
    ("getDayOfWeek", "int"),
    ("getDayOfYear", "int"),
    ("getHours", "int"),
    ("getMinutes", "int"),
    ("getSeconds", "int"),
    ("getMilliseconds", "int"),
    ("optional.of", ""),
    ("optional.ofNonZeroValue", ""),
    ("optional.none", ""),
    ("hasValue", "bool"),
    ("value", ""),
    ("or", ""),
    ("orValue", ""),
    ("optMap", ""),
    ("optFlatMap", ""),
    ("unwrap", ""),
    ("unwrapOpt", ""),
    ("first", ""),
    ("last", ""),
    ("url", ""),
    ("isURL", "bool"),
    ("getScheme", "string"),
    ("getHost", "string"),
    ("getHostname", "string"),
    ("getPort", "string"),
    ("getEscapedPath", "string"),
    ("getQuery", ""),
    ("ip", ""),
    ("isIP", "bool"),
    ("ip.isCanonical", "bool"),
    ("family", "int"),
    ("isUnspecified", "bool"),
    ("isLoopback", "bool"),
    ("isLinkLocalMulticast", "bool"),
    ("isLinkLocalUnicast", "bool"),
    ("isGlobalUnicast", "bool"),
    ("cidr", ""),
    ("isCIDR", "bool"),
    ("containsIP", "bool"),
    ("containsCIDR", "bool"),
    ("masked", ""),
    ("prefixLength", "int"),
    ("quantity", ""),
    ("isQuantity", "bool"),
    ("isInteger", "bool"),
    ("asInteger", "int"),
    ("asApproximateFloat", "double"),
    ("sign", "int"),
    ("add", ""),
    ("sub", ""),
    ("isGreaterThan", "bool"),
    ("isLessThan", "bool"),
    ("compareTo", "int"),
    ("format.named", ""),
    ("validate", ""),
    ("jsonpatch.escapeKey", "string"),
    ("sets.contains", "bool"),
    ("sets.equivalent", "bool"),
    ("sets.intersects", "bool"),
    ("path", ""),
    ("group", ""),
    ("serviceAccount", ""),
    ("resource", ""),
    ("subresource", ""),
    ("namespace", ""),
    ("name", ""),
    ("fieldSelector", ""),
    ("labelSelector", ""),
    ("check", ""),
    ("allowed", "bool"),
    ("reason", "string"),
    ("errored", "bool"),
    ("error", "string"),
];

/// Formats that can be named by a function, as `format.dns1123Label()`.
const FORMATS: &[&str] = &[
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

/// Words before the dot of functions that have one in their name.
const NAMESPACES: &[&str] = &["optional", "strings", "lists", "ip", "format", "sets", "jsonpatch"];

/// The namespace that the target of a call names, if it is one.
pub fn namespace(target: &IdedExpr) -> Option<&str> {
    match &target.expr {
        Expr::Ident(name) => NAMESPACES.iter().find(|known| *known == name).copied(),
        _ => None,
    }
}

/// Whether there is a function of this name, operators included.
pub fn exists(name: &str, _is_member: bool) -> bool {
    let format = name.strip_prefix("format.").is_some_and(|name| FORMATS.contains(&name));
    format
        || name.starts_with('@')
        || name.contains('_')
        || FUNCTIONS.iter().any(|(known, _)| *known == name)
}

/// The type of a function's result, or of an operator's; empty if it is not known.
pub fn result(name: &str) -> &'static str {
    match name {
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" | "_&&_" | "_||_" | "!_" | "@in" => {
            "bool"
        }
        _ => FUNCTIONS.iter().find(|row| row.0 == name).map_or("", |row| row.1),
    }
}

/// An argument of the type that its overload was declared with.
pub(super) fn argument<'b, 'v, T>(value: &'b (dyn Val + 'v)) -> Result<&'b T, ExecutionError>
where
    T: cel::common::value::FromVal<'b, 'v> + Val,
{
    value.downcast_ref::<T>().ok_or_else(|| ExecutionError::UnexpectedType {
        got: value.get_type().name().to_owned(),
        want: T::cel_type().name().to_owned(),
    })
}

pub(super) fn text<'b>(value: &'b (dyn Val + '_)) -> Result<&'b str, ExecutionError> {
    argument::<CelString<'_>>(value).map(CelString::inner)
}

pub(super) fn failed(function: &str, why: impl Into<String>) -> ExecutionError {
    ExecutionError::function_error(function, why.into())
}

/// Declares a type of our own: a value behind a name.
macro_rules! opaque {
    ($(#[$doc:meta])* $name:ident($inner:ty), $word:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name(pub $inner);

        impl cel::common::value::Val for $name {
            fn get_type(&self) -> &cel::common::types::Type {
                <Self as cel::common::value::Val>::cel_type()
            }

            fn cel_type() -> &'static cel::common::types::Type {
                static TYPE: cel::common::types::Type =
                    cel::common::types::Type::new_unspecified_type($word);
                &TYPE
            }

            fn equals(&self, other: &dyn cel::common::value::Val) -> bool {
                other.downcast_ref::<$name>().is_some_and(|other| self == other)
            }

            fn clone_as_boxed<'v>(&self) -> Box<dyn cel::common::value::Val + 'v> {
                Box::new(self.clone())
            }

            fn as_any(&self) -> Option<&dyn std::any::Any> {
                Some(self)
            }
        }

        impl cel::common::value::StaticVal for $name {}
    };
}
pub(super) use opaque;

/// The functions that know the meter.
fn guarded(env: &mut Env) -> Result<(), DeclarationError> {
    let meter = || <Meter as Val>::cel_type().to_owned();
    env.add_overload(budget::CHARGE, "charge", vec![meter(), DYN_TYPE], charge)?;
    env.add_overload(
        "@replace",
        "replace",
        vec![meter(), STRING_TYPE, STRING_TYPE, STRING_TYPE],
        replace,
    )?;
    env.add_overload(
        "@replace",
        "replace_n",
        vec![meter(), STRING_TYPE, STRING_TYPE, STRING_TYPE, INT_TYPE],
        replace,
    )?;
    env.add_overload("@join", "join", vec![meter(), LIST_TYPE], join)?;
    env.add_overload("@join", "join_with", vec![meter(), LIST_TYPE, STRING_TYPE], join)?;
    env.add_overload("@matches", "matches", vec![meter(), STRING_TYPE, STRING_TYPE], matches)
}

fn charge<'b, 'v>(mut args: Args<'b, 'v>) -> Found<'b, 'v> {
    let value = args.pop().ok_or_else(ExecutionError::missing_argument_or_target)?;
    let meter = argument::<Meter>(args[0].as_ref())?;
    meter.charge(1 + size(value.as_ref(), meter)? / SIZE_PER_COST as u64)?;
    Ok(value)
}

/// The size of a value in bytes and entries. Looking at a large value costs as it goes.
fn size(value: &dyn Val, meter: &Meter) -> Result<u64, ExecutionError> {
    if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        return Ok(text.inner().len() as u64);
    }
    if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        let mut sum = list.inner().len() as u64 * SIZE_PER_COST as u64;
        for item in list.inner() {
            if item.downcast_ref::<CelList<'_>>().is_some() {
                meter.charge(1)?;
            }
            sum = sum.saturating_add(size(item.as_ref(), meter)?);
        }
        return Ok(sum);
    }
    Ok(value.as_sizer().map_or(0, |sizer| (*sizer.size().inner()).unsigned_abs()))
}

fn replace<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let meter = argument::<Meter>(args[0].as_ref())?;
    let (whole, from) = (text(args[1].as_ref())?, text(args[2].as_ref())?);
    let to = text(args[3].as_ref())?;
    let most = match args.get(4) {
        Some(count) => *argument::<CelInt>(count.as_ref())?.inner(),
        None => -1,
    };
    meter.charge((whole.len() / SIZE_PER_COST) as u64)?;
    let found = match from.is_empty() {
        true => whole.chars().count() + 1,
        false => whole.matches(from).count(),
    };
    let count = usize::try_from(most).map_or(found, |most| most.min(found));
    if whole.len() + count.saturating_mul(to.len()) > TEXT_BYTES_MAX {
        return Err(failed("replace", "the result is too long"));
    }
    Ok(CowVal::owned(CelString::from(whole.replacen(from, to, count))))
}

fn join<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let meter = argument::<Meter>(args[0].as_ref())?;
    let separator = match args.get(2) {
        Some(separator) => text(separator.as_ref())?,
        None => "",
    };
    let mut joined = String::new();
    for (index, item) in items(args[1].as_ref())?.into_iter().enumerate() {
        if index > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text(item)?);
        if joined.len() > TEXT_BYTES_MAX {
            return Err(failed("join", "the result is too long"));
        }
    }
    meter.charge((joined.len() / SIZE_PER_COST) as u64)?;
    Ok(CowVal::owned(CelString::from(joined)))
}

fn matches<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let meter = argument::<Meter>(args[0].as_ref())?;
    let (whole, pattern) = (text(args[1].as_ref())?, text(args[2].as_ref())?);
    let cost = (whole.len() / SIZE_PER_COST + 1) * (pattern.len() / 4 + 1);
    meter.charge(cost as u64)?;
    Ok(CowVal::owned(CelBool::from(regex("matches", pattern)?.is_match(whole))))
}

fn regex(function: &str, pattern: &str) -> Result<regex::Regex, ExecutionError> {
    schema::compile(pattern).map_err(|error| failed(function, error.to_string()))
}

/// The items of a list.
fn items<'b, 'v>(list: &'b (dyn Val + 'v)) -> Result<Vec<&'b (dyn Val + 'v)>, ExecutionError> {
    let iterable = list.as_iterable().ok_or_else(|| ExecutionError::UnexpectedType {
        got: list.get_type().name().to_owned(),
        want: "list".to_owned(),
    })?;
    let mut iterator = iterable.iter();
    let mut items = Vec::new();
    while let Some(item) = iterator.next() {
        items.push(item);
    }
    Ok(items)
}

/// Kubernetes' additions to lists and regular expressions.
fn lists_and_regex(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_member_overload("isSorted", "list_is_sorted", LIST_TYPE, vec![], is_sorted)?;
    env.add_member_overload("sum", "list_sum", LIST_TYPE, vec![], sum)?;
    env.add_member_overload("min", "list_min", LIST_TYPE, vec![], smallest)?;
    env.add_member_overload("max", "list_max", LIST_TYPE, vec![], largest)?;
    env.add_member_overload("indexOf", "list_index_of", LIST_TYPE, vec![DYN_TYPE], index_of)?;
    env.add_member_overload(
        "lastIndexOf",
        "list_last_index_of",
        LIST_TYPE,
        vec![DYN_TYPE],
        last_index_of,
    )?;
    env.add_member_overload("find", "string_find", STRING_TYPE, vec![STRING_TYPE], find)?;
    env.add_member_overload(
        "findAll",
        "string_find_all",
        STRING_TYPE,
        vec![STRING_TYPE],
        find_all,
    )?;
    env.add_member_overload(
        "findAll",
        "string_find_all_n",
        STRING_TYPE,
        vec![STRING_TYPE, INT_TYPE],
        find_all,
    )
}

fn compare(left: &dyn Val, right: &dyn Val) -> Result<std::cmp::Ordering, ExecutionError> {
    let comparer = left.as_comparer().ok_or_else(|| failed("compare", "no such overload"))?;
    comparer.compare(right)
}

fn is_sorted<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let items = items(args[0].as_ref())?;
    for pair in items.windows(2) {
        if compare(pair[0], pair[1])?.is_gt() {
            return Ok(CowVal::owned(CelBool::from(false)));
        }
    }
    Ok(CowVal::owned(CelBool::from(true)))
}

fn sum<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let items = items(args[0].as_ref())?;
    let Some((first, rest)) = items.split_first() else {
        return Ok(CowVal::owned(CelInt::from(0)));
    };
    let mut total: Box<dyn Val + 'v> = first.clone_as_boxed();
    for item in rest {
        let adder = total.as_adder().ok_or_else(|| failed("sum", "no such overload"))?;
        let next = adder.add(*item)?.into_owned();
        total = next;
    }
    Ok(CowVal::Owned(total))
}

fn extreme<'b, 'v>(
    args: &Args<'b, 'v>,
    function: &str,
    wanted: std::cmp::Ordering,
) -> Result<Box<dyn Val + 'v>, ExecutionError> {
    let items = items(args[0].as_ref())?;
    let (first, rest) = items
        .split_first()
        .ok_or_else(|| failed(function, format!("{function} called on empty list")))?;
    let mut best = *first;
    for item in rest {
        if compare(*item, best)? == wanted {
            best = *item;
        }
    }
    Ok(best.clone_as_boxed())
}

fn smallest<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    extreme(&args, "min", std::cmp::Ordering::Less).map(CowVal::Owned)
}

fn largest<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    extreme(&args, "max", std::cmp::Ordering::Greater).map(CowVal::Owned)
}

fn place(found: Option<usize>) -> CelInt {
    CelInt::from(found.map_or(-1, |index| index as i64))
}

fn index_of<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let wanted = args[1].as_ref();
    let found = items(args[0].as_ref())?.iter().position(|item| item.equals(wanted));
    Ok(CowVal::owned(place(found)))
}

fn last_index_of<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let wanted = args[1].as_ref();
    let found = items(args[0].as_ref())?.iter().rposition(|item| item.equals(wanted));
    Ok(CowVal::owned(place(found)))
}

fn find<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let pattern = regex("find", text(args[1].as_ref())?)?;
    let found = pattern.find(text(args[0].as_ref())?).map_or("", |found| found.as_str());
    Ok(CowVal::owned(CelString::from(found.to_owned())))
}

fn find_all<'b, 'v>(args: Args<'b, 'v>) -> Found<'b, 'v> {
    let most = match args.get(2) {
        Some(count) => *argument::<CelInt>(count.as_ref())?.inner(),
        None => -1,
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let pattern = regex("findAll", text(args[1].as_ref())?)?;
    let found = pattern.find_iter(text(args[0].as_ref())?).take(most);
    let found: Vec<Box<dyn Val + 'v>> = found
        .map(|one| -> Box<dyn Val + 'v> { Box::new(CelString::from(one.as_str().to_owned())) })
        .collect();
    Ok(CowVal::owned(CelList::from(found)))
}

opaque!(
    /// A named format of texts.
    Format(&'static str), "kubernetes.NamedFormat"
);

fn formats_and_sets(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn named: (CelString) -> CelOptional, name = "format.named")?;
    env.add_overload("format.dns1123Label", "format_1", vec![], |_| format_value("dns1123Label"))?;
    let others: &[(&str, cel::common::functions::Function)] = &[
        ("dns1123Subdomain", |_| format_value("dns1123Subdomain")),
        ("dns1035Label", |_| format_value("dns1035Label")),
        ("qualifiedName", |_| format_value("qualifiedName")),
        ("dns1123LabelPrefix", |_| format_value("dns1123LabelPrefix")),
        ("dns1123SubdomainPrefix", |_| format_value("dns1123SubdomainPrefix")),
        ("dns1035LabelPrefix", |_| format_value("dns1035LabelPrefix")),
        ("labelValue", |_| format_value("labelValue")),
        ("uri", |_| format_value("uri")),
        ("uuid", |_| format_value("uuid")),
        ("byte", |_| format_value("byte")),
        ("date", |_| format_value("date")),
        ("datetime", |_| format_value("datetime")),
    ];
    for (name, function) in others {
        let name = format!("format.{name}");
        env.add_overload(&name, &format!("{name}_value"), vec![], *function)?;
    }
    cel::add_overload!(env, fn escape_key: (CelString) -> CelString, name = "jsonpatch.escapeKey")?;
    cel::add_member_overload!(env, fn validate: (Format, CelString) -> CelOptional)?;
    env.add_overload("sets.contains", "sets_contains", vec![LIST_TYPE, LIST_TYPE], |args| {
        let (left, right) = (items(args[0].as_ref())?, items(args[1].as_ref())?);
        Ok(CowVal::owned(CelBool::from(contains_all(&left, &right))))
    })?;
    env.add_overload("sets.equivalent", "sets_equivalent", vec![LIST_TYPE, LIST_TYPE], |args| {
        let (left, right) = (items(args[0].as_ref())?, items(args[1].as_ref())?);
        let equal = contains_all(&left, &right) && contains_all(&right, &left);
        Ok(CowVal::owned(CelBool::from(equal)))
    })?;
    env.add_overload("sets.intersects", "sets_intersects", vec![LIST_TYPE, LIST_TYPE], |args| {
        let (left, right) = (items(args[0].as_ref())?, items(args[1].as_ref())?);
        let shared = right.iter().any(|one| left.iter().any(|item| item.equals(*one)));
        Ok(CowVal::owned(CelBool::from(shared)))
    })
}

fn contains_all(whole: &[&dyn Val], part: &[&dyn Val]) -> bool {
    part.iter().all(|one| whole.iter().any(|item| item.equals(*one)))
}

fn format_value<'b, 'v>(name: &'static str) -> Found<'b, 'v> {
    Ok(CowVal::owned(Format(name)))
}

fn named(name: &CelString<'_>) -> CelOptional<'static> {
    match FORMATS.iter().find(|known| **known == name.inner()) {
        Some(name) => CelOptional::of(Box::new(Format(name))),
        None => CelOptional::none(),
    }
}

/// A key as it stands in the path of a JSON patch.
fn escape_key(key: &CelString<'_>) -> CelString<'static> {
    CelString::from(key.inner().replace('~', "~0").replace('/', "~1"))
}

/// Nothing if the text has the format, else the complaints.
fn validate(format: &Format, text: &CelString<'_>) -> CelOptional<'static> {
    use wherry_resources::names;
    let text = text.inner();
    let prefix = |check: fn(&str) -> Vec<String>| match text.strip_suffix('-') {
        Some(base) if !base.is_empty() => check(&format!("{base}a")),
        _ => check(text),
    };
    let plain = |name: &str| {
        let holds = formats::named(name).is_none_or(|test| test(text));
        if holds { Vec::new() } else { vec![format!("does not match format {name:?}")] }
    };
    let complaints = match format.0 {
        "dns1123Label" => names::label(text),
        "dns1123Subdomain" => names::subdomain(text),
        "dns1035Label" => names::label_1035(text),
        "qualifiedName" => names::qualified(text),
        "labelValue" => names::label_value(text),
        "dns1123LabelPrefix" => prefix(names::label),
        "dns1123SubdomainPrefix" => prefix(names::subdomain),
        "dns1035LabelPrefix" => prefix(names::label_1035),
        "datetime" => plain("date-time"),
        other => plain(other),
    };
    if complaints.is_empty() {
        return CelOptional::none();
    }
    let complaints: Vec<Box<dyn Val>> = complaints
        .into_iter()
        .map(|complaint| -> Box<dyn Val> { Box::new(CelString::from(complaint)) })
        .collect();
    CelOptional::of(Box::new(CelList::from(complaints)))
}

/// What an authorizer is asked, one step after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Check {
    /// Another user than the one who asks: (namespace, name) of a ServiceAccount.
    pub account: Option<(String, String)>,
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

/// Answers whether something is allowed: the check and the verb.
type Ask = Arc<dyn Fn(&Check, &str) -> bool + Send + Sync>;

/// The variable `authorizer`, and what its functions lead to.
#[derive(Clone)]
pub struct Authorizer {
    ask: Ask,
    check: Check,
}

impl Authorizer {
    /// An authorizer that answers by this function.
    pub fn new(ask: Ask) -> Authorizer {
        Authorizer { ask, check: Check::default() }
    }

    /// The same, asked about this already.
    pub fn about(&self, check: Check) -> Authorizer {
        Authorizer { ask: self.ask.clone(), check }
    }

    fn with(&self, change: impl FnOnce(&mut Check)) -> Authorizer {
        let mut next = self.clone();
        change(&mut next.check);
        next
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorizer").field("check", &self.check).finish_non_exhaustive()
    }
}

static AUTHORIZER: Type = Type::new_unspecified_type("kubernetes.authorization.Authorizer");

impl Val for Authorizer {
    fn get_type(&self) -> &Type {
        &AUTHORIZER
    }

    fn cel_type() -> &'static Type {
        &AUTHORIZER
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn std::any::Any> {
        Some(self)
    }
}

impl StaticVal for Authorizer {}

opaque!(
    /// The answer of an authorizer.
    Decision(bool), "kubernetes.authorization.Decision"
);

fn authorizer(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_member_overload!(env, fn auth_path: (Authorizer, CelString) -> Authorizer,
        name = "path")?;
    cel::add_member_overload!(env, fn auth_group: (Authorizer, CelString) -> Authorizer,
        name = "group")?;
    cel::add_member_overload!(env,
        fn auth_account: (Authorizer, CelString, CelString) -> Authorizer,
        name = "serviceAccount")?;
    cel::add_member_overload!(env, fn auth_resource: (Authorizer, CelString) -> Authorizer,
        name = "resource")?;
    cel::add_member_overload!(env, fn auth_subresource: (Authorizer, CelString) -> Authorizer,
        name = "subresource")?;
    cel::add_member_overload!(env, fn auth_namespace: (Authorizer, CelString) -> Authorizer,
        name = "namespace")?;
    cel::add_member_overload!(env, fn auth_name: (Authorizer, CelString) -> Authorizer,
        name = "name")?;
    cel::add_member_overload!(env, fn auth_selector: (Authorizer, CelString) -> Authorizer,
        name = "fieldSelector")?;
    cel::add_member_overload!(env, fn auth_selector: (Authorizer, CelString) -> Authorizer,
        name = "labelSelector")?;
    cel::add_member_overload!(env, fn auth_check: (Authorizer, CelString) -> Decision,
        name = "check")?;
    cel::add_member_overload!(env, fn decision_allowed: (Decision) -> CelBool, name = "allowed")?;
    cel::add_member_overload!(env, fn decision_reason: (Decision) -> CelString, name = "reason")?;
    cel::add_member_overload!(env, fn decision_errored: (Decision) -> CelBool, name = "errored")?;
    cel::add_member_overload!(env, fn decision_error: (Decision) -> CelString, name = "error")
}

fn auth_path(this: &Authorizer, path: &CelString<'_>) -> Authorizer {
    this.with(|check| path.inner().clone_into(&mut check.path))
}

fn auth_group(this: &Authorizer, group: &CelString<'_>) -> Authorizer {
    this.with(|check| group.inner().clone_into(&mut check.group))
}

fn auth_account(this: &Authorizer, namespace: &CelString<'_>, name: &CelString<'_>) -> Authorizer {
    let account = (namespace.inner().to_owned(), name.inner().to_owned());
    this.with(|check| check.account = Some(account))
}

fn auth_resource(this: &Authorizer, resource: &CelString<'_>) -> Authorizer {
    this.with(|check| resource.inner().clone_into(&mut check.resource))
}

fn auth_subresource(this: &Authorizer, subresource: &CelString<'_>) -> Authorizer {
    this.with(|check| subresource.inner().clone_into(&mut check.subresource))
}

fn auth_namespace(this: &Authorizer, namespace: &CelString<'_>) -> Authorizer {
    this.with(|check| namespace.inner().clone_into(&mut check.namespace))
}

fn auth_name(this: &Authorizer, name: &CelString<'_>) -> Authorizer {
    this.with(|check| name.inner().clone_into(&mut check.name))
}

/// Rules do not depend on selectors, so neither does the answer.
fn auth_selector(this: &Authorizer, _: &CelString<'_>) -> Authorizer {
    this.clone()
}

fn auth_check(this: &Authorizer, verb: &CelString<'_>) -> Decision {
    Decision((this.ask)(&this.check, verb.inner()))
}

fn decision_allowed(this: &Decision) -> CelBool {
    CelBool::from(this.0)
}

fn decision_reason(_: &Decision) -> CelString<'static> {
    CelString::from("")
}

fn decision_errored(_: &Decision) -> CelBool {
    CelBool::from(false)
}

fn decision_error(_: &Decision) -> CelString<'static> {
    CelString::from("")
}

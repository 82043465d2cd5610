//! Reads a UDF's name, types and kind from its source, by the rules of Arroyo's control plane and macro.

use std::path::Path;
use std::time::Duration;

use arrow::datatypes::DataType;
use syn::spanned::Spanned;
use syn::{FnArg, GenericArgument, Item, ItemFn, LitInt, LitStr, PathArguments, ReturnType, Type};

use super::UdfError;

/// What a UDF is called with, what it answers, and how it is called.
#[derive(Debug, Clone, PartialEq)]
pub struct UdfSpec {
    /// The name in SQL.
    pub name: String,
    /// The arguments, in order. For an aggregate: of one row.
    pub args: Vec<UdfArg>,
    /// Type of the result.
    pub result: DataType,
    /// Whether the function itself may answer NULL. (NULL for an argument that is not nullable gives NULL as well,
    /// without a call.)
    pub nullable: bool,
    /// How it is called.
    pub kind: UdfKind,
}

/// One argument of a UDF.
#[derive(Debug, Clone, PartialEq)]
pub struct UdfArg {
    /// Its name in the source.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether the function takes NULL (`Option`).
    pub nullable: bool,
}

/// How a UDF is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdfKind {
    /// A plain function of one row, called with whole columns.
    Scalar,
    /// An `async fn`: one row per call, many calls under way.
    Async {
        /// Whether results come in the order of the calls.
        ordered: bool,
        /// Most calls under way in one instance.
        max_in_flight: usize,
        /// A call that takes longer ends its instance.
        timeout: Duration,
    },
    /// A plain function of `Vec`s: one value from all rows of a group.
    Aggregate,
}

const ARGUMENTS: &str = "i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, &str, &[u8], or Option of one of them";
const VEC_ARGUMENTS: &str = "Vec of i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, or of Option of one of them";
const RESULTS: &str = "i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, String, Vec<u8>, or Option of one of them";
const ASYNC_RESULTS: &str = "i32, i64, u32, u64, f32, f64, String, Vec<u8>, or Option of one of them";

/// The UDF that the source in `path` defines; None if it has no `#[udf]` function.
pub(super) fn parse(path: &Path, text: &str) -> Result<Option<UdfSpec>, UdfError> {
    parse_text(text).map_err(|error| {
        let start = error.span().start();
        UdfError::Source {
            path: path.to_path_buf(),
            line: start.line,
            column: start.column + 1,
            message: error.to_string(),
        }
    })
}

fn parse_text(text: &str) -> syn::Result<Option<UdfSpec>> {
    let file = syn::parse_file(text)?;
    let mut functions = file.items.iter().filter_map(|item| match item {
        Item::Fn(function) if udf_attribute(function).is_some() => Some(function),
        _ => None,
    });
    let Some(function) = functions.next() else {
        return Ok(None);
    };
    if let Some(second) = functions.next() {
        return Err(error(&second.sig.ident, "a source may hold one #[udf] function; move this one to its own file"));
    }
    spec(function).map(Some)
}

fn udf_attribute(function: &ItemFn) -> Option<&syn::Attribute> {
    function.attrs.iter().find(|a| a.path().segments.last().is_some_and(|s| s.ident == "udf"))
}

fn spec(function: &ItemFn) -> syn::Result<UdfSpec> {
    let name = function.sig.ident.to_string();
    let is_async = function.sig.asyncness.is_some();
    let mut args = Vec::new();
    let mut vecs = 0;
    for input in &function.sig.inputs {
        let FnArg::Typed(typed) = input else {
            return Err(error(input, "a UDF cannot take self"));
        };
        let arg = match &*typed.pat {
            syn::Pat::Ident(pat) => pat.ident.to_string(),
            other => return Err(error(other, "an argument of a UDF must be a plain name")),
        };
        let (inner, supported) = match generic(&typed.ty, "Vec") {
            Some(inner) => {
                vecs += 1;
                (inner, VEC_ARGUMENTS)
            }
            None => (&*typed.ty, ARGUMENTS),
        };
        let place = || format!("argument {arg} of {name}");
        let (data_type, nullable) = rust_type(inner, Direction::Argument, supported, place)?;
        if supported == VEC_ARGUMENTS && !data_type.is_primitive() {
            return Err(unsupported(&typed.ty, supported, &place()));
        }
        args.push(UdfArg { name: arg, data_type, nullable });
    }
    if vecs > 0 && is_async {
        return Err(error(&function.sig, "an async UDF cannot be an aggregate: take single values instead of Vec"));
    }
    if vecs > 0 && vecs < args.len() {
        return Err(error(&function.sig, "an aggregate UDF must take a Vec for every argument"));
    }
    if args.is_empty() && !is_async {
        return Err(error(&function.sig, "a UDF that is not async must take at least one argument"));
    }
    let ReturnType::Type(_, result) = &function.sig.output else {
        return Err(error(&function.sig, "a UDF must return something"));
    };
    let supported = if is_async { ASYNC_RESULTS } else { RESULTS };
    let place = || format!("result of {name}");
    let (data_type, nullable) = rust_type(result, Direction::Result, supported, place)?;
    if is_async && matches!(data_type, DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16) {
        return Err(unsupported(result, supported, &place()));
    }
    let kind = match (is_async, vecs) {
        (true, _) => async_kind(function)?,
        (false, 0) => UdfKind::Scalar,
        (false, _) => UdfKind::Aggregate,
    };
    Ok(UdfSpec { name, args, result: data_type, nullable, kind })
}

/// The options in `#[udf(...)]`, with Arroyo's defaults.
fn async_kind(function: &ItemFn) -> syn::Result<UdfKind> {
    let (mut ordered, mut max_in_flight, mut timeout) = (false, 1000, Duration::from_secs(5));
    if let Some(attribute) = udf_attribute(function)
        && attribute.meta.require_path_only().is_err()
    {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("ordered") {
                ordered = true;
            } else if meta.path.is_ident("unordered") {
                ordered = false;
            } else if meta.path.is_ident("allowed_in_flight") {
                let literal: LitInt = meta.value()?.parse()?;
                max_in_flight = literal.base10_parse::<u32>()? as usize;
                if max_in_flight == 0 {
                    return Err(error(&literal, "allowed_in_flight must be at least 1"));
                }
            } else if meta.path.is_ident("timeout") {
                let literal: LitStr = meta.value()?.parse()?;
                timeout = duration(&literal)?;
            } else {
                return Err(meta.error("unknown option; known are ordered, unordered, allowed_in_flight and timeout"));
            }
            Ok(())
        })?;
    }
    Ok(UdfKind::Async { ordered, max_in_flight, timeout })
}

/// A duration as Arroyo reads it: a whole number and a unit.
fn duration(literal: &LitStr) -> syn::Result<Duration> {
    let text = literal.value();
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let wrong = || error(literal, "a timeout is a whole number and one of ns, µs, ms, s, m, h, such as \"10s\"");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let minutes = |n: u64| n.checked_mul(60).map(Duration::from_secs);
    match unit.trim() {
        "ns" | "nanos" => Some(Duration::from_nanos(number)),
        "µs" | "micros" => Some(Duration::from_micros(number)),
        "ms" | "millis" => Some(Duration::from_millis(number)),
        "s" | "secs" | "seconds" => Some(Duration::from_secs(number)),
        "m" | "mins" | "minutes" => minutes(number),
        "h" | "hrs" | "hours" => number.checked_mul(60).and_then(minutes),
        _ => None,
    }
    .ok_or_else(wrong)
}

/// Arguments borrow texts and bytes, results own them.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Argument,
    Result,
}

/// The Arrow type of a Rust type, and whether it is an `Option`.
fn rust_type(
    ty: &Type,
    direction: Direction,
    supported: &'static str,
    place: impl Fn() -> String,
) -> syn::Result<(DataType, bool)> {
    let (inner, nullable) = match generic(ty, "Option") {
        Some(inner) => (inner, true),
        None => (ty, false),
    };
    let data_type = match inner {
        Type::Reference(reference) if direction == Direction::Argument => borrowed(&reference.elem),
        Type::Path(_) if generic(inner, "Vec").and_then(primitive) == Some(DataType::UInt8) => {
            (direction == Direction::Result).then_some(DataType::Binary)
        }
        Type::Path(path) if direction == Direction::Result && path.path.is_ident("String") => Some(DataType::Utf8),
        other => primitive(other),
    };
    match data_type {
        Some(data_type) => Ok((data_type, nullable)),
        None => Err(unsupported(ty, supported, &place())),
    }
}

fn borrowed(ty: &Type) -> Option<DataType> {
    match ty {
        Type::Path(path) if path.path.is_ident("str") => Some(DataType::Utf8),
        Type::Slice(slice) if primitive(&slice.elem) == Some(DataType::UInt8) => Some(DataType::Binary),
        _ => None,
    }
}

fn primitive(ty: &Type) -> Option<DataType> {
    let Type::Path(path) = ty else {
        return None;
    };
    Some(match path.path.get_ident()?.to_string().as_str() {
        "i8" => DataType::Int8,
        "i16" => DataType::Int16,
        "i32" => DataType::Int32,
        "i64" => DataType::Int64,
        "u8" => DataType::UInt8,
        "u16" => DataType::UInt16,
        "u32" => DataType::UInt32,
        "u64" => DataType::UInt64,
        "f32" => DataType::Float32,
        "f64" => DataType::Float64,
        _ => return None,
    })
}

/// `T` of `Wrapper<T>`, with any path before `Wrapper`.
fn generic<'a>(ty: &'a Type, wrapper: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else {
        return None;
    };
    let last = path.path.segments.last().filter(|segment| segment.ident == wrapper)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    match (arguments.args.len(), arguments.args.first()) {
        (1, Some(GenericArgument::Type(inner))) => Some(inner),
        _ => None,
    }
}

fn unsupported(ty: &Type, supported: &str, place: &str) -> syn::Error {
    let written = ty.span().source_text().unwrap_or_else(|| "this type".to_owned());
    error(ty, format!("{place}: a UDF cannot have the type {written} here; supported are {supported}"))
}

fn error(at: &impl Spanned, message: impl std::fmt::Display) -> syn::Error {
    syn::Error::new(at.span(), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> UdfSpec {
        parse(Path::new("f.rs"), text).expect("the source is sound").expect("the source has a UDF")
    }

    fn refusal(text: &str) -> String {
        parse(Path::new("f.rs"), text).expect_err("the source is at fault").to_string()
    }

    #[test]
    fn reads_names_types_and_nullability() {
        let spec = read("#[udf]\nfn f(a: i64, b: Option<&str>, c: &[u8], d: Option<f32>) -> Option<String> { None }");
        let args: Vec<_> = spec.args.iter().map(|a| (a.name.as_str(), &a.data_type, a.nullable)).collect();
        let expected = [
            ("a", &DataType::Int64, false),
            ("b", &DataType::Utf8, true),
            ("c", &DataType::Binary, false),
            ("d", &DataType::Float32, true),
        ];
        assert_eq!(args, expected);
        assert_eq!((spec.result, spec.nullable, spec.kind), (DataType::Utf8, true, UdfKind::Scalar));
    }

    #[test]
    fn reads_async_options_and_their_defaults() {
        let kind = |attribute: &str| read(&format!("{attribute} async fn f() -> Vec<u8> {{ vec![] }}")).kind;
        let expect = |ordered, max_in_flight, millis| UdfKind::Async {
            ordered,
            max_in_flight,
            timeout: Duration::from_millis(millis),
        };
        assert_eq!(kind("#[udf]"), expect(false, 1000, 5000));
        assert_eq!(kind("#[udf(ordered, timeout = \"250 ms\")]"), expect(true, 1000, 250));
        assert_eq!(
            kind("#[arroyo_udf_plugin::udf(unordered, allowed_in_flight = 7, timeout = \"2m\")]"),
            expect(false, 7, 120_000)
        );
    }

    #[test]
    fn reads_aggregates() {
        let spec = read("#[udf] fn f(a: Vec<i64>, b: Vec<Option<f64>>) -> f64 { 0.0 }");
        assert_eq!(spec.kind, UdfKind::Aggregate);
        assert_eq!(spec.args[1], UdfArg { name: "b".into(), data_type: DataType::Float64, nullable: true });
    }

    #[test]
    fn a_source_without_a_udf_is_none() {
        assert_eq!(parse(Path::new("f.rs"), "fn helper() {}").unwrap(), None);
    }

    #[test]
    fn refuses_with_place_and_what_is_supported() {
        let message = refusal("use x;\n#[udf]\nfn f(a: i64, when: SystemTime) -> i64 { 0 }");
        assert!(message.starts_with("f.rs:3:20: argument when of f: "), "{message}");
        assert!(message.contains("the type SystemTime here; supported are i8, "), "{message}");
        for (source, part) in [
            ("#[udf] fn f(a: bool) -> i64 { 0 }", "argument a of f: a UDF cannot have the type bool"),
            ("#[udf] fn f(a: String) -> i64 { 0 }", "the type String here; supported are"),
            ("#[udf] fn f(a: i64) -> &str { \"\" }", "result of f: a UDF cannot have the type &str"),
            ("#[udf] async fn f(a: i64) -> i16 { 0 }", "result of f: a UDF cannot have the type i16"),
            ("#[udf] fn f(a: Vec<&str>) -> i64 { 0 }", "the type Vec<&str> here; supported are Vec of"),
            ("#[udf] fn f(a: i64) { }", "must return something"),
            ("#[udf] fn f() -> i64 { 0 }", "at least one argument"),
            ("#[udf] fn f(a: Vec<i64>, b: i64) -> i64 { 0 }", "a Vec for every argument"),
            ("#[udf] async fn f(a: Vec<i64>) -> i64 { 0 }", "cannot be an aggregate"),
            ("#[udf(timeout = \"soon\")] async fn f() -> i64 { 0 }", "a timeout is a whole number"),
            ("#[udf(in_flight = 3)] async fn f() -> i64 { 0 }", "unknown option"),
            ("#[udf(allowed_in_flight = 0)] async fn f() -> i64 { 0 }", "at least 1"),
            ("#[udf] fn f(a: i64) -> i64 { 0 } #[udf] fn g(a: i64) -> i64 { 0 }", "one #[udf] function"),
            ("#[udf] fn f(a: i64", "f.rs:1:"),
        ] {
            let message = refusal(source);
            assert!(message.contains(part), "{source}: {message}");
        }
    }
}

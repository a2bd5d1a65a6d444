//! Jinja as Hugging Face's transformers sets it up: what jinja2 and Python do otherwise than minijinja. It knows nothing of chats.

mod args;
mod json;
mod methods;
mod source;
mod text;

use minijinja::formatting::FormatStyle;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, State, Value, filters};

use args::Args;
pub use source::source;
use text::failed;

/// No arguments by name.
const NONE: [(&str, Value); 0] = [];

/// Steps that a template may take: hundreds of times what real ones need, and less than two seconds on a slow processor.
const FUEL: u64 = 20_000_000;

/// The filters, tests and functions of chat templates.
pub fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the delimiters are the default ones"));
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => Ok(out.write_str(&text::string(value)?)?),
        _ => minijinja::escape_formatter(out, state, value),
    });
    minijinja_contrib::add_to_environment(&mut env);
    env.add_filter("tojson", json::tojson);
    env.add_filter("string", |value: &Value| text::string(value));
    env.add_filter("trim", |value: &Value, placed: Rest<Value>, named: Kwargs| {
        let chars = Args { placed: &placed, named }.optional_string(0, "chars")?;
        Ok::<_, Error>(text::trim(&text::string(value)?, chars.as_deref(), true, true).to_owned())
    });
    env.add_filter("int", |state: &State, value: &Value, placed: Rest<Value>, named: Kwargs| {
        let args = Args { placed: &placed, named };
        let default = args.given(0, "default")?.unwrap_or_else(|| Value::from(0));
        let base = args.int(1, "base")?.and_then(|n| u32::try_from(n).ok());
        filters::int(state, value, Some(default), base, Kwargs::from_iter(NONE))
    });
    env.add_filter("float", |state: &State, value: &Value, placed: Rest<Value>, named: Kwargs| {
        let default = Args { placed: &placed, named }.given(0, "default")?.unwrap_or_else(|| Value::from(0.0));
        filters::float(state, value, Some(default), Kwargs::from_iter(NONE))
    });
    for name in ["default", "d"] {
        env.add_filter(name, |value: &Value, placed: Rest<Value>, named: Kwargs| {
            let args = Args { placed: &placed, named };
            let missing = value.is_undefined() || args.truth(1, "boolean")? && !value.is_true();
            let default = args.given(0, "default_value")?;
            Ok::<_, Error>(if missing { default.unwrap_or_else(|| Value::from("")) } else { value.clone() })
        });
    }
    env.add_filter("modulo", modulo);
    env.add_filter("indent", |value: &Value, placed: Rest<Value>, named: Kwargs| {
        let args = Args { placed: &placed, named };
        let width = match args.value(0, "width")? {
            Some(width) if width.as_str().is_some() => text::string(&width)?,
            _ => " ".repeat(args.width(0, "width")?.unwrap_or(4)),
        };
        let (first, blank) = (args.truth(1, "first")?, args.truth(2, "blank")?);
        let indented = |(i, line): (usize, &str)| match (i > 0 || first) && (blank || i == 0 || !line.is_empty()) {
            true => format!("{width}{line}"),
            false => line.to_owned(),
        };
        let lines: Vec<String> = text::string(value)?.split('\n').enumerate().map(indented).collect();
        Ok::<_, Error>(lines.join("\n"))
    });
    for name in ["e", "escape"] {
        env.add_filter(name, |value: &Value| {
            let text = text::string(value)?.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            Ok::<_, Error>(text.replace('\'', "&#39;").replace('"', "&#34;"))
        });
    }
    env.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    env.add_filter("center", |value: &Value, placed: Rest<Value>, named: Kwargs| {
        let width = Args { placed: &placed, named }.width(0, "width")?.unwrap_or(80);
        Ok::<_, Error>(text::center(&text::string(value)?, width, " "))
    });
    use ValueKind::{Bytes, Iterable, Map, Seq, String as Text, Undefined};
    env.add_test("sequence", |value: &Value| matches!(value.kind(), Bytes | Map | Seq | Text | Undefined));
    env.add_test("iterable", |value: &Value| matches!(value.kind(), Bytes | Iterable | Map | Seq | Text | Undefined));
    env.add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Plain));
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        Err(failed(text::string(message)?))
    });
    env.add_function("strftime_now", |format: &str| strftime(format, jiff::Zoned::now().datetime()));
    env
}

/// What Python makes of JSON. (serde would show minijinja how serde_json keeps numbers, as gguf-rs has it set.)
pub fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match n.to_string().parse::<i128>() {
            Ok(n) => Value::from(n),
            Err(_) => Value::from(n.as_f64().unwrap_or(f64::INFINITY)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(items) => items.iter().map(value).collect(),
        serde_json::Value::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), value(v)))),
    }
}

/// The operator `%`: formats a string, or tells what a division leaves.
fn modulo(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let values = match right.downcast_object_ref::<Tuple>() {
            Some(_) => right.try_iter()?.collect(),
            None => vec![right.clone()],
        };
        return minijinja::formatting::format(FormatStyle::Printf, text, &values).map(Value::from);
    }
    let number = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    if !number(left) || !number(right) {
        return Err(failed(format!("{} % {} is nothing", left.kind(), right.kind())));
    }
    // What is left has the sign of the divisor.
    if let (Ok(a), Ok(b)) = (i128::try_from(left.clone()), i128::try_from(right.clone())) {
        let rest = a.checked_rem(b).ok_or_else(|| failed("a division by zero"))?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    let rest = a % b;
    match b {
        0.0 => Err(failed("a division by zero")),
        _ => Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest })),
    }
}

/// The words of `strftime_now` in C's locale.
pub fn strftime(format: &str, now: jiff::civil::DateTime) -> Result<String, Error> {
    let mut plain = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        plain.push(c);
        if c == '%' {
            match chars.next() {
                Some('c') => plain.push_str("a %b %e %H:%M:%S %Y"),
                Some('x') => plain.push_str("m/%d/%y"),
                Some('X') => plain.push_str("H:%M:%S"),
                other => plain.extend(other),
            }
        }
    }
    jiff::fmt::strtime::format(plain, now).map_err(|e| failed(format!("strftime_now: {e}")))
}

//! Jinja as Hugging Face's transformers sets it up: what jinja2 and Python do otherwise than minijinja. It knows nothing of chats.

mod args;
mod filters;
mod functions;
mod json;
mod methods;
mod range;
mod source;
mod text;

use minijinja::formatting::FormatStyle;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, State, Value, filters as builtin};

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
        builtin::int(state, &text::numeral(value), Some(default), base, Kwargs::from_iter(NONE))
    });
    env.add_filter("float", |state: &State, value: &Value, placed: Rest<Value>, named: Kwargs| {
        let default = Args { placed: &placed, named }.given(0, "default")?.unwrap_or_else(|| Value::from(0.0));
        builtin::float(state, &text::numeral(value), Some(default), Kwargs::from_iter(NONE))
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
    for name in ["e", "escape", "forceescape"] {
        env.add_filter(name, |value: &Value| text::string(value).map(|text| text::escape(&text)));
    }
    env.add_filter("wordcount", |value: &Value| {
        let text = text::string(value)?;
        Ok::<_, Error>(text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).count())
    });
    env.add_filter("truncate", truncate);
    env.add_filter("wordwrap", filters::wordwrap);
    env.add_filter("urlencode", filters::urlencode);
    env.add_filter("xmlattr", filters::xmlattr);
    env.add_filter("format", |value: &Value, placed: Rest<Value>, named: Kwargs| {
        let names: Vec<&str> = named.args().collect();
        let text = text::string(value)?;
        match (names.is_empty(), placed.is_empty()) {
            (true, _) => printf(&text, placed.0, true),
            (false, true) => printf(&text, vec![functions::dict(Rest(Vec::new()), named)?], false),
            (false, false) => Err(failed("format wants values by place or by name")),
        }
    });
    env.add_function("range", functions::range);
    env.add_function("dict", functions::dict);
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

/// The beginning of a text, to its last word unless words may be cut; a text that is hardly too long is left whole.
fn truncate(value: &Value, placed: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Args { placed: &placed, named };
    let (length, leeway) = (args.width(0, "length")?.unwrap_or(255), args.width(3, "leeway")?.unwrap_or(5));
    let end = args.optional_string(2, "end")?.unwrap_or_else(|| "...".to_owned());
    let text = text::string(value)?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept =
        length.checked_sub(end.chars().count()).ok_or_else(|| failed("truncate: there is no room for the end"))?;
    let cut: String = text.chars().take(kept).collect();
    let whole =
        if args.truth(1, "killwords")? { &cut } else { cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words) };
    Ok(format!("{whole}{end}"))
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
        return match right.downcast_object_ref::<Tuple>() {
            Some(_) => printf(text, right.try_iter()?.collect(), true),
            // A dictionary may have more than is asked for, and so may a list.
            None => printf(text, vec![right.clone()], !matches!(right.kind(), ValueKind::Map | ValueKind::Seq)),
        };
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

/// Formats by `%`: `%r` is the text of `repr()`, and integers can be made of floats. `all`: it is an error to leave values over.
fn printf(text: &str, mut values: Vec<Value>, all: bool) -> Result<Value, Error> {
    let mut plain = String::with_capacity(text.len());
    let (mut rest, mut i) = (text, 0);
    while let Some(at) = rest.find('%') {
        let spec = &rest[at + 1..];
        let n = spec.find(|c: char| !"#0- +.".contains(c) && !c.is_ascii_digit()).unwrap_or(spec.len());
        let (flags, kind) = (&spec[..n], spec[n..].chars().next());
        plain.push_str(&rest[..at + 1]);
        plain.push_str(flags);
        rest = &spec[n..];
        match (kind, values.get_mut(i)) {
            (Some('r'), Some(value)) => {
                *value = Value::from(text::repr(value)?);
                plain.push('s');
                rest = &rest[1..];
            }
            (Some('d' | 'i' | 'u'), Some(value)) if value.kind() == ValueKind::Number && !value.is_integer() => {
                let x = f64::try_from(value.clone())?;
                if !x.is_finite() {
                    return Err(failed(format!("{x} is no integer")));
                }
                *value = Value::from(x as i128);
            }
            // The second of two belongs to the first.
            (Some('%'), _) => {
                plain.push('%');
                rest = &rest[1..];
                continue;
            }
            // Values are found by their names from here on, or are widths as well.
            (Some('(' | '*'), _) => {
                i = values.len();
                break;
            }
            _ => {}
        }
        i += 1;
    }
    if all && i < values.len() {
        return Err(failed("not all values are used by the format"));
    }
    plain.push_str(rest);
    minijinja::formatting::format(FormatStyle::Printf, &plain, &values).map(Value::from)
}

/// The words of `strftime_now` in C's locale, of a time that knows no zone.
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
                Some('r') => plain.push_str("I:%M:%S %p"),
                Some('f') => {
                    plain.pop();
                    plain.push_str(&format!("{:06}", now.subsec_nanosecond() / 1000));
                }
                Some('Z' | 'z') => drop(plain.pop()),
                Some('s') => {
                    plain.pop();
                    let now = now.to_zoned(jiff::tz::TimeZone::system());
                    plain.push_str(
                        &now.map_err(|e| failed(format!("strftime_now: {e}")))?.timestamp().as_second().to_string(),
                    );
                }
                // What C does not know stays as it is.
                Some(c) if c.is_alphabetic() && !"aAbBCdDeEFgGhHIjklmMnOpPRStTuUVwWyY".contains(c) => {
                    plain.push('%');
                    plain.push(c);
                }
                other => plain.extend(other),
            }
        }
    }
    jiff::fmt::strtime::format(plain, now).map_err(|e| failed(format!("strftime_now: {e}")))
}

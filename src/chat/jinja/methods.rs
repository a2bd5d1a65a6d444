//! Methods of Python's strings, dictionaries and lists that minijinja's pycompat lacks or has otherwise.

use std::fmt;
use std::sync::Arc;

use minijinja::formatting::FormatStyle;
use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::args::Args;
use super::text::{self, failed};

/// Calls a method.
pub fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(s) = value.as_str() {
        state.consume_fuel((s.len() / 64) as u64)?;
    }
    let own = match value.kind() {
        ValueKind::String => string(state, value.as_str().unwrap_or_default(), method, &Args::new(args)?)?,
        ValueKind::Map => dictionary(value, method)?,
        ValueKind::Seq => list(value, method, args)?,
        _ => None,
    };
    own.map_or_else(|| unknown_method_callback(state, value, method, args), Ok)
}

fn string(state: &mut State, s: &str, method: &str, args: &Args) -> Result<Option<Value>, Error> {
    let chars = s.chars().count();
    let value = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (start, end) = (method != "rstrip", method != "lstrip");
            Value::from(text::trim(s, args.optional_string(0, "chars")?.as_deref(), start, end))
        }
        "split" | "rsplit" => {
            let separator = args.optional_string(0, "sep")?;
            let most = args.int(1, "maxsplit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            split(s, separator.as_deref(), most, method == "rsplit")?.into_iter().map(Value::from).collect()
        }
        "splitlines" => lines(s, args.truth(0, "keepends")?).map(Value::from).collect(),
        "removeprefix" => Value::from(s.strip_prefix(args.string(0, "prefix")?.as_str()).unwrap_or(s)),
        "removesuffix" => Value::from(s.strip_suffix(args.string(0, "suffix")?.as_str()).unwrap_or(s)),
        "partition" | "rpartition" => {
            let separator = args.string(0, "sep")?;
            if separator.is_empty() {
                return Err(failed("the separator is empty"));
            }
            let parts = match method {
                "partition" => s.split_once(&separator).map_or([s, "", ""], |(a, b)| [a, &separator, b]),
                _ => s.rsplit_once(&separator).map_or(["", "", s], |(a, b)| [a, &separator, b]),
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "ljust" | "rjust" | "center" => {
            let width = args.width(0, "width")?.unwrap_or(0);
            let fill = args.optional_string(1, "fillchar")?.unwrap_or_else(|| " ".to_owned());
            if fill.chars().count() != 1 {
                return Err(failed("what fills must be one character"));
            }
            let filled = fill.repeat(width.saturating_sub(chars));
            Value::from(match method {
                "ljust" => s.to_owned() + &filled,
                "rjust" => filled + s,
                _ => text::center(s, width, &fill),
            })
        }
        "zfill" => {
            let sign = usize::from(s.starts_with(['+', '-']));
            let zeros = args.width(0, "width")?.unwrap_or(0).saturating_sub(chars);
            Value::from(format!("{}{}{}", &s[..sign], "0".repeat(zeros), &s[sign..]))
        }
        "expandtabs" => {
            let size = args.width(0, "tabsize")?.unwrap_or(8);
            let (mut out, mut column) = (String::new(), 0);
            for c in s.chars() {
                let n = if c != '\t' {
                    1
                } else if size == 0 {
                    0
                } else {
                    size - column % size
                };
                column = if c == '\n' || c == '\r' { 0 } else { column + n };
                out.extend(std::iter::repeat_n(if c == '\t' { ' ' } else { c }, n));
            }
            Value::from(out)
        }
        // To capitals and back: this also makes one of letters that have two small forms.
        "casefold" => Value::from(s.to_uppercase().chars().flat_map(char::to_lowercase).collect::<String>()),
        "swapcase" => Value::from(s.chars().map(|c| capital(c, !c.is_uppercase())).collect::<String>()),
        "title" => {
            let mut cased = false;
            let title = |c: char| capital(c, !std::mem::replace(&mut cased, c.is_uppercase() || c.is_lowercase()));
            Value::from(s.chars().map(title).collect::<String>())
        }
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
            let (from, part) = window(s, args.int(1, "start")?, args.int(2, "end")?);
            if method == "count" || method.ends_with("with") {
                let first = args.placed.get(..1).ok_or_else(|| failed("an argument is missing"))?;
                return unknown_method_callback(state, &Value::from(part), method, first).map(Some);
            }
            let what = args.string(0, "sub")?;
            let at = if method.starts_with('r') { part.rfind(&what) } else { part.find(&what) };
            match at {
                Some(at) => Value::from(from + part[..at].chars().count()),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(failed(format!("'{what}' is not found"))),
            }
        }
        "format" => match converted(s, args)? {
            Some((plain, values)) => {
                Value::from(minijinja::formatting::format(FormatStyle::StrFormat, &plain, &values)?)
            }
            None => return Ok(None),
        },
        "isprintable" => Value::from(s.chars().all(text::printable)),
        "isidentifier" => {
            let letter = |c: char| c.is_alphabetic() || c == '_';
            Value::from(s.starts_with(letter) && s.chars().all(|c| letter(c) || c.is_numeric()))
        }
        "istitle" => {
            // A capital begins each word, and nothing else is one.
            let (mut cased, mut any) = (false, false);
            Value::from(
                s.chars().all(|c| {
                    let fits = if c.is_uppercase() { !cased } else { !c.is_lowercase() || cased };
                    cased = c.is_uppercase() || c.is_lowercase();
                    any |= cased;
                    fits
                }) && any,
            )
        }
        "isdecimal" => return unknown_method_callback(state, &Value::from(s), "isdigit", args.placed).map(Some),
        "join" => match args.value(0, "iterable")?.unwrap_or_default().try_iter()?.all(|v| v.as_str().is_some()) {
            true => return Ok(None),
            false => return Err(failed("what is joined must be strings")),
        },
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// The format of a text whose fields have conversions (`{!r}`), without them, and its values, converted; `None` if there are none, or if fields
/// are more than names and numbers.
fn converted(format: &str, args: &Args) -> Result<Option<(String, Vec<Value>)>, Error> {
    let (mut plain, mut values, mut rest, mut next) = (String::new(), Vec::new(), format, 0);
    if !format.contains('!') {
        return Ok(None);
    }
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            plain.push_str(&rest[..2]);
            rest = &rest[2..];
            continue;
        }
        let Some((field, after)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) else { return Ok(None) };
        rest = after;
        let (head, spec) = field.split_once(':').map_or((field, ""), |(head, spec)| (head, spec));
        let (name, conversion) = head.split_once('!').map_or((head, ""), |(name, conversion)| (name, conversion));
        let value = match name.parse::<usize>() {
            Ok(i) => args.placed.get(i).cloned(),
            Err(_) if name.is_empty() => {
                next += 1;
                args.placed.get(next - 1).cloned()
            }
            Err(_) => args.named.get::<Option<Value>>(name)?,
        };
        let value = match (value, conversion) {
            (Some(value), "") => value,
            (Some(value), "s") => Value::from(text::string(&value)?),
            (Some(value), "r") => Value::from(text::repr(&value)?),
            _ => return Ok(None),
        };
        plain.push_str(&format!("{{{}{}{spec}}}", values.len(), if spec.is_empty() { "" } else { ":" }));
        values.push(value);
    }
    Ok(Some((plain + rest, values)))
}

/// A letter as a capital or a small one.
fn capital(c: char, capital: bool) -> String {
    if capital { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
}

fn split<'s>(s: &'s str, separator: Option<&str>, most: usize, from_end: bool) -> Result<Vec<&'s str>, Error> {
    let parts = most.saturating_add(1);
    let mut out: Vec<&str> = match separator {
        Some("") => return Err(failed("the separator is empty")),
        Some(separator) if from_end => s.rsplitn(parts, separator).collect(),
        Some(separator) => s.splitn(parts, separator).collect(),
        None => {
            let (mut out, mut rest) = (Vec::new(), text::trim(s, None, !from_end, from_end));
            while !rest.is_empty() {
                let cut = if out.len() == most {
                    None
                } else if from_end {
                    rest.char_indices()
                        .rfind(|&(_, c)| text::space(c))
                        .map(|(i, c)| (&rest[i + c.len_utf8()..], &rest[..i]))
                } else {
                    rest.char_indices().find(|&(_, c)| text::space(c)).map(|(i, _)| (&rest[..i], &rest[i..]))
                };
                let (part, after) = cut.unwrap_or((rest, ""));
                out.push(part);
                rest = text::trim(after, None, !from_end, from_end);
            }
            out
        }
    };
    if from_end {
        out.reverse();
    }
    Ok(out)
}

/// The lines of a text, with their ends if `keep`.
pub fn lines(s: &str, keep: bool) -> impl Iterator<Item = &str> {
    let mut rest = s;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let ends =
            |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
        let end = rest.find(ends).unwrap_or(rest.len());
        let after = rest[end..].strip_prefix("\r\n").or(rest[end..].strip_prefix(ends)).unwrap_or_default();
        let line = if keep { &rest[..rest.len() - after.len()] } else { &rest[..end] };
        rest = after;
        Some(line)
    })
}

/// The part of a string between two places, which count from the end if they are negative; and where it begins.
fn window(s: &str, start: Option<i64>, end: Option<i64>) -> (usize, &str) {
    let n = s.chars().count();
    let place = |i: i64| {
        let i = if i < 0 { i.saturating_add_unsigned(n as u64) } else { i };
        usize::try_from(i).unwrap_or(0).min(n)
    };
    let (start, end) = (start.map_or(0, place), end.map_or(n, place));
    let byte = |i: usize| s.char_indices().nth(i).map_or(s.len(), |(at, _)| at);
    (start, if start < end { &s[byte(start)..byte(end)] } else { "" })
}

fn dictionary(value: &Value, method: &str) -> Result<Option<Value>, Error> {
    let pair = |key: Value| Ok(Value::from(Tuple::from([key.clone(), value.get_item(&key)?])));
    let (name, items) = match method {
        "keys" => ("dict_keys", value.try_iter()?.collect()),
        "values" => ("dict_values", value.try_iter()?.map(|key| value.get_item(&key)).collect::<Result<_, Error>>()?),
        "items" => ("dict_items", value.try_iter()?.map(pair).collect::<Result<_, Error>>()?),
        "copy" => return Ok(Some(value.clone())),
        _ => return Ok(None),
    };
    Ok(Some(Value::from_object(View { name, items })))
}

/// What `items()` and the like give: it can be iterated, and has a text of its own.
#[derive(Debug)]
struct View {
    name: &'static str,
    items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items = text::repr(&Value::from(self.items.clone())).map_err(|_| fmt::Error)?;
        write!(f, "{}({items})", self.name)
    }
}

fn list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => Ok(Some(value.clone())),
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == *what);
            at.map(|at| Some(Value::from(at))).ok_or_else(|| failed("the item is not in the list"))
        }
        _ => Ok(None),
    }
}

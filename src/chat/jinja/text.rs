//! `str()` and `repr()` of Python.

use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::range::Range;

/// Deepest nesting of values that are written.
pub const MAX_DEPTH: usize = 200;

/// An error of a template's.
pub fn failed(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `str()` of a value.
pub fn string(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => repr(value),
        _ => Ok(value.to_string()),
    }
}

/// `repr()` of a value.
pub fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(failed("values are nested too deeply"));
    }
    match value.kind() {
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write(out, &key, depth + 1)?;
                out.push_str(": ");
                write(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Seq => {
            if let Some(range) = value.downcast_object_ref::<Range>() {
                out.push_str(&range.to_string());
                return Ok(());
            }
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if tuple { '(' } else { '[' });
            let mut n = 0;
            for item in value.try_iter()? {
                out.push_str(if n > 0 { ", " } else { "" });
                write(out, &item, depth + 1)?;
                n += 1;
            }
            out.push_str(if tuple && n == 1 { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
        }
        _ => write!(out, "{value}").map_err(|_| failed("a value has no text"))?,
    }
    Ok(())
}

/// A text in HTML.
pub fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

/// `repr()` of a string.
fn quote(out: &mut String, s: &str) {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in s.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote || c == '\\' => out.extend(['\\', c]),
            _ if printable(c) => out.push(c),
            _ => {
                // Writing to a string never fails.
                let _ = match u32::from(c) {
                    n @ ..0x100 => write!(out, "\\x{n:02x}"),
                    n @ ..0x10000 => write!(out, "\\u{n:04x}"),
                    n => write!(out, "\\U{n:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Whether a character is shown as it is, as `str.isprintable()` has it. Rust escapes marks that combine with the character before only where there is none.
pub fn printable(c: char) -> bool {
    let text = ['a', c].iter().collect::<String>();
    matches!(c, '"' | '\'' | '\\') || text.escape_debug().eq(text.chars())
}

/// `repr()` of a number that is no integer.
pub fn float(x: f64) -> String {
    if !x.is_finite() {
        return x.to_string().to_lowercase();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("this is how {:e} writes numbers");
    match exponent.parse::<i32>().expect("the exponent is an integer") {
        -4..16 => format!("{x:?}"),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// A text of which a number is to be made, as `int()` and `float()` read it: without white space around, and `_` between digits.
pub fn numeral(value: &Value) -> Value {
    let Some(text) = value.as_str() else { return value.clone() };
    let text = trim(text, None, true, true);
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_alphanumeric);
    let divides = |(i, c): &(usize, char)| *c == '_' && *i > 0 && digit(i - 1) && digit(i + 1);
    text.char_indices().filter(|c| !divides(c)).map(|(_, c)| c).collect::<String>().into()
}

/// Whitespace as `str.isspace()` has it.
pub fn space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.center()`.
pub fn center(s: &str, width: usize, fill: &str) -> String {
    let missing = width.saturating_sub(s.chars().count());
    let before = missing / 2 + (missing & width & 1);
    fill.repeat(before) + s + &fill.repeat(missing - before)
}

/// `str.strip()`, or one side of it.
pub fn trim<'a>(mut s: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let stripped = |c: char| chars.map_or_else(|| space(c), |chars| chars.contains(c));
    if start {
        s = s.trim_start_matches(stripped);
    }
    if end {
        s = s.trim_end_matches(stripped);
    }
    s
}

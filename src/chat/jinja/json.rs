//! `tojson`: Python's `json.dumps()` without escapes for HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, Value};

use super::args::Args;
use super::text::{self, MAX_DEPTH, failed};

struct Style {
    ensure_ascii: bool,
    /// What a level is indented by; `None`: everything is on one line.
    indent: Option<String>,
    /// Between items, and after keys.
    separators: [String; 2],
    sort_keys: bool,
}

/// The filter, with the arguments that transformers gives it.
pub fn tojson(value: &Value, placed: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Args { placed: &placed, named };
    let ensure_ascii = args.truth(0, "ensure_ascii")?;
    let indent = match args.value(1, "indent")? {
        Some(v) if v.as_str().is_some() => v.as_str().map(str::to_owned),
        Some(_) => Some(" ".repeat(args.width(1, "indent")?.unwrap_or(0))),
        None => None,
    };
    let separators = match args.value(2, "separators")? {
        Some(v) => {
            let both: Vec<Value> = v.try_iter()?.collect();
            let [item, key] = both.as_slice() else { return Err(failed("tojson: separators are two strings")) };
            [text::string(item)?, text::string(key)?]
        }
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let sort_keys = args.truth(3, "sort_keys")?;
    args.done(4)?;
    let mut out = String::new();
    Style { ensure_ascii, indent, separators, sort_keys }.write(&mut out, value, 0)?;
    Ok(out)
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(failed("tojson: values are nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                let n = keys.len();
                out.push('{');
                for (i, key) in keys.into_iter().enumerate() {
                    self.begin(out, i, depth + 1);
                    match key.kind() {
                        ValueKind::String => self.string(out, key.as_str().unwrap_or_default()),
                        ValueKind::Bool | ValueKind::None | ValueKind::Number => {
                            out.push('"');
                            self.write(out, &key, depth)?;
                            out.push('"');
                        }
                        kind => return Err(failed(format!("tojson: a key of a mapping is {kind}"))),
                    }
                    out.push_str(&self.separators[1]);
                    self.write(out, &value.get_item(&key)?, depth + 1)?;
                }
                self.end(out, n, depth);
                out.push('}');
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let mut n = 0;
                out.push('[');
                for item in value.try_iter()? {
                    self.begin(out, n, depth + 1);
                    self.write(out, &item, depth + 1)?;
                    n += 1;
                }
                self.end(out, n, depth);
                out.push(']');
            }
            kind => return Err(failed(format!("tojson: {kind} is nothing that JSON has"))),
        }
        Ok(())
    }

    /// What stands before an item.
    fn begin(&self, out: &mut String, i: usize, depth: usize) {
        if i > 0 {
            out.push_str(&self.separators[0]);
        }
        self.line(out, depth);
    }

    /// What stands after the last of `n` items.
    fn end(&self, out: &mut String, n: usize, depth: usize) {
        if n > 0 {
            self.line(out, depth);
        }
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn string(&self, out: &mut String, s: &str) {
        out.push('"');
        for c in s.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                _ if c < ' ' || self.ensure_ascii && c > '~' => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string never fails.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                _ => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    Ok(match f64::try_from(value.clone())? {
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        x if x.is_nan() => "NaN".to_owned(),
        x => text::float(x),
    })
}

//! Strings, numbers and JSON as Python has them. lm-evaluation-harness makes its contexts and its hashes by these.

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// What `str.isspace` takes for white space: that of Unicode, and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip`
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.lstrip`
pub fn strip_start(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// `str.rstrip`
pub fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `str.capitalize`: the first letter large and all others small. The few letters that have a third form for this (as the Croatian digraphs
/// do) get the large one.
pub fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    let mut large = first.to_uppercase();
    let mut out: String = large.next().into_iter().collect();
    out.extend(large.flat_map(char::to_lowercase));
    // All of the text is made small, as a sigma's form depends on what is before it.
    let n_first: usize = first.to_lowercase().map(char::len_utf8).sum();
    out.push_str(text.to_lowercase().get(n_first..).unwrap_or_default());
    out
}

/// `repr` of a float.
pub fn float(x: f64) -> String {
    let text = format!("{x:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, n) = exponent.strip_prefix('-').map_or(('+', exponent), |n| ('-', n));
            format!("{digits}e{sign}{n:0>2}")
        }
    }
}

/// `hashlib.sha256(text.encode()).hexdigest()`
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `json.dumps(value, indent=2, ensure_ascii=False)`
pub fn dumps(value: &Value) -> String {
    serde_json::to_string_pretty(&with_floats(value)).expect("a value without other keys than strings")
}

/// The value with its floats written as Python writes them: it reads them as numbers, and forgets how they were written.
fn with_floats(value: &Value) -> Value {
    match value {
        Value::Number(n) => {
            let text = n.to_string();
            let is_integer = text.bytes().all(|b| b.is_ascii_digit() || b == b'-') && text != "-0";
            match text.parse::<f64>() {
                _ if is_integer => value.clone(),
                Ok(_) if text == "-0" => Value::from(0),
                Ok(x) if x.is_finite() => Value::Number(Number::from_string_unchecked(float(x))),
                _ => value.clone(),
            }
        }
        Value::Array(values) => Value::Array(values.iter().map(with_floats).collect()),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(k, v)| (k.clone(), with_floats(v))).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_pythons() {
        assert_eq!((strip("\u{a0} a\x1f\n"), strip_end("a \u{2003}"), strip_start("\t a ")), ("a", "a", "a "));
        for (text, want) in [("hE IS", "He is"), ("ßa", "Ssa"), ("", ""), ("ﬁN", "Fin"), ("ΑΣ", "Ας"), ("İX", "İx")]
        {
            assert_eq!(capitalize(text), want);
        }
    }

    #[test]
    fn numbers_are_pythons() {
        for (x, want) in [(-12.5, "-12.5"), (1.0, "1.0"), (1e16, "1e+16"), (-1e-5, "-1e-05"), (1e-4, "0.0001")] {
            assert_eq!(float(x), want);
        }
        let doc: Value = serde_json::from_str(r#"{"b": 1.50, "a": [1E2, 3, -0], "c": {}}"#).unwrap();
        assert_eq!(dumps(&doc), "{\n  \"b\": 1.5,\n  \"a\": [\n    100.0,\n    3,\n    0\n  ],\n  \"c\": {}\n}");
        assert_eq!(sha256("a"), "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb");
    }
}

//! Templates as minijinja can read them.

use std::borrow::Cow;

/// The text of a template with what only jinja2 knows put into other words.
///
/// Line ends are line feeds. The tag `generation`, by which transformers marks what a model is trained on, only has a scope of its
/// own, as `with` has.
pub fn source(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.get(..2) {
            Some("{#") => rest.find("#}").map_or(rest.len(), |n| n + 2),
            Some("{{") => code(rest, "}}"),
            Some("{%") => {
                let n = code(rest, "%}");
                match tag(&rest[..n]) {
                    "raw" => raw(rest, n),
                    _ => n,
                }
            }
            _ => 1,
        };
        out.push_str(&scoped(&rest[..length]));
        rest = &rest[length..];
    }
    out + rest
}

/// The length of an expression or a tag; the text begins with it.
fn code(text: &str, end: &str) -> usize {
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match quote {
            Some(_) if c == '\\' => drop(chars.next()),
            Some(q) if c == q => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[i..].starts_with(end) => return i + end.len(),
            _ => {}
        }
    }
    text.len()
}

/// The name of a tag.
fn tag(code: &str) -> &str {
    let inner = code.trim_start_matches(['{', '%', '-', '+']).trim_start();
    inner.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// The length of what a tag `raw` begins, which is `n` long.
fn raw(text: &str, n: usize) -> usize {
    let end = text[n..].match_indices("{%").find(|(i, _)| tag(&text[n + i..]) == "endraw");
    end.map_or(text.len(), |(i, _)| n + i + 2)
}

/// A tag `generation` as a tag `with`, and any other code as it is.
fn scoped(code: &str) -> Cow<'_, str> {
    match tag(code) {
        "generation" if code.starts_with("{%") => code.replacen("generation", "with", 1).into(),
        "endgeneration" if code.starts_with("{%") => code.replacen("generation", "with", 1).into(),
        _ => code.into(),
    }
}

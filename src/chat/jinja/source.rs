//! Templates as minijinja can read them.

/// Words that end an operand and begin another.
const WORDS: &[&str] = &[
    "and",
    "call",
    "do",
    "elif",
    "else",
    "filter",
    "for",
    "from",
    "if",
    "import",
    "in",
    "is",
    "not",
    "or",
    "recursive",
    "set",
    "with",
];

/// The text of a template, with what only jinja2 knows put into other words.
///
/// Line ends are line feeds. The tag `generation`, by which transformers marks what a model is trained on, only has a scope of its
/// own, as `with` has. The operator `%`, which also formats strings, becomes the filter `modulo`.
pub fn source(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.get(..2) {
            Some("{#") => rest.find("#}").map_or(rest.len(), |n| n + 2),
            Some("{{") => length(rest, "}}"),
            Some("{%") => match length(rest, "%}") {
                n if tag(&rest[..n]) == "raw" => n + raw(&rest[n..]),
                n => n,
            },
            _ => 1,
        };
        let (code, after) = rest.split_at(length);
        match tag(code) {
            "generation" | "endgeneration" if code.starts_with("{%") => {
                out.push_str(&code.replacen("generation", "with", 1));
            }
            "raw" if code.starts_with("{%") => out.push_str(code),
            _ if code.starts_with("{{") || code.starts_with("{%") => rewrite(&mut out, code),
            _ => out.push_str(code),
        }
        rest = after;
    }
    out + rest
}

/// The length of the tag or the expression that a text begins with.
fn length(text: &str, end: &str) -> usize {
    let (mut quote, mut depth) = (None, 0_usize);
    let mut chars = text.char_indices().skip(2);
    while let Some((i, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => drop(chars.next()),
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, _) if depth == 0 && text[i..].starts_with(end) => return i + end.len(),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
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

/// The length of the text after a tag `raw`, up to the tag that ends it.
fn raw(text: &str) -> usize {
    let mut tags = text.match_indices("{%");
    tags.find(|(i, _)| tag(&text[*i..]) == "endraw").map_or(text.len(), |(i, _)| i)
}

/// A product that is being written: `a * b % c`.
struct Product {
    /// Where it begins.
    start: usize,
    /// The right side of a `%` is being written.
    open: bool,
}

/// Writes a tag or an expression.
fn rewrite(out: &mut String, code: &str) {
    // In each pair of brackets is another product. Left sides of `%` get brackets in the end, all at once.
    let (mut text, mut lefts) = (String::with_capacity(code.len()), Vec::new());
    let mut products = vec![Product { start: 0, open: false }];
    let (mut rest, mut before) = (code, "");
    while let Some(c) = rest.chars().next() {
        let two = rest.get(..2).unwrap_or_default();
        let length = match c {
            '"' | '\'' => quoted(rest),
            _ if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            _ if ["{{", "{%", "%}", "**", "//", "==", "!=", "<=", ">="].contains(&two) => 2,
            _ => c.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        let product = products.last_mut().expect("the outermost is never taken away");
        let operand = before.ends_with(|c: char| word(c) || "\"')]}".contains(c)) && !WORDS.contains(&before);
        let name = before == "." || before == "|";
        let ends = match token {
            "+" | "-" => operand,
            "~" | "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" | "{{" | "{%" => true,
            _ => WORDS.contains(&token) && !name,
        };
        let closes = ends || matches!(token, "%" | "*" | "/" | "//" | ")" | "]" | "}" | "%}");
        if closes && std::mem::take(&mut product.open) {
            text.push(')');
        }
        match token {
            "%" => {
                lefts.push(product.start);
                text.push_str(")|modulo(");
                product.open = true;
            }
            _ if c == '"' || c == '\'' => literal(&mut text, token),
            _ => text.push_str(token),
        }
        match token {
            _ if ends => product.start = text.len(),
            "(" | "[" | "{" => products.push(Product { start: text.len(), open: false }),
            ")" | "]" | "}" if products.len() > 1 => drop(products.pop()),
            _ => {}
        }
        if !c.is_whitespace() {
            before = token;
        }
        rest = after;
    }
    lefts.sort_unstable();
    let mut written = 0;
    for at in lefts {
        out.push_str(&text[written..at]);
        out.push('(');
        written = at;
    }
    out.push_str(&text[written..]);
}

fn word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the string that a text begins with.
fn quoted(text: &str) -> usize {
    let quote = text.chars().next();
    let mut chars = text.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            c if Some(c) == quote => return i + 1,
            _ => {}
        }
    }
    text.len()
}

/// Writes a string with the escapes that minijinja knows.
fn literal(out: &mut String, token: &str) {
    let mut chars = token.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let rest = chars.as_str();
        let wide = rest.strip_prefix('U').and_then(|hex| char::from_u32(u32::from_str_radix(hex.get(..8)?, 16).ok()?));
        match chars.next() {
            Some('a') => out.push_str("\\x07"),
            Some('v') => out.push_str("\\x0b"),
            Some('\n') => {}
            Some('U') if wide.is_some() => {
                out.extend(wide);
                chars = rest["U00000000".len()..].chars();
            }
            other => out.extend(['\\'].into_iter().chain(other)),
        }
    }
}

//! Values of flags: how they are read, and what is said of those that are refused.

use crate::chat::terminal::Tristate;
use crate::error::{Error, Result};

pub fn tristate(flag: &str, text: &str) -> Result<Tristate> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "1" | "true" | "yes" | "enabled" => Ok(Tristate::On),
        "off" | "0" | "false" | "no" | "disabled" => Ok(Tristate::Off),
        "auto" | "-1" => Ok(Tristate::Auto),
        _ => Err(not_one_of(flag, text, "on, off, auto")),
    }
}

pub fn out_of_range(flag: &str, got: impl std::fmt::Display, expected: &str) -> Error {
    Error::usage(format!("{flag} is {got}, expected {expected}"))
}

pub fn not_one_of(flag: &str, got: &str, expected: &str) -> Error {
    Error::usage(format!("{flag}: '{got}' is not one of: {expected}"))
}

/// The size of a batch or a context, in tokens.
pub fn size(flag: &str, n: i64) -> Result<u32> {
    u32::try_from(n).ok().filter(|&n| (1..=1 << 24).contains(&n)).ok_or_else(|| out_of_range(flag, n, "1 to 16777216"))
}

/// A number of bytes: `2G`, `500M`, `1024`.
pub fn bytes(flag: &str, text: &str) -> Result<u64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[number.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        "t" | "tb" | "tib" => Some(40),
        _ => None,
    };
    let read = || number.parse::<u64>().ok()?.checked_mul(1 << shift?);
    read().ok_or_else(|| out_of_range(flag, text, "a number of bytes such as 500M or 2G"))
}

/// llama.cpp's escapes: `\n \r \t \' \" \\ \xNN`; anything else stays as it is.
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (c, length) = match rest.as_bytes() {
            [b'n', ..] => ('\n', 1),
            [b'r', ..] => ('\r', 1),
            [b't', ..] => ('\t', 1),
            [b'\'', ..] => ('\'', 1),
            [b'"', ..] => ('"', 1),
            [b'\\', ..] => ('\\', 1),
            [b'x', a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                (char::from(u8::from_str_radix(&rest[1..3], 16).expect("two hexadecimal digits")), 3)
            }
            _ => ('\\', 0),
        };
        out.push(c);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// clap's message without its prefix, usage and line breaks.
pub fn one_line(message: &str) -> String {
    let message = message.split("\n\nUsage:").next().unwrap_or(message);
    let message = message.split("\n\nFor more").next().unwrap_or(message);
    let words: Vec<&str> = message.trim_start_matches("error: ").split_whitespace().collect();
    words.join(" ")
}

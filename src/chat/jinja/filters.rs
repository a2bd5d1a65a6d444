//! Filters of jinja2 that minijinja lacks.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, Value};

use super::args::Args;
use super::text::{self, failed, space};

/// Lines of at most so many characters, broken at white space, after hyphens, and in long words: `textwrap.wrap()` of each line.
pub fn wordwrap(value: &Value, placed: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Args { placed: &placed, named };
    let flag = |i: usize, name: &str| Ok::<_, Error>(args.given(i, name)?.is_none_or(|v| v.is_true()));
    let width = args.width(0, "width")?.unwrap_or(79);
    let (breaks, hyphens) = (flag(1, "break_long_words")?, flag(3, "break_on_hyphens")?);
    let end = args.optional_string(2, "wrapstring")?.unwrap_or_else(|| "\n".to_owned());
    if width == 0 {
        return Err(failed("wordwrap: no width"));
    }
    let text = text::string(value)?;
    let wrapped = super::methods::lines(&text, false).map(|line| wrap(line, width, breaks, hyphens).join(&end));
    Ok(wrapped.collect::<Vec<_>>().join(&end))
}

/// A line in several.
fn wrap(line: &str, width: usize, breaks: bool, hyphens: bool) -> Vec<String> {
    let mut chunks: Vec<Vec<char>> = chunks(line, hyphens);
    chunks.reverse();
    let is_space = |chunk: &[char]| chunk.iter().all(|&c| space(c));
    let mut lines: Vec<String> = Vec::new();
    while !chunks.is_empty() {
        let (mut taken, mut length): (Vec<Vec<char>>, usize) = (Vec::new(), 0);
        if !lines.is_empty() {
            chunks.pop_if(|c| is_space(c));
        }
        while let Some(chunk) = chunks.pop_if(|c| length + c.len() <= width) {
            length += chunk.len();
            taken.push(chunk);
        }
        // A word that is longer than a line fills what is left of this one, or has a line of its own.
        if let Some(long) = chunks.last_mut().filter(|c| c.len() > width) {
            if breaks {
                let mut room = width - length;
                // Where there is a hyphen, it is broken there.
                let hyphen = long[..room].iter().rposition(|&c| c == '-').filter(|&at| hyphens && at > 0);
                if let Some(at) = hyphen.filter(|&at| long[..at].iter().any(|&c| c != '-')) {
                    room = at + 1;
                }
                let rest = long.split_off(room);
                taken.push(std::mem::replace(long, rest));
            } else if taken.is_empty() {
                taken.extend(chunks.pop());
            }
        }
        taken.pop_if(|c| is_space(c));
        if !taken.is_empty() {
            lines.push(taken.concat().into_iter().collect());
        }
    }
    lines
}

/// White space, words, and parts of words that a line may be broken after.
fn chunks(line: &str, hyphens: bool) -> Vec<Vec<char>> {
    let chars: Vec<char> = line.chars().collect();
    let at = |i: usize, is: &dyn Fn(char) -> bool| chars.get(i).is_some_and(|&c| is(c));
    let before = |i: usize, n: usize, is: &dyn Fn(char) -> bool| i >= n && is(chars[i - n]);
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let letter = |c: char| word(c) && !c.is_numeric();
    let in_word = |c: char| word(c) || "!\"'&.,?".contains(c);
    let dash = |c: char| c == '-';
    // Whether a chunk may end before the character `i`.
    let ends = |i: usize| {
        if space(chars[i - 1]) != space(chars[i]) {
            return true;
        }
        if !hyphens || space(chars[i]) {
            return false;
        }
        let run = chars[i..].iter().take_while(|&&c| dash(c)).count();
        let back = chars[..i].iter().rev().take_while(|&&c| dash(c)).count();
        let dashes = |first: usize, n: usize| n >= 2 && before(first, 1, &in_word) && at(first + n, &word);
        if back == 0 && dashes(i, run) || run == 0 && dashes(i - back, back) {
            return true;
        }
        let hyphenated =
            before(i, 2, &letter) && (before(i, 3, &letter) || before(i, 3, &dash) && before(i, 4, &letter));
        let goes_on = at(i, &letter) && (at(i + 1, &letter) || at(i + 1, &dash) && at(i + 2, &letter));
        dash(chars[i - 1]) && hyphenated && goes_on
    };
    let mut chunks: Vec<Vec<char>> = Vec::new();
    for (i, &c) in chars.iter().enumerate() {
        match chunks.last_mut() {
            Some(last) if !ends(i) => last.push(c),
            _ => chunks.push(vec![c]),
        }
    }
    chunks
}

/// A text as part of an address; of a dictionary, or of pairs, what comes after the `?`.
pub fn urlencode(value: &Value) -> Result<String, Error> {
    let quote = |value: &Value, is_query: bool| {
        let mut out = String::new();
        for b in text::string(value)?.bytes() {
            match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(b.into()),
                b'/' if !is_query => out.push('/'),
                b' ' if is_query => out.push('+'),
                b => out.push_str(&format!("%{b:02X}")),
            }
        }
        Ok::<_, Error>(out)
    };
    let pair =
        |(key, value): (Value, Value)| Ok::<_, Error>(format!("{}={}", quote(&key, true)?, quote(&value, true)?));
    let pairs: Result<Vec<String>, Error> = match value.kind() {
        ValueKind::Map => value.try_iter()?.map(|key| value.get_item(&key).and_then(|v| pair((key, v)))).collect(),
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.map(|item| of_two(&item).and_then(pair)).collect(),
        _ => return quote(value, false),
    };
    Ok(pairs?.join("&"))
}

/// The two items of a pair.
pub fn of_two(pair: &Value) -> Result<(Value, Value), Error> {
    let items: Vec<Value> = pair.try_iter()?.collect();
    <[Value; 2]>::try_from(items).map(|[a, b]| (a, b)).map_err(|_| failed("a pair has two items"))
}

/// The items of a dictionary as attributes of a tag, without those that are none.
pub fn xmlattr(value: &Value, placed: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Args { placed: &placed, named };
    let is_apart = args.given(0, "autospace")?.is_none_or(|v| v.is_true());
    if value.kind() != ValueKind::Map {
        return Err(failed("xmlattr wants a dictionary"));
    }
    let mut out: Vec<String> = Vec::new();
    for key in value.try_iter()? {
        let of_key = value.get_item(&key)?;
        if of_key.is_none() || of_key.is_undefined() {
            continue;
        }
        let key = text::string(&key)?;
        if key.contains(|c: char| c.is_ascii_whitespace() || "/>=".contains(c)) {
            return Err(failed(format!("xmlattr: '{key}' is no name")));
        }
        out.push(format!("{}=\"{}\"", text::escape(&key), text::escape(&text::string(&of_key)?)));
    }
    let text = out.join(" ");
    Ok(if is_apart && !text.is_empty() { format!(" {text}") } else { text })
}

//! Blocks of code, in the colours of their language.

use std::sync::OnceLock;

use crossterm::style::{Color, ContentStyle, Stylize};
use syntect::parsing::{ParseState, Scope, ScopeStack, SyntaxSet};
use unicode_width::UnicodeWidthChar;

use super::wrap::Wrap;

/// Longest line of code that is coloured.
const MAX_CODE: usize = 2000;

/// A block of code.
#[derive(Debug)]
pub struct Fence {
    pub mark: char,
    pub length: usize,
    /// The language's grammar, and where in it the code is
    parser: Option<(ParseState, ScopeStack)>,
    /// The line so far
    pub line: String,
}

impl Fence {
    pub fn new(mark: char, length: usize, info: &str) -> Fence {
        let language = info.split_whitespace().next().unwrap_or_default();
        let syntax = grammars().find_syntax_by_token(language);
        let parser = syntax.map(|s| (ParseState::new(s), ScopeStack::new()));
        Fence { mark, length, parser, line: String::new() }
    }

    pub fn push(&mut self, wrap: &mut Wrap, text: &str) {
        // The width of a tab depends on the terminal, and the width of the line must be known.
        let text = text.replace('\t', "    ");
        self.line.push_str(&text);
        // Only on a terminal can the line be written over in colours later; elsewhere it is written when it is whole.
        if self.parser.is_none() || wrap.width.is_some() {
            wrap.write(ContentStyle::new(), &text);
        }
    }

    /// Colours the line that is whole now.
    pub fn end_line(&mut self, wrap: &mut Wrap, end: &str) {
        let line = std::mem::take(&mut self.line);
        if let Some((state, stack)) = self.parser.as_mut().filter(|_| !line.is_empty()) {
            let runs = (line.len() <= MAX_CODE).then(|| colours(state, stack, &line)).flatten();
            let runs = runs.unwrap_or_else(|| vec![(ContentStyle::new(), line.clone())]);
            if let Some(width) = wrap.width {
                // The coloured line is written over the plain one.
                let rows = rows_below(&line, width);
                wrap.out.push('\r');
                if rows > 0 {
                    wrap.out.push_str(&format!("\x1b[{rows}A"));
                }
            }
            for (style, text) in runs {
                wrap.write(style, &text);
            }
        }
        wrap.out.push_str(end);
        wrap.column = 0;
    }
}

/// Rows that a text takes below its first one on a terminal. A cursor that is behind the last column has not begun a new row.
fn rows_below(text: &str, width: usize) -> usize {
    let (mut rows, mut column) = (0, 0);
    for n in text.chars().map(|c| c.width().unwrap_or(0)) {
        // A wide character that would begin in the last column goes to the next row.
        if column + n > width && column > 0 {
            (rows, column) = (rows + 1, 0);
        }
        column += n;
    }
    rows
}

fn grammars() -> &'static SyntaxSet {
    static GRAMMARS: OnceLock<SyntaxSet> = OnceLock::new();
    GRAMMARS.get_or_init(SyntaxSet::load_defaults_newlines)
}

/// A line of code in the colours of its scopes; `None` if the grammar fails.
fn colours(state: &mut ParseState, stack: &mut ScopeStack, line: &str) -> Option<Vec<(ContentStyle, String)>> {
    let text = format!("{line}\n");
    let operations = state.parse_line(&text, grammars()).ok()?;
    let mut runs = Vec::new();
    let mut from = 0;
    for (at, operation) in operations {
        let at = at.min(line.len());
        if at > from {
            runs.push((style_of(stack), line[from..at].to_owned()));
            from = at;
        }
        stack.apply(&operation).ok()?;
    }
    runs.push((style_of(stack), line[from..].to_owned()));
    Some(runs)
}

fn style_of(stack: &ScopeStack) -> ContentStyle {
    static SCOPES: OnceLock<Vec<(Scope, Color)>> = OnceLock::new();
    let scopes = SCOPES.get_or_init(|| {
        let named = [
            ("comment", Color::DarkGrey),
            ("string", Color::Green),
            ("constant", Color::Cyan),
            ("keyword", Color::Magenta),
            ("storage", Color::Magenta),
            ("entity.name", Color::Blue),
            ("support", Color::Blue),
        ];
        named.iter().map(|(name, color)| (Scope::new(name).expect("a valid scope"), *color)).collect()
    });
    let of = |scope: &Scope| scopes.iter().find(|(s, _)| s.is_prefix_of(*scope)).map(|s| s.1);
    match stack.scopes.iter().rev().find_map(of) {
        Some(color) => ContentStyle::new().with(color),
        None => ContentStyle::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_as_terminals_do() {
        for (text, width, rows) in
            [("", 5, 0), ("abcde", 5, 0), ("abcdef", 5, 1), ("\u{4f60}\u{597d}\u{4e16}", 5, 1), ("ab", 1, 1)]
        {
            assert_eq!(rows_below(text, width), rows, "{text}");
        }
    }
}

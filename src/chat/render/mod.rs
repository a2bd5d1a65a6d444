//! How an answer looks on a terminal: words stay whole at the right edge, light Markdown is made visible, code has the colours of its
//! language, reasoning is dimmed. Text comes in pieces and leaves as soon as it is known how it looks; elsewhere than on a terminal nothing
//! is changed.

mod fence;
mod wrap;

use crossterm::style::{Attribute, Color, ContentStyle, Stylize};

use crate::error::escape;
use crate::generate::{Part, Thoughts};
use fence::Fence;
use wrap::Wrap;

/// What is done to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Control characters are left as they are, for the terminal to obey.
    pub raw: bool,
    /// Markdown is rendered.
    pub markdown: bool,
    /// Columns of the terminal; `None`: words are not wrapped, and nothing that was written is written over.
    pub width: Option<usize>,
    /// What becomes of what the model thinks.
    pub reasoning: Reasoning,
}

/// What becomes of what a model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasoning {
    /// It is shown as the answer is.
    Show,
    /// It is dimmed, where Markdown is rendered.
    Dim,
    /// It is left out, with its marks.
    Hide,
}

impl Look {
    /// Text as it is: for pipes and files.
    pub fn plain(reasoning: Reasoning) -> Look {
        Look { raw: true, markdown: false, width: None, reasoning }
    }
}

/// An answer on its way to the terminal.
#[derive(Debug)]
pub struct Render {
    look: Look,
    /// What may still turn out to be a mark.
    held: String,
    /// A line begins with what comes next.
    fresh: bool,
    thoughts: Thoughts,
    /// Thoughts were left out, and empty lines behind them go with them.
    hidden: bool,
    heading: bool,
    fence: Option<Fence>,
    wrap: Wrap,
}

/// Longest span that is waited for to be closed.
const MAX_SPAN: usize = 400;

impl Render {
    /// The beginning of an answer. `reasoning`: its prompt has begun it already, and this mark ends it.
    pub fn new(look: Look, reasoning: Option<&'static str>) -> Render {
        Render {
            look,
            held: String::new(),
            fresh: true,
            thoughts: Thoughts::new(reasoning),
            hidden: false,
            heading: false,
            fence: None,
            wrap: Wrap::default(),
        }
    }

    /// The part of the answer that can be shown now that this piece has come. `width`: columns that the terminal has now.
    pub fn push(&mut self, text: &str, width: Option<usize>) -> String {
        self.wrap.width = self.look.width.and(width);
        let parts = self.thoughts.push(text);
        self.parts(parts);
        self.wrap.settle(false);
        std::mem::take(&mut self.wrap.out)
    }

    /// What was held back when no more comes.
    pub fn finish(&mut self) -> String {
        let parts = self.thoughts.finish();
        self.parts(parts);
        self.parse(true);
        self.wrap.settle(true);
        self.fence = None;
        std::mem::take(&mut self.wrap.out)
    }

    fn parts(&mut self, parts: Vec<(Part, String)>) {
        for (part, text) in parts {
            match (part, self.look.reasoning) {
                (Part::Mark | Part::Thought, Reasoning::Hide) => self.hidden = true,
                (Part::Mark | Part::Thought, Reasoning::Dim) if self.look.markdown && !self.look.raw => {
                    self.wrap.push(ContentStyle::new().attribute(Attribute::Dim), &visible(&text));
                }
                _ => {
                    let text = if self.hidden { text.trim_start() } else { &text };
                    self.hidden &= text.is_empty();
                    if self.look.raw {
                        self.wrap.out.push_str(text);
                    } else {
                        self.held.push_str(&visible(text));
                        self.parse(false);
                    }
                }
            }
        }
    }

    /// Takes from `held` what is decided; `last` if all of it is.
    fn parse(&mut self, last: bool) {
        if !self.look.markdown {
            let text = std::mem::take(&mut self.held);
            return self.wrap.push(ContentStyle::new(), &text);
        }
        while !self.held.is_empty() {
            let used = if self.fence.is_some() {
                self.code(last)
            } else if self.fresh {
                self.line_start(last)
            } else {
                self.inline(last)
            };
            match used {
                Some(n) => drop(self.held.drain(..n)),
                None => return,
            }
        }
        if let Some(fence) = self.fence.as_mut().filter(|_| last) {
            fence.end_line(&mut self.wrap, "");
        }
    }

    /// Marks that only count at the beginning of a line.
    fn line_start(&mut self, last: bool) -> Option<usize> {
        let (line, whole) = match self.held.split_once('\n') {
            Some((line, _)) => (line, true),
            None => (self.held.as_str(), last),
        };
        let text = line.trim_start_matches(' ');
        let indent = line.len() - text.len();
        let first = text.chars().next();
        let run = first.map_or(0, |c| text.chars().take_while(|&d| d == c).count());
        // What follows the run decides, unless there cannot be more.
        let open = !whole && run == text.chars().count();
        match first {
            None if !whole => return None,
            Some(c @ ('`' | '~')) => {
                if open {
                    return None;
                }
                let info = &text[run..];
                if run >= 3 && !(c == '`' && info.contains('`')) {
                    if !whole {
                        return None;
                    }
                    self.wrap.push(ContentStyle::new().attribute(Attribute::Dim), line);
                    self.fence = Some(Fence::new(c, run, info));
                    // With its line break, which begins the code.
                    let end = line.len().saturating_add(1).min(self.held.len());
                    let rest = self.held[line.len()..end].to_owned();
                    self.wrap.push(ContentStyle::new(), &rest);
                    return Some(end);
                }
            }
            Some('#') if open && run <= 6 => return None,
            Some('#') if run <= 6 && text[run..].starts_with(' ') => {
                self.heading = true;
                self.fresh = false;
                return Some(indent + run + 1);
            }
            Some('-' | '*' | '+') if open && run == 1 => return None,
            Some('-' | '*' | '+') if text[1..].starts_with(' ') => {
                self.wrap.push(ContentStyle::new(), &format!("{}\u{2022} ", " ".repeat(indent)));
                self.wrap.indent = indent + 2;
                self.fresh = false;
                return Some(indent + 2);
            }
            Some('0'..='9') => {
                let digits = text.bytes().take_while(u8::is_ascii_digit).count();
                let after = &text[digits..];
                if !whole && digits <= 3 && (after.is_empty() || after == "." || after == ")") {
                    return None;
                }
                if digits <= 3 && (after.starts_with(". ") || after.starts_with(") ")) {
                    self.wrap.indent = indent + digits + 2;
                }
            }
            _ => {}
        }
        self.fresh = false;
        Some(0)
    }

    /// Text within a line, up to a span that is not closed yet.
    fn inline(&mut self, last: bool) -> Option<usize> {
        let style = if self.heading { ContentStyle::new().attribute(Attribute::Bold) } else { ContentStyle::new() };
        let end = self.held.find('\n');
        let (line, whole) = (&self.held[..end.unwrap_or(self.held.len())], last || end.is_some());
        let used = spans(&mut self.wrap, style, line, whole);
        if used == line.len() && end.is_some() {
            self.wrap.push(ContentStyle::new(), "\n");
            self.wrap.indent = 0;
            (self.fresh, self.heading) = (true, false);
            return Some(used + 1);
        }
        (used > 0).then_some(used)
    }

    /// Code as it comes; its colours when a line is whole.
    fn code(&mut self, last: bool) -> Option<usize> {
        let fence = self.fence.as_mut().expect("called inside a fence");
        let end = self.held.find('\n');
        let line = &self.held[..end.unwrap_or(self.held.len())];
        if fence.line.is_empty() {
            let text = line.trim();
            let closing = text.chars().all(|c| c == fence.mark);
            let closes = closing && text.len() >= fence.length;
            if closing && end.is_none() && !last {
                return None;
            }
            if closes {
                self.wrap.push(ContentStyle::new().attribute(Attribute::Dim), line);
                (self.fence, self.fresh) = (None, false);
                return Some(line.len());
            }
        }
        let n = line.len();
        fence.push(&mut self.wrap, line);
        if end.is_some() {
            fence.end_line(&mut self.wrap, "\n");
            return Some(n + 1);
        }
        (n > 0).then_some(n)
    }
}

/// Writes a part of a line with its spans; how much of it, as what is not closed may be yet unless `whole`.
fn spans(wrap: &mut Wrap, style: ContentStyle, line: &str, whole: bool) -> usize {
    let mut at = 0;
    loop {
        let rest = &line[at..];
        let Some(mark) = rest.find(['`', '*']) else {
            wrap.push(style, rest);
            return line.len();
        };
        wrap.push(style, &rest[..mark]);
        at += mark;
        let rest = &line[at..];
        let c = rest.chars().next().expect("a mark was found");
        let run = rest.chars().take_while(|&d| d == c).count();
        let (inner, open) = (&rest[run..], run == rest.len());
        let waits = !whole && rest.len() < MAX_SPAN;
        let marks = &rest[..run];
        let closed = match c {
            _ if open => None,
            // Where the text ends so far, more of the mark may come.
            '`' => inner
                .match_indices(marks)
                .map(|m| m.0)
                .find(|&i| !inner[i + run..].starts_with('`') && !inner[..i].ends_with('`'))
                .filter(|&i| whole || i + run < inner.len()),
            // What is set in bold begins and ends with no space.
            _ if run == 2 && !inner.starts_with(' ') => {
                inner.match_indices(marks).map(|m| m.0).find(|&i| i > 0 && !inner[..i].ends_with(' '))
            }
            _ => None,
        };
        match closed {
            Some(n) if c == '`' => {
                wrap.push(style.with(Color::Cyan), &inner[..n]);
                at += 2 * run + n;
            }
            Some(n) => {
                let _ = spans(wrap, style.attribute(Attribute::Bold), &inner[..n], true);
                at += 2 * run + n;
            }
            None if waits && (open || c == '`' || (run == 2 && !inner.starts_with(' '))) => return at,
            None => {
                wrap.push(style, marks);
                at += run;
            }
        }
    }
}

/// Text whose control characters are shown instead of obeyed.
fn visible(text: &str) -> String {
    let parts = text.split_inclusive(['\n', '\t']).map(|part| match part.strip_suffix(['\n', '\t']) {
        Some(line) => escape(line) + &part[line.len()..],
        None => escape(part),
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::REASONING;

    /// What comes of a text that comes in pieces of `step` characters.
    fn shown(text: &str, look: Look, step: usize) -> String {
        let mut render = Render::new(look, None);
        let mut out = String::new();
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(step) {
            out.push_str(&render.push(&piece.iter().collect::<String>(), look.width));
        }
        out + &render.finish()
    }

    /// The same without colours, whatever the pieces are.
    #[track_caller]
    fn check(text: &str, look: Look, want: &str) {
        crossterm::style::force_color_output(true);
        for step in [1, 2, 3, 7, 1000] {
            // Only where a style begins.
            let ends = shown(text, look, step).replace("\x1b[39m", "\x1b[0m").replace("\x1b[0m\x1b[0m", "\x1b[0m");
            let joined = ["1", "2", "38;5;14"].iter().fold(ends, |t, s| t.replace(&format!("\x1b[0m\x1b[{s}m"), ""));
            let got = joined.replace("\x1b[0m", "");
            assert_eq!(got, want, "in pieces of {step}");
        }
    }

    const WRAPPED: Look = Look { raw: false, markdown: false, width: Some(10), reasoning: Reasoning::Dim };
    const MARKED: Look = Look { raw: false, markdown: true, width: None, reasoning: Reasoning::Dim };

    #[test]
    fn words_stay_whole() {
        check("one two three four\nfive", WRAPPED, "one two\nthree four\nfive");
        check("a  b\n\n  c d ", WRAPPED, "a  b\n\n  c d ");
        check("abcdefghijklmnop qr", WRAPPED, "abcdefghijklmnop qr");
        // Between wide characters a line may be broken anywhere.
        check(
            "\u{4f60}\u{597d}\u{4e16}\u{754c}\u{4f60}\u{597d}",
            WRAPPED,
            "\u{4f60}\u{597d}\u{4e16}\u{754c}\u{4f60}\n\u{597d}",
        );
        // Combining characters have no width.
        check(
            "e\u{301}e\u{301}e\u{301}e\u{301}e\u{301} abcd",
            WRAPPED,
            "e\u{301}e\u{301}e\u{301}e\u{301}e\u{301} abcd",
        );
        check("a\u{1b}[2Jb", WRAPPED, "a\\x1b[2Jb");
    }

    #[test]
    fn marks_become_styles() {
        let bold = |t: &str| format!("\x1b[1m{t}");
        check("a **b c** d", MARKED, &format!("a {} d", bold("b c")));
        check("# Head\ntext", MARKED, &format!("{}\ntext", bold("Head")));
        check("- one\n* two\n  + three\n1. four", MARKED, "\u{2022} one\n\u{2022} two\n  \u{2022} three\n1. four");
        check("see `x * y` there", MARKED, "see \x1b[38;5;14mx * y there");
        check("`x``y` z", MARKED, "\x1b[38;5;14mx``y z");
        for [open, close] in REASONING {
            check(
                &format!("{open}\nhm **x**{close}Yes **b**"),
                MARKED,
                &format!("\x1b[2m{open}\nhm **x**{close}Yes \x1b[1mb"),
            );
        }
    }

    #[test]
    fn thoughts_are_shown_or_left_out() {
        for [open, close] in REASONING {
            let text = format!("{open}\nhm **x**{close}\n\nYes\n\nno");
            let hide = |look: Look| Look { reasoning: Reasoning::Hide, ..look };
            check(&text, hide(MARKED), "Yes\n\nno");
            check(&text, hide(WRAPPED), "Yes\n\nno");
            check(&text, Look::plain(Reasoning::Hide), "Yes\n\nno");
            check(&text, Look::plain(Reasoning::Show), &text);
        }
        check("\n Yes <think>", Look::plain(Reasoning::Hide), "\n Yes <think>");
    }

    #[test]
    fn what_is_no_mark_stays() {
        for text in [
            "2 * 3 * 4",
            "**kwargs and *args",
            "a ** b ** c",
            "#hash",
            "-x",
            "12",
            "1.5",
            "`open",
            "a_b __init__",
            "####### x",
            "*",
            "<thin",
        ] {
            check(text, MARKED, text);
        }
    }

    #[test]
    fn items_go_on_under_their_text() {
        let look = Look { markdown: true, ..WRAPPED };
        check("- one two three\nfour", look, "\u{2022} one two\n  three\nfour");
        check("10. one two", look, "10. one\n    two");
    }

    #[test]
    fn code_has_colours_and_keeps_its_text() {
        let text = "```rust\nfn main() { // **no** bold\n    let x = \"s\";\n}\n```\nafter **b**";
        let got = shown(text, MARKED, 3);
        assert!(got.contains("\x1b[38;5;13mfn") || got.contains("\x1b[38;5;5mfn"), "{got:?}");
        let terminal = shown(text, Look { width: Some(20), ..MARKED }, 3);
        assert!(terminal.contains("\x1b[1A"), "the comment's line has two rows: {terminal:?}");
        let mut parser = vt100::Parser::new(12.try_into().unwrap(), 20.try_into().unwrap(), 0);
        parser.process(terminal.replace('\n', "\r\n").as_bytes());
        let screen = parser.screen().contents();
        assert_eq!(screen, "```rust\nfn main() { // **no** bold\n    let x = \"s\";\n}\n```\nafter b");
    }

    #[test]
    fn plain_is_plain() {
        let text = "a \x1b[1m **b**\r\n\t`c` ```";
        assert_eq!(shown(text, Look::plain(Reasoning::Hide), 2), text);
    }
}

//! Words that stay whole at the right edge of the terminal.

use crossterm::style::ContentStyle;
use unicode_linebreak::linebreaks;
use unicode_width::UnicodeWidthStr;

/// Lines no wider than the terminal, broken between words.
#[derive(Debug, Default)]
pub struct Wrap {
    pub width: Option<usize>,
    /// Column that a line goes on in when it was broken
    pub indent: usize,
    pub column: usize,
    /// A word that may go on, in runs of one style
    word: Vec<(ContentStyle, String)>,
    /// Spaces after the last word, which vanish where a line is broken
    spaces: Vec<(ContentStyle, String)>,
    pub out: String,
}

/// A word that is longer is no word.
const MAX_WORD: usize = 4096;

impl Wrap {
    pub fn push(&mut self, style: ContentStyle, text: &str) {
        if self.width.is_none() {
            self.settle(true);
            return self.write(style, text);
        }
        if text.is_empty() {
            return;
        }
        match self.word.last_mut() {
            Some((last, word)) if *last == style => word.push_str(text),
            _ => self.word.push((style, text.to_owned())),
        }
        // Only a break makes room for the next word.
        if text.contains('\n') || self.word.iter().map(|w| w.1.len()).sum::<usize>() > MAX_WORD {
            self.settle(false);
        }
    }

    /// Writes the words that are whole; `last` if all are.
    pub fn settle(&mut self, last: bool) {
        let text: String = self.word.iter().map(|w| w.1.as_str()).collect();
        let mut from = 0;
        for (at, _) in linebreaks(&text) {
            if at == text.len() && !last && !text.ends_with('\n') && text.len() - from <= MAX_WORD {
                break;
            }
            self.place(&text[from..at]);
            from = at;
        }
        if from == text.len() && last {
            self.place("");
            for (style, spaces) in std::mem::take(&mut self.spaces) {
                self.write(style, &spaces);
            }
        }
    }

    /// Takes a word with the spaces after it from the runs, and writes it in this line or the next.
    fn place(&mut self, text: &str) {
        let line_end = text.ends_with('\n');
        let word = text.trim_end_matches(['\n', ' ', '\t']);
        let mut runs = self.take(word.len());
        let spaces = self.take(text.len() - word.len());
        let before: usize = self.spaces.iter().map(|s| s.1.width()).sum();
        if !word.is_empty() {
            let width = word.width();
            let fits = self.width.is_none_or(|w| self.column + before + width <= w);
            if fits || self.column <= self.indent {
                let spaces = std::mem::take(&mut self.spaces);
                runs.splice(0..0, spaces);
            } else {
                self.spaces.clear();
                self.out.push('\n');
                self.out.push_str(&" ".repeat(self.indent));
                self.column = self.indent;
            }
            for (style, text) in runs {
                self.write(style, &text);
            }
        }
        if line_end {
            self.spaces.clear();
            self.out.push('\n');
            self.column = 0;
        } else {
            self.spaces.extend(spaces.into_iter().map(|(style, s)| (style, s.replace('\t', "    "))));
        }
    }

    /// The next `n` bytes of the runs.
    fn take(&mut self, mut n: usize) -> Vec<(ContentStyle, String)> {
        let mut taken = Vec::new();
        while n > 0 {
            let (style, text) = &mut self.word[0];
            if text.len() <= n {
                n -= text.len();
                taken.push(self.word.remove(0));
            } else {
                let rest = text.split_off(n);
                taken.push((*style, std::mem::replace(text, rest)));
                n = 0;
            }
        }
        taken
    }

    pub fn write(&mut self, style: ContentStyle, text: &str) {
        if text.is_empty() {
            return;
        }
        match style == ContentStyle::new() {
            true => self.out.push_str(text),
            false => self.out.push_str(&style.apply(text).to_string()),
        }
        self.column += text.width();
        if let Some(width) = self.width.filter(|&w| w > 0 && self.column > w) {
            // The terminal has broken a word that is wider than itself.
            self.column = (self.column - 1) % width + 1;
        }
    }
}

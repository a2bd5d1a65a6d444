//! The rules that end an answer.

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it.
    EndOfText,
    /// A text of `--stop` came.
    StopString(String),
    /// `-n` tokens were generated.
    Limit,
    /// The context is full.
    ContextFull,
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

impl StopReason {
    /// Name in JSON and in the statistics.
    pub fn name(&self) -> &'static str {
        match self {
            StopReason::EndOfText => "end_of_text",
            StopReason::StopString(_) => "stop_string",
            StopReason::Limit => "limit",
            StopReason::ContextFull => "context_full",
            StopReason::Interrupted => "interrupted",
        }
    }
}

/// How many tokens an answer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Predict {
    /// `-n N`
    AtMost(u64),
    /// `-n -1`: until the model ends (or the context is full)
    Unlimited,
    /// `-n -2`: until the context is full
    FillContext,
}

/// When an answer ends.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Number of tokens.
    pub predict: Predict,
    /// Texts that end it and are not part of it.
    pub stop: Vec<String>,
    /// Special tokens are shown.
    pub special: bool,
}

/// Texts that end an answer, looked for in a text that comes in pieces.
#[derive(Debug)]
pub(super) struct StopStrings {
    stop: Vec<String>,
    /// Text that may turn out to be the beginning of one of them
    held: String,
}

impl StopStrings {
    pub fn new(stop: Vec<String>) -> StopStrings {
        StopStrings { stop, held: String::new() }
    }

    /// The text that can be shown after this piece too, and the stop string that comes after it, if one does.
    pub fn push(&mut self, piece: &str) -> (String, Option<String>) {
        self.held.push_str(piece);
        let found = self.stop.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s))).min_by_key(|f| f.0);
        if let Some((at, stop)) = found {
            let stop = stop.clone();
            let mut text = self.finish();
            text.truncate(at);
            return (text, Some(stop));
        }
        let hold = self.stop.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// The text that was held back, when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.as_bytes()[text.len() - n..] == stop.as_bytes()[..n])
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_found_across_pieces() {
        let mut s = StopStrings::new(vec!["<end>".into(), "dis".into()]);
        let none = |text: &str| (text.to_owned(), None);
        assert_eq!(s.push("ab"), none("ab"));
        assert_eq!(s.push("c<e"), none("c"));
        assert_eq!(s.push("n<en"), none("<en"));
        assert_eq!(s.push("d> dis"), (String::new(), Some("<end>".into())));
        assert_eq!(s.push("x dis <end>"), ("x ".into(), Some("dis".into())));
        assert_eq!(s.push("y<"), none("y"));
        assert_eq!(s.finish(), "<");
    }

    #[test]
    fn a_beginning_of_a_stop_string_is_an_overlap() {
        assert_eq!(overlap("hello\nUs", "\nUser:"), 3);
        assert_eq!(overlap("hello", "\nUser:"), 0);
        assert_eq!(overlap("\nUser:", "\nUser:"), 0);
        assert_eq!(overlap("x\u{e9}", "\u{e9}\u{e8}"), 2);
    }
}

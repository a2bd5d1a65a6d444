//! What a model thinks before it answers, told from its answer by the marks around it.

use crate::tokenizer::REASONING;

/// What a part of an answer's text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A mark around what the model thinks
    Mark,
    /// What it thinks
    Thought,
    /// What it answers
    Answer,
}

/// What gpt-oss begins an answer with that it did not think about.
const NO_THOUGHT: &str = "<|channel|>final<|message|>";

/// Tells the parts of a text that comes in pieces.
#[derive(Debug)]
pub struct Thoughts {
    /// What may still turn out to be a mark
    held: String,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// No text came yet. The prompt may have begun the thoughts, which this mark ends
    Start(Option<&'static str>),
    /// This mark ends the thoughts.
    Thinking(&'static str),
    Answering,
}

impl Thoughts {
    /// The beginning of an answer. `opened`: its prompt has begun the thoughts already, and this mark ends them.
    pub fn new(opened: Option<&'static str>) -> Thoughts {
        Thoughts { held: String::new(), state: State::Start(opened) }
    }

    /// Whether what comes next is thought.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Start(Some(_)) | State::Thinking(_))
    }

    /// The mark that ends the thoughts, inside of them.
    pub fn close(&self) -> Option<&'static str> {
        match self.state {
            State::Start(close) => close,
            State::Thinking(close) => Some(close),
            State::Answering => None,
        }
    }

    /// The parts that are known now that this piece has come.
    pub fn push(&mut self, piece: &str) -> Vec<(Part, String)> {
        self.held.push_str(piece);
        self.parts(false)
    }

    /// What was held back when no more comes.
    pub fn finish(&mut self) -> Vec<(Part, String)> {
        self.parts(true)
    }

    fn parts(&mut self, last: bool) -> Vec<(Part, String)> {
        let mut parts = Vec::new();
        while !self.held.is_empty() {
            let (part, n, state) = match self.state {
                State::Start(opened) => {
                    let text = self.held.trim_start();
                    let marks = REASONING.iter().map(|[open, close]| (*open, State::Thinking(close)));
                    let mut marks = marks.chain([(NO_THOUGHT, State::Answering)]);
                    if !last && marks.clone().any(|(mark, _)| mark.len() > text.len() && mark.starts_with(text)) {
                        return parts;
                    }
                    match marks.find(|(mark, _)| text.starts_with(mark)) {
                        Some((mark, state)) => (Part::Mark, self.held.len() - text.len() + mark.len(), state),
                        None => (Part::Mark, 0, opened.map_or(State::Answering, State::Thinking)),
                    }
                }
                State::Thinking(close) => match self.held.find(close) {
                    Some(0) => (Part::Mark, close.len(), State::Answering),
                    Some(at) => (Part::Thought, at, self.state),
                    None => {
                        // The mark may have begun.
                        let begun = (1..close.len()).rev().find(|&n| self.held.ends_with(&close[..n]));
                        let n = self.held.len() - begun.filter(|_| !last).unwrap_or(0);
                        if n == 0 {
                            return parts;
                        }
                        (Part::Thought, n, self.state)
                    }
                },
                State::Answering => (Part::Answer, self.held.len(), State::Answering),
            };
            self.state = state;
            if n > 0 {
                parts.push((part, self.held.drain(..n).collect()));
            }
        }
        parts
    }
}

/// What a whole answer has thought, if it has, and what it answers, without the marks and the empty lines around them.
pub fn parted(text: &str, opened: Option<&'static str>) -> (Option<String>, String) {
    let mut thoughts = Thoughts::new(opened);
    let (mut thought, mut answer, mut is_marked) = (String::new(), String::new(), opened.is_some());
    for (part, text) in thoughts.push(text).into_iter().chain(thoughts.finish()) {
        match part {
            Part::Mark => is_marked = true,
            Part::Thought => thought.push_str(&text),
            Part::Answer => answer.push_str(&text),
        }
    }
    let thought = Some(thought.trim().to_owned()).filter(|t| !t.is_empty());
    (thought, if is_marked { answer.trim_start().to_owned() } else { answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a text that comes in pieces of so many characters.
    fn parts(text: &str, opened: Option<&'static str>, step: usize) -> Vec<(Part, String)> {
        let mut thoughts = Thoughts::new(opened);
        let chars: Vec<char> = text.chars().collect();
        let mut all: Vec<(Part, String)> = Vec::new();
        let pieces = chars.chunks(step).flat_map(|c| thoughts.push(&c.iter().collect::<String>())).collect::<Vec<_>>();
        for (part, text) in pieces.into_iter().chain(thoughts.finish()) {
            match all.last_mut().filter(|l| l.0 == part) {
                Some(last) => last.1.push_str(&text),
                None => all.push((part, text)),
            }
        }
        all
    }

    #[test]
    fn marks_part_thoughts_from_the_answer() {
        use Part::{Answer, Mark, Thought};
        for step in [1, 2, 5, 1000] {
            for [open, close] in REASONING {
                let want = [(Mark, *open), (Thought, "\nhm </thin"), (Mark, close), (Answer, "\n\nYes")];
                let want = want.map(|(part, text)| (part, text.to_owned()));
                let text: String = want.iter().map(|w| w.1.as_str()).collect();
                assert_eq!(parts(&text, None, step), want, "{text}");
                let rest: String = want[1..].iter().map(|w| w.1.as_str()).collect();
                assert_eq!(parts(&rest, Some(close), step), want[1..], "{rest}");
            }
            let one = |part, text: &str| vec![(part, text.to_owned())];
            assert_eq!(parts("Yes <think> no", None, step), one(Answer, "Yes <think> no"));
            assert_eq!(parts("<thin", None, step), one(Answer, "<thin"));
            assert_eq!(parts("hm", Some("</think>"), step), one(Thought, "hm"));
            let plain = parts("<|channel|>final<|message|>Yes", None, step);
            assert_eq!(plain, [one(Mark, NO_THOUGHT), one(Answer, "Yes")].concat());
        }
    }

    #[test]
    fn a_whole_answer_is_parted() {
        assert_eq!(parted("<think>\nhm\n</think>\n\nYes\n", None), (Some("hm".into()), "Yes\n".into()));
        assert_eq!(parted("hm</think>Yes", Some("</think>")), (Some("hm".into()), "Yes".into()));
        assert_eq!(parted(" Yes", None), (None, " Yes".into()));
        assert_eq!(parted("<think>\n</think>\n Yes", None), (None, "Yes".into()));
        assert_eq!(parted("<think>", None), (None, String::new()));
    }
}

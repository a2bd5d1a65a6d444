//! `/ab`: two answers to the last question, with two settings and one seed.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::state::Chat;
use crate::chat::{Input, Role};
use crate::commands::answer::Answer;
use crate::error::{Error, Result};
use crate::generate::{StopReason, parted};

/// The share of the weights that is left out of reading for a comparison where none is.
const RATIO: &str = "0.25";

/// A setting to try: a flag's name and value; `None`: as things are.
type Setting<'a> = Option<(&'a str, &'a str)>;

fn in_words(setting: Setting) -> String {
    match setting {
        None => "as it is".to_owned(),
        Some((name, value)) => format!("{name} {value}"),
    }
}

impl Chat<'_> {
    /// Answers the last question with two settings, shows where the answers part, and leaves the conversation as it was.
    pub fn compare(&mut self, rest: &str) -> Result<()> {
        let is_pruned = self.run.options.prune.is_some();
        let (settings, is_blind) = settings(rest, is_pruned)?;
        if is_blind && self.editor.is_none() {
            return Err(Error::usage("/ab --blind asks, and nobody is there to answer"));
        }
        if self.conversation.turns().last().is_none_or(|t| t.message.role != Role::Assistant) {
            return Err(Error::failed("there was no answer yet"));
        }
        let (options, conversation, attempt) = (self.run.options.clone(), self.conversation.clone(), self.attempt);
        let last = self.last.clone();
        let answers = self.both(settings, is_blind);
        let tried = std::mem::replace(&mut self.run.options, options);
        let restored = self.apply_settings(Some(&tried));
        (self.conversation, self.attempt, self.last) = (conversation, attempt, last);
        // What is there was read in another way than the next turn's text is to be.
        self.session.clear();
        restored?;
        let log = &self.run.log;
        let Some([(first, a), (second, b)]) = answers? else {
            self.run.signals.take_interrupt();
            log.note("stopped: nothing is compared");
            return Ok(());
        };
        let names = match is_blind {
            true => ["1", "2"].map(str::to_owned),
            false => [first, second].map(in_words),
        };
        let [text_a, text_b] = [&a, &b].map(|(answer, opened)| parted(&answer.text, *opened).1);
        log.note(&parting(&text_a, &text_b, &names));
        if is_blind {
            // Of equals none is better.
            let asks = !text_a.split_whitespace().eq(text_b.split_whitespace());
            let choice = if asks { Some(self.choice()?) } else { None };
            let log = &self.run.log;
            log.note(&format!("1 was {}, 2 was {}", in_words(first), in_words(second)));
            if let Some(choice) = choice {
                log.note(&match choice {
                    Some(1) => format!("you chose {}", in_words(first)),
                    Some(_) => format!("you chose {}", in_words(second)),
                    None => "you chose neither".to_owned(),
                });
            }
        }
        for (setting, (answer, _)) in [(first, a), (second, b)] {
            self.run.log.note(&format!("{}: {}", in_words(setting), answer.stats.short_line()));
        }
        Ok(())
    }

    /// The two answers with their settings, in the order in which they are shown; `None` if one was interrupted. What the chat is made of is
    /// another afterwards.
    #[allow(clippy::type_complexity, reason = "two of the same")]
    fn both<'s>(
        &mut self,
        settings: [Setting<'s>; 2],
        is_blind: bool,
    ) -> Result<Option<[(Setting<'s>, (Answer, Option<&'static str>)); 2]>> {
        let (options, conversation) = (self.run.options.clone(), self.conversation.clone());
        let is_turned = is_blind && RandomState::new().build_hasher().finish() % 2 == 1;
        let order = if is_turned { [settings[1], settings[0]] } else { settings };
        // What cannot be set is said before an answer is waited for.
        for (name, value) in order.into_iter().flatten() {
            self.try_out(name, value)?;
            let tried = std::mem::replace(&mut self.run.options, options.clone());
            self.apply_settings(Some(&tried))?;
        }
        self.attempt = self.attempt.wrapping_add(1);
        let mut answers: Vec<(Answer, Option<&'static str>)> = Vec::new();
        for (i, setting) in order.into_iter().enumerate() {
            let tried = std::mem::replace(&mut self.run.options, options.clone());
            self.apply_settings(Some(&tried))?;
            if let Some((name, value)) = setting {
                self.try_out(name, value)?;
            }
            if let Some((first, _)) = answers.first() {
                // A setting may be a seed of its own.
                if setting.is_none_or(|s| s.0 != "seed") {
                    self.run.options.sampling.seed = Some(first.stats.seed);
                }
                self.attempt = 0;
            }
            self.conversation.clone_from(&conversation);
            self.conversation.set_kwargs(self.run.options.template_kwargs.as_ref());
            let content = self.conversation.undo().ok_or_else(|| Error::failed("there is no question"))?;
            let Some(tokens) = self.fitting(&content)? else { return Ok(None) };
            self.session.clear();
            self.run.log.note(&match is_blind {
                true => format!("answer {}:", i + 1),
                false => format!("{}:", in_words(setting)),
            });
            let answer = self.generate(&tokens, false)?;
            if answer.stop == StopReason::Interrupted {
                return Ok(None);
            }
            answers.push((answer, self.conversation.opens_reasoning()));
        }
        let mut answers = order.into_iter().zip(answers);
        Ok(answers.next().zip(answers.next()).map(|(a, b)| [a, b]))
    }

    /// Which of two answers the user finds better; `None`: neither.
    fn choice(&mut self) -> Result<Option<usize>> {
        loop {
            self.run.log.note("which is better? 1, 2, or = for neither");
            let text = match self.read()? {
                Input::Text(text) | Input::Quoted(text) => text,
                Input::End | Input::Interrupt => return Ok(None),
            };
            match text.trim() {
                "1" => return Ok(Some(1)),
                "2" => return Ok(Some(2)),
                "=" | "0" => return Ok(None),
                // A command ends the question, and is not carried out.
                text if text.starts_with('/') => return Ok(None),
                _ => {}
            }
        }
    }
}

/// The two settings of a command, and whether it is blind.
fn settings(rest: &str, is_pruned: bool) -> Result<([Setting<'_>; 2], bool)> {
    let is_blind = |word: &str| ["--blind", "blind"].contains(&word);
    let words: Vec<&str> = rest.split_whitespace().filter(|w| !is_blind(w)).collect();
    let one = |word| match str::split_once(word, '=') {
        Some((name, value)) => Some((name, value)),
        None => Some(("prune", word)),
    };
    let both = match words[..] {
        [] => [None, Some(("prune", if is_pruned { "off" } else { RATIO }))],
        [name, value] if !name.contains('=') && name.parse::<f64>().is_err() && name != "off" => {
            [None, Some((name, value))]
        }
        [a] => [None, one(a)],
        [a, b] => [one(a), one(b)],
        _ => return Err(Error::usage("/ab takes one setting or two: /ab temp=0.2, /ab temp=0.2 temp=1, /ab 0.4")),
    };
    Ok((both, rest.split_whitespace().any(is_blind)))
}

/// Where two texts part, in words.
fn parting(a: &str, b: &str, names: &[String; 2]) -> String {
    /// Words that are shown of each text after it parted.
    const SHOWN: usize = 6;
    let [a, b] = [a, b].map(|text| text.split_whitespace().collect::<Vec<_>>());
    let n = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    if n == a.len() && n == b.len() {
        return format!("both answers are the same, all {n} words");
    }
    let rest = |words: &[&str]| match &words[n..] {
        [] => "it ends".to_owned(),
        rest if rest.len() > SHOWN => format!("'{} ...'", rest[..SHOWN].join(" ")),
        rest => format!("'{}'", rest.join(" ")),
    };
    let after = match n {
        0 => "the answers part at once".to_owned(),
        1 => "the answers part after 1 word".to_owned(),
        n => format!("the answers part after {n} words"),
    };
    format!("{after}: {}: {}; {}: {}", names[0], rest(&a), names[1], rest(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_two() {
        let of = |rest: &str, is_pruned| settings(rest, is_pruned).map(|(s, _)| s.map(in_words));
        assert_eq!(of("", false).unwrap(), ["as it is", "prune 0.25"]);
        assert_eq!(of("--blind", true).unwrap(), ["as it is", "prune off"]);
        assert_eq!(of("0.4", false).unwrap(), ["as it is", "prune 0.4"]);
        assert_eq!(of("temp=0.2", false).unwrap(), ["as it is", "temp 0.2"]);
        assert_eq!(of("temp 0.2", false).unwrap(), ["as it is", "temp 0.2"]);
        assert_eq!(of("temp=0.2 --blind temp=1", false).unwrap(), ["temp 0.2", "temp 1"]);
        assert_eq!(of("0.2 0.4", false).unwrap(), ["prune 0.2", "prune 0.4"]);
        assert!(of("a=1 b=2 c=3", false).is_err());
        assert!(settings("x=1 --blind", false).unwrap().1 && !settings("x=1", false).unwrap().1);
    }

    #[test]
    fn texts_part_at_a_word() {
        let names = ["A", "B"].map(str::to_owned);
        assert_eq!(parting("a b c", "a  b c", &names), "both answers are the same, all 3 words");
        assert_eq!(parting("a b c", "a b", &names), "the answers part after 2 words: A: 'c'; B: it ends");
        assert_eq!(parting("x 1 2 3 4 5 6 7", "y", &names), "the answers part at once: A: 'x 1 2 3 4 5 ...'; B: 'y'");
    }
}

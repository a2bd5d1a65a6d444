//! Answers: logits that say what the test wants are pushed, and no model computes.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::forge::{Forge, I32, STRING, string};
use common::{tokenizer, tokens_of};
use pp_run::generate::{Answer, Guide, Limits, Next, Predict, StopReason};
use pp_run::gguf::Gguf;
use pp_run::sampler::{Options as SamplingOptions, Sampler};
use pp_run::tokenizer::{REASONING, Token, Tokenizer};

struct Case<'a> {
    says: Vec<Token>,
    predict: Predict,
    stop: &'a [&'a str],
    special: bool,
    /// Tokens that the context has room for
    room: usize,
    /// Tokens after which the answer is interrupted
    interrupt_after: usize,
}

impl Case<'_> {
    fn saying(says: Vec<Token>) -> Case<'static> {
        Case { says, predict: Predict::Unlimited, stop: &[], special: false, room: 4096, interrupt_after: usize::MAX }
    }

    /// The pieces shown, the tokens drawn and why it ended.
    fn run(self, tokenizer: &Tokenizer) -> (Vec<String>, Vec<Token>, StopReason) {
        let greedy = SamplingOptions { temperature: 0.0, ..Default::default() };
        let sampler = Sampler::new(&greedy, tokenizer.n_vocab(), 4096, &[], None);
        let stop = self.stop.iter().map(|s| s.to_string()).collect();
        let limits = Limits { predict: self.predict, stop, special: self.special };
        let mut answer = Answer::new(limits, tokenizer, sampler, Guide::default(), self.room);
        let (mut pieces, mut decoded) = (Vec::new(), Vec::new());
        while answer.stop().is_none() {
            if decoded.len() == self.interrupt_after {
                pieces.push(answer.interrupt());
                break;
            }
            let mut logits = vec![0.0; tokenizer.n_vocab()];
            logits[self.says[decoded.len()] as usize] = 1.0;
            let step = answer.push(&logits).unwrap();
            pieces.push(step.text);
            match step.next {
                Next::Decode(token) => decoded.push(token),
                Next::Stop(reason) => assert_eq!(answer.stop(), Some(&reason)),
            }
        }
        assert!(decoded.len() <= self.room, "decoded beyond the context");
        let interrupted = answer.stop() == Some(&StopReason::Interrupted);
        let (tokens, reason) = answer.finish();
        let last = usize::from(!interrupted && !tokens.is_empty());
        assert_eq!(tokens[..tokens.len() - last], decoded, "the last token is not decoded");
        pieces.retain(|p| !p.is_empty());
        (pieces, tokens, reason)
    }
}

#[test]
fn answers_end_with_the_text_a_limit_or_the_context() {
    let (_, tokenizer) = tokenizer();
    let says = || tokens_of(&tokenizer, "One two three four<|im_end|> more more");
    let (pieces, tokens, reason) = Case::saying(says()).run(&tokenizer);
    assert_eq!((pieces.concat().as_str(), tokens.len(), reason), ("One two three four", 5, StopReason::EndOfText));

    let (pieces, ..) = Case { special: true, ..Case::saying(says()) }.run(&tokenizer);
    assert_eq!(pieces.concat(), "One two three four<|im_end|>");

    for n in 0..3 {
        let (pieces, tokens, reason) = Case { predict: Predict::AtMost(n), ..Case::saying(says()) }.run(&tokenizer);
        assert_eq!((pieces.len() as u64, tokens.len() as u64, reason), (n, n, StopReason::Limit));
    }

    // Two cells are free, and the last token needs none.
    let (pieces, _, reason) = Case { room: 2, ..Case::saying(says()) }.run(&tokenizer);
    assert_eq!((pieces.concat().as_str(), reason), ("One two three", StopReason::ContextFull));
    let (pieces, _, reason) = Case { room: 6, predict: Predict::FillContext, ..Case::saying(says()) }.run(&tokenizer);
    assert_eq!((pieces.concat().as_str(), reason), ("One two three four more more", StopReason::ContextFull));

    let (pieces, _, reason) = Case { interrupt_after: 3, ..Case::saying(says()) }.run(&tokenizer);
    assert_eq!((pieces.concat().as_str(), reason), ("One two three", StopReason::Interrupted));
}

#[test]
fn stop_strings_may_span_pieces() {
    let (_, tokenizer) = tokenizer();
    let letters = |s: &str| s.chars().flat_map(|l| tokens_of(&tokenizer, &l.to_string())).collect::<Vec<_>>();
    let stop = ["<end>", "dis"];
    let (pieces, _, reason) = Case { stop: &stop, ..Case::saying(letters("ab<en<end>cd")) }.run(&tokenizer);
    assert_eq!((pieces.concat().as_str(), reason), ("ab<en", StopReason::StopString("<end>".into())));
    assert_eq!(pieces[..2], ["a", "b"], "what cannot be a beginning is not held back");

    // The first in the text counts, and what came before it in the same piece is shown.
    let (pieces, _, reason) =
        Case { stop: &stop, ..Case::saying(tokens_of(&tokenizer, " pardis <end>")) }.run(&tokenizer);
    assert_eq!((pieces.concat().as_str(), reason), (" par", StopReason::StopString("dis".into())));

    // A beginning that leads nowhere is part of the answer, and so is one at which the answer is stopped.
    let (pieces, _, reason) =
        Case { stop: &stop, interrupt_after: 4, ..Case::saying(letters("ab<en")) }.run(&tokenizer);
    assert_eq!((pieces.concat().as_str(), reason), ("ab<e", StopReason::Interrupted));
    let says = [letters("ab<en"), tokens_of(&tokenizer, "<|im_end|>")].concat();
    let (pieces, _, reason) = Case { stop: &stop, ..Case::saying(says) }.run(&tokenizer);
    assert_eq!((pieces.concat().as_str(), reason), ("ab<en", StopReason::EndOfText));
}

#[test]
fn characters_that_span_pieces_come_whole() {
    let (_, tokenizer) = tokenizer();
    let text = "caf\u{e9} \u{1f9a9}\u{1f30b} \u{10348}";
    let says = tokens_of(&tokenizer, &format!("{text}<|im_end|>"));
    let split = says.iter().any(|&t| std::str::from_utf8(&tokenizer.piece(t, false)).is_err());
    assert!(split, "some token holds a part of a character");
    let (pieces, ..) = Case::saying(says.clone()).run(&tokenizer);
    assert_eq!(pieces.concat(), text);
    // Cut within the last character: what is there of it is shown as U+FFFD.
    let n = says.len() as u64 - 2;
    let (pieces, ..) = Case { predict: Predict::AtMost(n), ..Case::saying(says) }.run(&tokenizer);
    assert!(pieces.concat().ends_with(" \u{fffd}"), "{pieces:?}");
}

/// A vocabulary in which the last tokens are control tokens of these names.
fn naming(names: &[&str]) -> Tokenizer {
    let forge = Forge::smallest();
    let (n, mut doc) = (forge.n_vocab, forge.doc());
    let bytes = (0..=255u8).map(|b| format!("<0x{b:02X}>"));
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).collect();
    tokens.extend((tokens.len()..n - names.len()).map(|i| format!("word{i}")));
    tokens.extend(names.iter().map(|name| name.to_string()));
    doc.array("tokenizer.ggml.tokens", STRING, tokens.iter().map(string));
    let types = (0..n).map(|i| match i {
        0..3 => 3,
        3..259 => 6,
        _ if i >= n - names.len() => 3,
        _ => 1_i32,
    });
    doc.array("tokenizer.ggml.token_type", I32, types.map(|t| t.to_le_bytes().to_vec()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names.gguf");
    std::fs::write(&path, doc.bytes()).unwrap();
    Tokenizer::load(&Gguf::open(&path).unwrap()).unwrap()
}

#[test]
fn each_token_that_ends_a_turn_ends_an_answer() {
    let names = [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<end_of_turn>",
        "<turn|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    ];
    let tokenizer = naming(&names);
    let first = (tokenizer.n_vocab() - names.len()) as Token;
    for end in (first..).take(names.len()).chain(tokenizer.eos()) {
        let (pieces, tokens, reason) = Case::saying(vec![260, end, 261]).run(&tokenizer);
        assert_eq!((pieces.concat().as_str(), tokens, reason), ("word260", vec![260, end], StopReason::EndOfText));
    }
}

#[test]
fn marks_of_reasoning_are_shown() {
    let tokenizer = naming(&["[THINK]", "[/THINK]", "[INST]", "</s2>"]);
    let first = (tokenizer.n_vocab() - 4) as Token;
    let says = vec![first, 260, first + 1, first + 2, first + 3, 261, tokenizer.eos().unwrap()];
    assert_eq!(Case::saying(says).run(&tokenizer).0.concat(), "[THINK]word260[/THINK]word261");
}

/// An answer's text, if its tokens are these but where others are forced; and how many were asked for before it was `now` to answer.
fn thinking(
    tokenizer: &Tokenizer,
    says: &[Token],
    budget: Option<u64>,
    opened: Option<&'static str>,
    now: usize,
) -> String {
    let greedy = SamplingOptions { temperature: 0.0, ..Default::default() };
    let sampler = Sampler::new(&greedy, tokenizer.n_vocab(), 4096, &[], None);
    let limits = Limits { predict: Predict::AtMost(says.len() as u64), stop: Vec::new(), special: false };
    let answer_now = Arc::new(AtomicBool::new(false));
    let guide = Guide { budget, opened, answer_now: answer_now.clone(), ..Guide::default() };
    let mut answer = Answer::new(limits, tokenizer, sampler, guide, 4096);
    let mut text = String::new();
    for (i, &token) in says.iter().enumerate() {
        answer_now.store(i == now, Ordering::Relaxed);
        let mut logits = vec![0.0; tokenizer.n_vocab()];
        logits[token as usize] = 1.0;
        text += &answer.push(&logits).unwrap().text;
    }
    text
}

#[test]
fn thoughts_end_where_they_are_to_end() {
    let (_, tokenizer) = tokenizer();
    let never = usize::MAX;
    for [open, close] in REASONING {
        let close = if close.starts_with("<|start|>") { format!("<|end|>{close}") } else { (*close).to_owned() };
        let [open, a] = [tokens_of(&tokenizer, open), tokens_of(&tokenizer, " a")];
        let says = [&open[..], &a.repeat(60)].concat();
        let text = |budget, now| thinking(&tokenizer, &says, budget, None, now);
        let begun = |n: usize| format!("{}{}{close}", text(None, never).split(" a").next().unwrap(), " a".repeat(n));
        assert!(!text(None, never).contains(&close));
        for n in [0, 1, 5] {
            let got = text(Some(n), never);
            assert!(got.starts_with(&begun(n as usize)) && got.ends_with(" a a"), "{got}");
        }
        let got = text(None, open.len() + 3);
        assert!(got.starts_with(&begun(3)), "{got}");
        // What is no thought has no budget, and does not end.
        assert_eq!(thinking(&tokenizer, &a.repeat(20), Some(3), None, 5), " a".repeat(20));
    }
    let a = tokens_of(&tokenizer, " a").repeat(20);
    let got = thinking(&tokenizer, &a, Some(2), Some("</think>"), never);
    assert!(got.starts_with(" a a</think> a"), "{got}");
    assert!(thinking(&tokenizer, &a, Some(0), Some("[/THINK]"), never).starts_with("[/THINK] a"));
}

//! A model that says what a test wants it to say: each token is followed by one other, whatever came before, on any processor. Its n-th
//! answer of a conversation is the n-th of its texts, or the last.

use std::path::Path;

use ggml::Type;

use super::forge::{F32, Forge, I32, STRING, string};

/// Texts that are said one after the other.
#[derive(Debug, Clone)]
pub struct Script {
    /// Each answer in pieces, which are its tokens.
    pub answers: Vec<Vec<String>>,
    /// Answers begin again where they end.
    pub endless: bool,
}

/// Says of each turn whose it is, and of each answer which.
const TEMPLATE: &str = "{% set ns = namespace(n=0) %}{% for m in messages %}\
    {% if m.role == 'assistant' %}{{ '<|go' ~ ns.n ~ '|>' }}{% else %}{{ '<|' + m.role + '|>' }}\
    {% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}{% endif %}{{ m.content + '<|end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|go' ~ ns.n ~ '|>' }}{% endif %}";

impl Script {
    /// Answers in pieces of a few characters, so that words come in parts.
    pub fn saying(answers: &[&str]) -> Script {
        let pieces = |text: &&str| {
            let chars: Vec<char> = text.chars().collect();
            chars.chunks(3).map(|c| c.iter().collect()).collect()
        };
        Script { answers: answers.iter().map(pieces).collect(), endless: false }
    }

    /// Writes the model, with a context of `n_ctx` tokens.
    pub fn write(&self, path: &Path, n_ctx: u32) {
        let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
        let mut types = vec![2, 3, 3];
        let mut add = |text: String, ty: i32| {
            tokens.push(text);
            types.push(ty);
            tokens.len() - 1
        };
        for b in 0..=255u8 {
            add(format!("<0x{b:02X}>"), 6);
        }
        for c in ['\u{2581}'].into_iter().chain('a'..='z') {
            add(c.into(), 1);
        }
        for role in ["system", "user", "end"] {
            add(format!("<|{role}|>"), 3);
        }
        let mut next = Vec::new();
        for (i, answer) in self.answers.iter().enumerate() {
            let go = add(format!("<|go{}|>", i + 1), 3);
            let mut last = go;
            for piece in answer {
                let token = add(piece.replace(' ', "\u{2581}"), 1);
                next.push((last, token));
                last = token;
            }
            next.push((last, if self.endless { go + 1 } else { 2 }));
        }
        // After the last text it is said again.
        let said = next[next.len() - self.answers.last().map_or(0, Vec::len) - 1].1;
        for i in self.answers.len()..64 {
            next.push((add(format!("<|go{}|>", i + 1), 3), said));
        }
        let n_vocab = tokens.len();
        let n_embd = n_vocab.next_multiple_of(64);
        let forge = Forge { n_vocab, n_embd, n_ff: 64, n_layer: 1, n_ctx, ..Forge::tiny(Type::F32, 4, 4) };
        let mut doc = forge.doc();
        doc.array("tokenizer.ggml.tokens", STRING, tokens.iter().map(string));
        doc.array("tokenizer.ggml.token_type", I32, types.iter().map(|t| t.to_le_bytes().to_vec()));
        doc.array("tokenizer.ggml.scores", F32, (0..n_vocab).map(|i| (-(i as f32)).to_le_bytes().to_vec()));
        doc.str("tokenizer.chat_template", TEMPLATE);
        doc.str("general.name", "script");
        for t in &mut doc.tensors {
            // Nothing but the embeddings counts.
            if !t.name.ends_with(b"norm.weight") {
                t.data.fill(0);
            }
        }
        let mut set = |name: &str, row: usize, column: usize| {
            let at = 4 * (row * n_embd + column);
            doc.tensor(name).data[at..at + 4].copy_from_slice(&8f32.to_le_bytes());
        };
        (0..n_vocab).for_each(|t| set("token_embd.weight", t, t));
        next.iter().for_each(|&(before, token)| set("output.weight", token, before));
        std::fs::write(path, doc.bytes()).unwrap();
    }
}

//! Text to tokens and back: libllama's vocabularies, loaded from metadata that has passed our check.

use ggml::llama::{Vocab, knows};

use crate::error::{Error, Result, escape};
use crate::gguf::{Gguf, Twins};

/// Id of a token in the vocabulary.
pub type Token = i32;

/// Marks around what models think before they answer: where it begins, and where it ends.
pub const REASONING: &[[&str; 2]] = &[
    // Qwen, DeepSeek, SmolLM, Granite and most others
    ["<think>", "</think>"],
    // Mistral
    ["[THINK]", "[/THINK]"],
    // gpt-oss
    ["<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"],
    // Gemma
    ["<|channel>thought", "<channel|>"],
    // Command
    ["<|START_THINKING|>", "<|END_THINKING|>"],
    // Seed-OSS
    ["<seed:think>", "</seed:think>"],
    // MiniMax
    ["<mm:think>", "</mm:think>"],
    // Apertus
    ["<|inner_prefix|>", "<|inner_suffix|>"],
];

/// A text around the control tokens that it names.
#[derive(Debug)]
pub struct Cut<'t> {
    /// All of it if it names none
    pub before: &'t str,
    /// From the first to the last
    pub controls: &'t str,
    pub after: &'t str,
    /// White space at the end of what stands before, and at the beginning of what stands after, belongs to the control tokens.
    pub strips: [bool; 2],
}

/// What [`Tokenizer::encode_more`] puts before a text.
const LINE_BREAK: &str = "\n";

/// The tokenizer of a model.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    /// Tokens that libllama does not know the text of
    twins: Twins,
    /// A space is put in front of a text
    adds_space: bool,
}

impl Tokenizer {
    /// Checks the vocabulary's metadata and loads it.
    pub fn load(gguf: &Gguf) -> Result<Tokenizer> {
        let twins = gguf.require_vocab()?;
        // libllama loads the vocabularies of architectures that it knows. One that only we know goes under the name of another.
        let name = (!knows(gguf.metadata().architecture())).then_some("gpt2");
        let vocab = Vocab::new(&gguf.vocab_header(&twins, name)).map_err(|e| {
            let message = format!("the tokenizer cannot be loaded: {}", e.0);
            // libllama tells kinds of errors apart by their texts alone.
            let error = if e.0.contains("bad_alloc") { Error::memory(message) } else { Error::unsupported(message) };
            error.in_file(gguf.path())
        })?;
        // libllama would abort when it adds a token that there is not.
        for (wanted, token, name) in [(vocab.add_bos(), vocab.bos(), "bos"), (vocab.add_eos(), vocab.eos(), "eos")] {
            if wanted && token.is_none() {
                let message =
                    format!("the tokenizer adds a {name} token, but tokenizer.ggml.{name}_token_id names none");
                return Err(Error::malformed(message).in_file(gguf.path()));
            }
        }
        let begun = vocab.tokenize(LINE_BREAK, false, false).unwrap_or_default();
        let adds_space = begun.iter().flat_map(|&t| vocab.piece(t, false)).eq(format!(" {LINE_BREAK}").into_bytes());
        Ok(Tokenizer { vocab, twins, adds_space })
    }

    /// What libllama knows of the vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// Tokens of `text`. `add_special` adds BOS and EOS as the model wants them; `parse_special` reads the names of control
    /// tokens as these tokens.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>> {
        self.vocab
            .tokenize(text, add_special, parse_special)
            .ok_or_else(|| Error::malformed(format!("a text of {} bytes is too long for the tokenizer", text.len())))
    }

    /// Tokens of a text that goes on where another ended: no space is put in front of it. Names of control tokens are plain text.
    pub fn encode_more(&self, text: &str) -> Result<Vec<Token>> {
        if self.adds_space && !text.is_empty() {
            // The tokens after those of a line break, which joins no word.
            let begun = self.encode(LINE_BREAK, false, false)?;
            let tokens = self.encode(&format!("{LINE_BREAK}{text}"), false, false)?;
            if let Some(more) = tokens.strip_prefix(begun.as_slice()) {
                return Ok(more.to_vec());
            }
        }
        self.encode(text, false, false)
    }

    /// Whether a token is one that no text spells unless control tokens are read in it.
    pub fn is_control(&self, token: Token) -> bool {
        self.piece(token, false).is_empty() && !self.piece(token, true).is_empty()
    }

    /// A text, cut at the first and the last control token that it names.
    pub fn cut_at_controls<'t>(&self, text: &'t str) -> Result<Cut<'t>> {
        let tokens = self.encode(text, false, true)?;
        let mut controls = tokens.iter().copied().filter(|&t| self.is_control(t));
        let none = Cut { before: text, controls: "", after: "", strips: [false; 2] };
        let Some(first) = controls.next() else { return Ok(none) };
        let last = controls.next_back().unwrap_or(first);
        let name = |t: Token| String::from_utf8_lossy(&self.piece(t, true)).into_owned();
        let last_name = name(last);
        let (Some(start), Some(end)) = (text.find(&name(first)), text.rfind(&last_name)) else { return Ok(none) };
        let end = end + last_name.len();
        Ok(Cut {
            before: &text[..start],
            controls: &text[start..end],
            after: &text[end..],
            strips: [self.vocab.strips(first)[0], self.vocab.strips(last)[1]],
        })
    }

    /// A token's text for the user's eyes, that of control tokens too: a token may be a part of a character, whose bytes are shown as numbers.
    pub fn in_words(&self, token: Token) -> String {
        let bytes = self.piece(token, true);
        let shown = bytes.utf8_chunks().map(|chunk| {
            let rest: String = chunk.invalid().iter().map(|b| format!("\\x{b:02x}")).collect();
            escape(chunk.valid()) + &rest
        });
        shown.collect()
    }

    /// Bytes of a token; control tokens have none unless `special`. Where several tokens have the same text, libllama knows it of the
    /// first one only, whose bytes are returned for all.
    pub fn piece(&self, token: Token, special: bool) -> Vec<u8> {
        self.vocab.piece(*self.twins.get(&token).unwrap_or(&token), special)
    }

    /// Bytes of a token in an answer: control tokens have none, but for those that mark reasoning.
    pub fn shown(&self, token: Token) -> Vec<u8> {
        let name = self.piece(token, true);
        let marks = str::from_utf8(&name).is_ok_and(|n| REASONING.as_flattened().iter().any(|mark| mark.contains(n)));
        if marks { name } else { self.piece(token, false) }
    }

    /// Whether a text of `n_bytes` can have as few tokens as `n_tokens`. Of a text that cannot this is known without tokenizing it, which
    /// may take minutes.
    pub fn can_fit(&self, n_bytes: usize, n_tokens: usize) -> bool {
        let longest = || (0..self.n_vocab() as Token).map(|t| self.vocab.piece(t, true).len()).max().unwrap_or(0);
        n_bytes <= n_tokens || n_bytes <= n_tokens.saturating_mul(longest())
    }

    /// Whether the token ends a generation.
    pub fn is_eog(&self, token: Token) -> bool {
        self.vocab.is_eog(token)
    }

    /// All tokens that end a generation.
    pub fn eog_tokens(&self) -> Vec<Token> {
        (0..self.vocab.n_tokens() as Token).filter(|&t| self.vocab.is_eog(t)).collect()
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.vocab.n_tokens()
    }

    /// Beginning of a text.
    pub fn bos(&self) -> Option<Token> {
        self.vocab.bos()
    }

    /// End of a text.
    pub fn eos(&self) -> Option<Token> {
        self.vocab.eos()
    }

    /// Whether texts begin with BOS.
    pub fn add_bos(&self) -> bool {
        self.vocab.add_bos()
    }
}

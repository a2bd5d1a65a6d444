//! llama-perplexity's files of a model's log-probabilities (`--kl-divergence-base`), with which others are compared.
//!
//! ```text
//! "_logits_"  n_ctx u32  n_vocab i32  n_chunk i32  tokens i32 [n_ctx, n_chunk]
//! then for each token that is scored, of each window in turn:
//! scale f32  least f32  codes u16 [n_vocab, rounded up to an even number]: log-probability = scale * code + least
//! ```

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::kld::Compared;
use crate::engine::normaliser;
use crate::error::{Error, Result};
use crate::system::places::Replacement;
use crate::tokenizer::Token;

const MAGIC: &[u8; 8] = b"_logits_";

/// Nothing is less likely than this share of the most likely token, by its logarithm; and what is less likely than this does not count.
const LEAST: f32 = -16.0;

/// What a file is of.
pub struct Head<'a> {
    pub n_ctx: usize,
    pub n_vocab: usize,
    /// The text's tokens, `n_ctx` of each window, before any of them is replaced by BOS
    pub tokens: &'a [Token],
}

impl Head<'_> {
    fn bytes(&self) -> Vec<u8> {
        let n_chunk = self.tokens.len() / self.n_ctx;
        let numbers = [self.n_ctx, self.n_vocab, n_chunk].map(|n| n as i32);
        let words = numbers.iter().chain(self.tokens);
        MAGIC.iter().copied().chain(words.flat_map(|w| w.to_le_bytes())).collect()
    }
}

/// Words of 16 bits of a row.
fn row_words(n_vocab: usize) -> usize {
    n_vocab.next_multiple_of(2) + 4
}

/// A file that is written row by row, under a temporary name until it is whole.
pub struct Writer {
    path: PathBuf,
    replacement: Replacement,
    n_vocab: usize,
}

impl Writer {
    /// Begins a file.
    pub fn create(path: &Path, head: &Head) -> Result<Writer> {
        let replacement = Replacement::create(path, 0o666)?;
        let writer = Writer { path: path.to_owned(), replacement, n_vocab: head.n_vocab };
        writer.write(&head.bytes())?;
        Ok(writer)
    }

    /// Appends rows of logits `[n_vocab]`.
    pub fn add(&self, logits: &[f32]) -> Result<()> {
        logits.chunks_exact(self.n_vocab).try_for_each(|row| self.write(&encode(row)))
    }

    /// Gives the file its name.
    pub fn finish(self) -> Result<()> {
        self.replacement.finish()
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        let failed = |e: io::Error| Error::io(format!("cannot be written: {e}")).in_file(&self.path);
        self.replacement.file().write_all(bytes).map_err(failed)
    }
}

/// A row of the file.
fn encode(logits: &[f32]) -> Vec<u8> {
    let (best, ln_sum) = normaliser(logits);
    let max = logits[best];
    let min = logits.iter().copied().fold(max, f32::min).max(max + LEAST);
    let scale = (max - min) / 65535.0;
    let least = min - max - ln_sum as f32;
    let code =
        |logit: f32| if scale > 0.0 && logit > min { ((logit - min) / scale).round_ties_even() as u16 } else { 0 };
    let mut words: Vec<u16> = vec![0; 4];
    words.extend(logits.iter().map(|&l| code(l)));
    words.resize(row_words(logits.len()), 0);
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u16::to_le_bytes).collect();
    bytes[..4].copy_from_slice(&scale.to_le_bytes());
    bytes[4..8].copy_from_slice(&least.to_le_bytes());
    bytes
}

/// A file that is read row by row.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    n_vocab: usize,
}

impl Reader {
    /// Opens a file. [`Kind::Malformed`] if it is none, or of other windows, another text or another vocabulary.
    pub fn open(path: &Path, head: &Head) -> Result<Reader> {
        let file = File::open(path).map_err(|e| Error::input(format!("cannot be read: {e}")).in_file(path))?;
        let length = file.metadata().map_or(0, |m| m.len());
        let mut file = BufReader::new(file);
        let wrong = |why: String| Error::malformed(why).in_file(path);
        let mut start = [0u8; 20];
        file.read_exact(&mut start).map_err(|_| wrong("is no file of llama-perplexity's log-probabilities".into()))?;
        if !start.starts_with(MAGIC) {
            return Err(wrong("is no file of llama-perplexity's log-probabilities".into()));
        }
        let word = |i: usize| i32::from_le_bytes(start[8 + 4 * i..][..4].try_into().expect("four bytes"));
        let [n_ctx, n_vocab, n_chunk] = [0, 1, 2].map(word);
        if usize::try_from(n_ctx) != Ok(head.n_ctx) {
            return Err(wrong(format!("has windows of {n_ctx} tokens: use -c {n_ctx}")));
        }
        if usize::try_from(n_vocab) != Ok(head.n_vocab) {
            return Err(wrong(format!("is of a vocabulary of {n_vocab} tokens, and the model's has {}", head.n_vocab)));
        }
        let ours = head.tokens.len() / head.n_ctx;
        let theirs = usize::try_from(n_chunk).unwrap_or(0);
        if theirs < ours {
            return Err(wrong(format!("has {n_chunk} windows: use --chunks {n_chunk}")));
        }
        let n_scored = head.n_ctx - 1 - head.n_ctx / 2;
        let row = 2 * row_words(head.n_vocab) as u64;
        let window = 4 * head.n_ctx as u64 + n_scored as u64 * row;
        if length < 20 + theirs as u64 * window {
            return Err(wrong(format!("is cut short: {length} bytes of {}", 20 + theirs as u64 * window)));
        }
        let mut tokens = vec![0u8; 4 * theirs * head.n_ctx];
        file.read_exact(&mut tokens).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let same = tokens.chunks_exact(4).zip(head.tokens).all(|(a, b)| *a == b.to_le_bytes());
        match same {
            true => Ok(Reader { path: path.to_owned(), file, n_vocab: head.n_vocab }),
            false => Err(wrong("is of another text, or of other tokens".into())),
        }
    }

    /// Compares rows of logits and the tokens `next` after them with the next rows of the file.
    pub fn compare(&mut self, logits: &[f32], next: &[Token]) -> Result<Vec<Compared>> {
        let mut row = vec![0u8; 2 * row_words(self.n_vocab)];
        let mut all = Vec::with_capacity(next.len());
        for (logits, &token) in logits.chunks_exact(self.n_vocab).zip(next) {
            let failed = |e: io::Error| Error::io(format!("cannot be read: {e}")).in_file(&self.path);
            self.file.read_exact(&mut row).map_err(failed)?;
            all.push(compare(&row, logits, token));
        }
        Ok(all)
    }
}

/// A token by a row of the file and by logits, as llama-perplexity compares them.
fn compare(row: &[u8], logits: &[f32], token: Token) -> Compared {
    let float = |i: usize| f32::from_le_bytes(row[4 * i..][..4].try_into().expect("four bytes"));
    let (scale, least) = (float(0), float(1));
    let base: Vec<f32> = (row[8..].chunks_exact(2).take(logits.len()))
        .map(|code| scale * f32::from(u16::from_le_bytes([code[0], code[1]])) + least)
        .collect();
    let (best, ln_sum) = normaliser(logits);
    let log_p = |i: usize| f64::from(logits[i] - logits[best]) - ln_sum;
    let divergence = |(i, &b): (usize, &f32)| f64::from(b.exp()) * (f64::from(b) - log_p(i));
    let kl = base.iter().enumerate().filter(|(_, b)| **b > LEAST).map(divergence).sum();
    let first_largest = |top: usize, i: usize| if base[i] > base[top] { i } else { top };
    Compared {
        nll: -log_p(token as usize),
        nll_base: -f64::from(base[token as usize]),
        kl,
        same_top: (0..base.len()).fold(0, first_largest) == best,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.kld");
        let tokens = [1, 2, 0, 1, 2, 2, 0, 1];
        let head = Head { n_ctx: 4, n_vocab: 3, tokens: &tokens };
        let logits = [0.5f32, 2.0, -1.0, 3.0, -40.0, 3.5];
        let writer = Writer::create(&path, &head).unwrap();
        writer.add(&logits).unwrap();
        assert!(!path.exists(), "under another name until it is whole");
        writer.finish().unwrap();
        // Two windows, of which one token each is scored.
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 20 + 4 * 8 + 2 * 2 * 8);
        let compared = Reader::open(&path, &head).unwrap().compare(&logits, &[0, 2]).unwrap();
        for (c, nll) in compared.iter().zip([1.741, 0.474]) {
            assert!((c.nll - nll).abs() < 1e-3 && (c.nll - c.nll_base).abs() < 1e-4, "{c:?}");
            assert!(c.kl.abs() < 1e-4 && c.same_top, "{c:?}");
        }
        let open = |head: &Head| Reader::open(&path, head).map(drop).unwrap_err().to_string();
        assert!(open(&Head { n_ctx: 8, n_vocab: 3, tokens: &tokens }).contains("use -c 4"));
        assert!(open(&Head { n_ctx: 4, n_vocab: 4, tokens: &tokens }).contains("vocabulary of 3"));
        assert!(open(&Head { n_ctx: 4, n_vocab: 3, tokens: &[1; 8] }).contains("another text"));
        assert!(open(&Head { n_ctx: 4, n_vocab: 3, tokens: &[1; 12] }).contains("--chunks 2"));
        let bytes = std::fs::read(&path).unwrap();
        for n in 0..bytes.len() {
            std::fs::write(&path, &bytes[..n]).unwrap();
            assert!(Reader::open(&path, &head).is_err(), "{n} bytes");
        }
    }
}

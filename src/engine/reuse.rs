//! Which tokens of a prompt another prompt can take over, so that it is read as the same bits as without.
//!
//! A prompt is read in pieces of `n_ubatch` tokens, the last of which has what is left. Where a token is computed as the same bits whichever
//! others come with it, all that two prompts have in common can be taken over, with one exception: a piece of a few tokens is computed by
//! other kernels than a longer one. Where bits depend on the piece, only whole pieces can be taken over.

use crate::graph::MAX_ROW_TOKENS;

/// How prompts are read.
#[derive(Debug, Clone, Copy)]
pub struct Reuse {
    /// Tokens of a piece
    pub n_ubatch: usize,
    /// A token is computed as the same bits in any piece of more than [`MAX_ROW_TOKENS`]
    pub reads_alike: bool,
}

impl Reuse {
    /// Tokens of a prompt's last piece, if it is read from its beginning.
    fn last_piece(self, n_prompt: usize) -> usize {
        (n_prompt - 1) % self.n_ubatch + 1
    }

    /// Whether pieces of a prompt count as they are: it has tokens that few others are computed with.
    fn has_few(self, n_prompt: usize) -> bool {
        self.n_ubatch <= MAX_ROW_TOKENS || self.last_piece(n_prompt) <= MAX_ROW_TOKENS
    }

    /// Of a prompt's first `n_common` tokens, which another one has read, how many it can take over.
    pub fn taken(self, n_common: usize, n_prompt: usize) -> usize {
        let n_common = n_common.min(n_prompt.saturating_sub(1));
        if !self.reads_alike || self.has_few(n_prompt) {
            return n_common / self.n_ubatch * self.n_ubatch;
        }
        // The last piece must not become one of few tokens.
        match (n_prompt - n_common) % self.n_ubatch {
            n @ 1..=MAX_ROW_TOKENS => n_common.saturating_sub(MAX_ROW_TOKENS + 1 - n),
            _ => n_common,
        }
    }

    /// Of a prompt's first `n_read` tokens, which were read, how many others can take over.
    pub fn left(self, n_read: usize, n_prompt: usize) -> usize {
        if n_read == 0 || (self.reads_alike && !(n_read == n_prompt && self.has_few(n_prompt))) {
            return n_read;
        }
        n_read / self.n_ubatch * self.n_ubatch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a prompt from token `first` on.
    fn pieces(n_ubatch: usize, first: usize, n_prompt: usize) -> Vec<std::ops::Range<usize>> {
        (first..n_prompt).step_by(n_ubatch).map(|at| at..n_prompt.min(at + n_ubatch)).collect()
    }

    #[test]
    fn every_token_is_read_as_without() {
        for (n_ubatch, reads_alike) in [(32, true), (32, false), (8, true), (16, true), (1, true), (20, true)] {
            let reuse = Reuse { n_ubatch, reads_alike };
            // What a token's bits depend on: the piece, or whether it is one of few tokens.
            let kind = |piece: &std::ops::Range<usize>| match reads_alike && n_ubatch > MAX_ROW_TOKENS {
                true => (0..0, piece.len() <= MAX_ROW_TOKENS),
                false => (piece.clone(), false),
            };
            let of =
                |pieces: &[std::ops::Range<usize>], token: usize| pieces.iter().find(|p| p.contains(&token)).map(kind);
            for n_prompt in 1..100 {
                let cold = pieces(n_ubatch, 0, n_prompt);
                for n_common in 0..=n_prompt {
                    let n = reuse.taken(n_common, n_prompt);
                    assert!(n <= n_common && n < n_prompt);
                    let rest = pieces(n_ubatch, n, n_prompt);
                    assert!((n..n_prompt).all(|t| of(&rest, t) == of(&cold, t)), "{n_ubatch}: {n} of {n_prompt}");
                }
                // What is left is read in every longer prompt as in this one.
                let left = reuse.left(n_prompt, n_prompt);
                for longer in n_prompt + 1..n_prompt + 40 {
                    let n = reuse.taken(left, longer);
                    let other = pieces(n_ubatch, 0, longer);
                    assert!((0..n).all(|t| of(&cold, t) == of(&other, t)), "{n_ubatch}: {n_prompt} in {longer}");
                }
            }
            assert_eq!(reuse.left(0, 10), 0);
        }
        let reuse = Reuse { n_ubatch: 512, reads_alike: true };
        assert_eq!((reuse.taken(811, 840), reuse.taken(811, 812), reuse.left(840, 840)), (811, 795, 840));
    }
}

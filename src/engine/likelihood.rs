//! How likely a model finds the ends of texts: those of several questions at a time, of which each has several ends.

use super::core::OUTPUT_ROWS;
use super::libllama::LlamaSession;
use super::session::Session;
use crate::error::{Error, Result};
use crate::graph::{Batch, Results, Row};
use crate::prune::Pass;
use crate::tokenizer::Token;

/// A text whose end is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The text: one token at least before those that are scored
    pub tokens: Vec<Token>,
    /// Tokens at its end that are scored, one at least
    pub n_scored: usize,
}

impl Request {
    /// What the model reads: after the last token there is nothing to compare with.
    pub fn input(&self) -> &[Token] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// Position of the token whose state predicts the first one that is scored.
    pub fn first(&self) -> usize {
        self.tokens.len() - 1 - self.n_scored
    }

    /// The tokens that are scored.
    pub fn scored(&self) -> &[Token] {
        &self.tokens[self.first() + 1..]
    }
}

/// How likely the end of a text is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Sum of the log-probabilities of its tokens
    pub sum: f64,
    /// Whether each of them is the most likely one at its place
    pub is_greedy: bool,
}

/// A row of states, and the tokens that are compared with the logits which follow from it: request and token.
struct Scored {
    row: usize,
    request: usize,
    token: Token,
}

/// The largest of a row of logits, the first of equals, and the logarithm of the sum of `exp(logit - largest)`: floats for the exponentials,
/// doubles for their sum, as llama-perplexity.
pub fn normaliser(logits: &[f32]) -> (usize, f64) {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    let best = (0..logits.len()).fold(0, better);
    let max = logits[best];
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    (best, sum.ln())
}

/// Log-probability of `token`, and whether none is more likely.
fn log_probability(logits: &[f32], normaliser: (usize, f64), token: Token) -> (f64, bool) {
    let (best, ln_sum) = normaliser;
    (f64::from(logits[token as usize] - logits[best]) - ln_sum, best == token as usize)
}

/// The sums of what was scored, request by request.
struct Sums(Vec<Likelihood>);

impl Sums {
    fn new(n: usize) -> Sums {
        Sums(vec![Likelihood { sum: 0.0, is_greedy: true }; n])
    }

    fn add(&mut self, request: usize, (log_probability, is_greedy): (f64, bool)) {
        self.0[request].sum += log_probability;
        self.0[request].is_greedy &= is_greedy;
    }

    /// [`crate::error::Kind::Failed`] if one of them is no number.
    fn finish(self) -> Result<Vec<Likelihood>> {
        match self.0.iter().any(|l| l.sum.is_nan()) {
            true => Err(Error::failed("a likelihood is not a number: the model computes NaN (try --check-tensors)")),
            false => Ok(self.0),
        }
    }
}

/// Tokens of one of the cache's sequences from a position on; of those from position `wanted` on the states are wanted.
struct Piece<'a> {
    seq: usize,
    tokens: &'a [Token],
    first: usize,
    wanted: usize,
}

impl Piece<'_> {
    /// Position of the first state that is wanted.
    fn first_wanted(&self) -> usize {
        self.wanted.max(self.first)
    }

    fn n_wanted(&self) -> usize {
        (self.first + self.tokens.len()).saturating_sub(self.first_wanted())
    }
}

/// Tokens at the beginning that several texts have in common.
fn in_common(requests: &[Request]) -> usize {
    let first = requests[0].input();
    let common = |r: &Request| first.iter().zip(r.input()).take_while(|(a, b)| a == b).count();
    requests[1..].iter().map(common).min().unwrap_or(first.len())
}

impl Session<'_> {
    /// The likelihood of each request of some questions, on all weights. What the requests of a question begin with in common is computed
    /// once: its keys and values stay in the question's own cells, and one request after the other is computed behind them, those of all
    /// questions together. There are at most as many questions as the session has sequences, and as many tokens in each request as its
    /// context has, beside the last one. The session's own tokens are forgotten.
    pub fn likelihoods(&mut self, questions: &[&[Request]]) -> Result<Vec<Vec<Likelihood>>> {
        self.rewind(0);
        let shared: Vec<usize> = questions.iter().map(|q| in_common(q)).collect();
        let (mut states, mut scored): (Vec<f32>, Vec<Scored>) = (Vec::new(), Vec::new());
        let beginnings: Vec<Piece> = (questions.iter().zip(&shared).enumerate())
            .map(|(seq, (requests, &n))| {
                let wanted = requests.iter().map(Request::first).min().unwrap_or(n);
                Piece { seq, tokens: &requests[0].input()[..n], first: 0, wanted }
            })
            .collect();
        let of_beginnings = self.rows_of(&beginnings, &mut states)?;
        let first_request: Vec<usize> =
            questions.iter().scan(0, |n, q| Some(std::mem::replace(n, *n + q.len()))).collect();
        let n_rounds = questions.iter().map(|q| q.len()).max().unwrap_or(0);
        for round in 0..n_rounds {
            let those = || questions.iter().enumerate().filter_map(|(seq, q)| Some((seq, q.get(round)?)));
            let ends: Vec<Piece> = those()
                .map(|(seq, r)| {
                    let n = shared[seq];
                    Piece { seq, tokens: &r.input()[n..], first: n, wanted: r.first() }
                })
                .collect();
            let of_ends = self.rows_of(&ends, &mut states)?;
            for (i, (seq, request)) in those().enumerate() {
                let row = |pos: usize| match pos < shared[seq] {
                    true => of_beginnings[seq] + pos - beginnings[seq].first_wanted(),
                    false => of_ends[i] + pos - ends[i].first_wanted(),
                };
                let tokens = (request.first()..).zip(request.scored());
                let request = first_request[seq] + round;
                scored.extend(tokens.map(|(pos, &token)| Scored { row: row(pos), request, token }));
            }
        }
        let n_requests = questions.iter().map(|q| q.len()).sum();
        let mut sums = Sums::new(n_requests);
        self.score(&states, scored, &mut sums)?;
        let mut sums = sums.finish()?.into_iter();
        Ok(questions.iter().map(|q| sums.by_ref().take(q.len()).collect()).collect())
    }

    /// Computes pieces, appends the states that are wanted, and returns where those of each piece begin, in rows.
    fn rows_of(&mut self, pieces: &[Piece], states: &mut Vec<f32>) -> Result<Vec<usize>> {
        let n_embd = self.engine.model.hparams().n_embd;
        let row = |p: &Piece, i: usize| {
            let pos = p.first + i;
            Row { token: p.tokens[i], pos, seq: p.seq, wanted: pos >= p.wanted }
        };
        let rows: Vec<Row> = pieces.iter().flat_map(|p| (0..p.tokens.len()).map(|i| row(p, i))).collect();
        let n_before = states.len() / n_embd;
        // Memory is reserved for so many rows.
        let n_seq = self.engine.cache.params().n_seq;
        for rows in rows.chunks((self.engine.n_ubatch / n_seq).max(1) * n_seq) {
            let n_wanted = rows.iter().filter(|r| r.wanted).count();
            let results = if n_wanted > 0 { Results::States } else { Results::Cells };
            let batch = Batch { rows: rows.to_vec(), ..Batch::of_pieces(&[], 0, 0..0, results) };
            self.engine.run(&batch, Pass::Dense, None, false)?;
            if n_wanted > 0 {
                let done = states.len();
                states.resize(done + n_wanted * n_embd, 0.0);
                self.engine.results(&mut states[done..]);
            }
        }
        let begins = pieces.iter().scan(n_before, |n, p| Some(std::mem::replace(n, *n + p.n_wanted())));
        Ok(begins.collect())
    }

    /// The likelihoods of requests, given the states `[n_embd, n_scored]` before the tokens of each that are scored.
    pub fn likelihoods_of_states(&mut self, requests: &[Request], states: &[&[f32]]) -> Result<Vec<Likelihood>> {
        let tokens = requests.iter().enumerate().flat_map(|(i, r)| r.scored().iter().map(move |&token| (i, token)));
        let scored = tokens.enumerate().map(|(row, (request, token))| Scored { row, request, token }).collect();
        let mut sums = Sums::new(requests.len());
        self.score(&states.concat(), scored, &mut sums)?;
        sums.finish()
    }

    /// The likelihood of a request whose tokens before those that are scored are the session's first ones; `logits` are those after them.
    /// The scored tokens run on all weights, and are forgotten again.
    pub fn likelihood_after(&mut self, logits: &[f32], request: &Request) -> Result<Likelihood> {
        let (n, scored) = (request.first() + 1, request.scored());
        self.rewind(n);
        let mut sums = Sums::new(1);
        sums.add(0, log_probability(logits, normaliser(logits), scored[0]));
        let states = self.states_after(&scored[..scored.len() - 1])?;
        let others = scored[1..].iter().enumerate().map(|(row, &token)| Scored { row, request: 0, token });
        self.score(&states, others.collect(), &mut sums)?;
        self.rewind(n);
        Ok(sums.finish()?[0])
    }

    /// Adds the log-probabilities of tokens by the states `[n_embd, n]` before them.
    fn score(&mut self, states: &[f32], mut scored: Vec<Scored>, sums: &mut Sums) -> Result<()> {
        // Rows of a request ascend, so that its sum is made in the order of its tokens.
        scored.sort_by_key(|s| s.row);
        let n_embd = self.engine.model.hparams().n_embd;
        let (n_vocab, n_threads) = (self.engine.model.n_vocab(), self.engine.n_threads_batch);
        let mut left = &scored[..];
        for (i, states) in states.chunks(OUTPUT_ROWS * n_embd).enumerate() {
            let first = i * OUTPUT_ROWS;
            let logits = self.outputs(states)?;
            // ggml's threads would wait by spinning, on the cores that add up.
            self.engine.executor.pause();
            let normalisers = normalisers(&logits, n_vocab, n_threads);
            let n = left.partition_point(|s| s.row < first + normalisers.len());
            let (those, after) = left.split_at(n);
            for s in those {
                let row = s.row - first;
                let logits = &logits[row * n_vocab..][..n_vocab];
                sums.add(s.request, log_probability(logits, normalisers[row], s.token));
            }
            left = after;
        }
        Ok(())
    }
}

impl LlamaSession<'_> {
    /// The likelihood of a request by libllama.
    pub fn likelihood(&mut self, request: &Request) -> Result<Likelihood> {
        let mut sums = Sums::new(1);
        let (first, scored) = (request.first(), request.scored());
        self.score(request.input(), first, &mut |i, logits| {
            sums.add(0, log_probability(logits, normaliser(logits), scored[i - first]));
            Ok(())
        })?;
        Ok(sums.finish()?[0])
    }
}

/// [`normaliser`] of each row of logits, on `n_threads` threads.
fn normalisers(logits: &[f32], n_vocab: usize, n_threads: usize) -> Vec<(usize, f64)> {
    let share = (logits.len() / n_vocab).div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        let of_rows = |rows: &[f32]| rows.chunks_exact(n_vocab).map(normaliser).collect::<Vec<_>>();
        let parts: Vec<_> = logits.chunks(share * n_vocab).map(|rows| scope.spawn(move || of_rows(rows))).collect();
        parts.into_iter().flat_map(|p| p.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_have_in_common_is_of_what_is_read() {
        let request = |tokens: &[Token], n_scored| Request { tokens: tokens.to_vec(), n_scored };
        let (a, b) = (request(&[1, 2, 3, 4], 1), request(&[1, 2, 3, 5], 1));
        assert_eq!(in_common(&[a.clone(), b.clone()]), 3);
        assert_eq!(in_common(&[a.clone(), request(&[1, 2, 9], 1)]), 2);
        assert_eq!(in_common(&[request(&[7, 2, 9], 1), b]), 0);
        assert_eq!((a.first(), a.scored(), in_common(std::slice::from_ref(&a))), (2, &[4][..], 3));
    }

    #[test]
    fn log_probabilities_of_a_coin() {
        let logits = [1.0, 1.0 + 3f32.ln()];
        let n = normaliser(&logits);
        let [tails, heads] = [0, 1].map(|token| log_probability(&logits, n, token));
        assert!((tails.0 - 0.25f64.ln()).abs() < 1e-6 && !tails.1, "{tails:?}");
        assert!((heads.0 - 0.75f64.ln()).abs() < 1e-6 && heads.1, "{heads:?}");
        assert_eq!(normaliser(&[2.0, 2.0]).0, 0, "the first of equals");
    }
}
